"""A small plate for the demo, made from one real image of nuclei, and its analysis.

The image is real; what else a plate has is made up from it, the same at each run: fields are
pieces of the image at their own place and orientation, z is defocus, and the second channel is a
cytoplasm around the annotated nuclei.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

__all__ = [
    "CHANNELS",
    "NUCLEI",
    "PIXEL_SIZE_UM",
    "PlateImage",
    "file_name",
    "make_plate",
    "open_field",
    "remove_background",
    "segment_nuclei",
    "well_names",
]

#: The nuclei (measured) and the cytoplasm (made up).
CHANNELS = ("DAPI", "GFP")
NUCLEI = CHANNELS[0]
#: Assumed: the original says nothing, and at this value the nuclei are some 12 um long.
PIXEL_SIZE_UM = 0.5

_DATA = Path(__file__).parent / "_demo_data"
_FIELD_PX = 360
_DEFOCUS_PX = 1.3  # blur per z step away from the focus
_NAME = re.compile(r"^(?P<well>[A-Z]\d\d)_s(?P<site>\d+)_w(?P<channel>\w+)_z(?P<z>\d+)\.tif$")
_ROWS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True)
class PlateImage:
    """One file of the plate."""

    path: Path
    well: str
    site: int
    channel: str
    z: int


def well_names(count: int) -> list[str]:
    """The names of `count` wells of a plate that is half as wide again as high: A01, A02, ..."""
    columns = math.ceil(math.sqrt(1.5 * count))
    return [f"{_ROWS[index // columns]}{index % columns + 1:02}" for index in range(count)]


def file_name(well: str, site: int, channel: str, z: int) -> str:
    """As a microscope would call it: ``A01_s1_wDAPI_z2.tif``."""
    return f"{well}_s{site}_w{channel}_z{z}.tif"


def make_plate(folder: Path, *, wells: int, sites: int, depth: int) -> list[Path]:
    """Write a plate as TIFF files, one for each well, site, channel and z.

    Parameters
    ----------
    folder : Path
        Where to; it exists.
    wells, sites, depth : int
        How many wells, sites in each, and z planes in each; all counted from 1.

    Returns
    -------
    list of Path
        uint16 images (Y, X).
    """
    import tifffile

    nuclei = tifffile.imread(_DATA / "nuclei.tif").astype(np.float32)
    cytoplasm = _cytoplasm(tifffile.imread(_DATA / "nuclei_mask.tif"))
    paths: list[Path] = []
    fields = [(well, site) for well in well_names(wells) for site in range(1, sites + 1)]
    for number, (well, site) in enumerate(fields):
        piece = _piece(number, nuclei.shape)
        for channel, whole in zip(CHANNELS, (nuclei, cytoplasm), strict=True):
            sharp = piece(whole)
            for z in range(1, depth + 1):
                image = _take(sharp, z - (depth + 1) / 2, seed=(number, CHANNELS.index(channel), z))
                paths.append(folder / file_name(well, site, channel, z))
                tifffile.imwrite(paths[-1], image)
    return paths


def open_field(folder: Path, well: str, site: int) -> Iterator[PlateImage]:
    """The files of one field, by z and then by channel."""
    paths = folder.glob(f"{well}_s{site}_w*_z*.tif")
    found = [
        PlateImage(path, well, site, parts["channel"], int(parts["z"]))
        for path in paths
        if (parts := _NAME.match(path.name))
    ]
    yield from sorted(found, key=lambda image: (image.z, CHANNELS.index(image.channel)))


def remove_background(image: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Smooth away the noise, subtract what varies slowly: (Y, X) float32 >= 0."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1)
    background = ndimage.gaussian_filter(ndimage.minimum_filter(smooth, 41), 20)
    return np.asarray(np.maximum(smooth - background, 0), np.float32)


def segment_nuclei(image: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Label the nuclei in a background-free image: Otsu's threshold, then a watershed.

    Parameters
    ----------
    image : ndarray
        (Y, X), >= 0.

    Returns
    -------
    ndarray
        (Y, X) uint16; 0 is background, the nuclei are 1, 2, ...
    """
    from scipy import ndimage
    from skimage import feature, filters, segmentation

    # Dividing nuclei are several times as bright as the rest: clipped, or else they alone would
    # stand above the threshold.
    threshold = filters.threshold_otsu(image.clip(0, np.percentile(image, 95)))
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(image > threshold))
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 2)
    peaks = feature.peak_local_max(
        distance, min_distance=4, labels=ndimage.label(mask)[0], exclude_border=False
    )
    seeds = np.zeros(image.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = segmentation.watershed(-distance, seeds, mask=mask)
    areas = np.bincount(labels.ravel())
    kept = areas >= 30  # smaller is debris
    kept[0] = False  # the background
    numbers = np.where(kept, np.cumsum(kept), 0)
    return np.asarray(numbers[labels], np.uint16)


def _cytoplasm(nuclei: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """A ring around each nucleus, each of its own brightness, over a weak background."""
    from scipy import ndimage

    random = np.random.default_rng(2)
    distance, nearest = ndimage.distance_transform_edt(nuclei == 0, return_indices=True)
    brightness = random.uniform(40, 160, int(nuclei.max()) + 1)
    of_cell = brightness[nuclei[tuple(nearest)]]
    ring = np.where(nuclei > 0, 0.25, np.exp(-distance / 6))
    texture = ndimage.gaussian_filter(random.normal(size=nuclei.shape), 2)
    return np.asarray(
        12 + of_cell * ndimage.gaussian_filter(ring * (1 + 1.5 * texture), 1), np.float32
    )


def _piece(number: int, shape: tuple[int, ...]) -> Any:
    """The function that cuts field `number` out of a whole image."""
    random = np.random.default_rng(number)
    y, x = (int(random.integers(0, extent - _FIELD_PX + 1)) for extent in shape)
    turns = number % 4
    is_flipped = number % 8 >= 4

    def cut(whole: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        piece = np.rot90(whole[y : y + _FIELD_PX, x : x + _FIELD_PX], turns)
        return piece[:, ::-1] if is_flipped else piece

    return cut


def _take(
    sharp: npt.NDArray[np.float32], from_focus: float, *, seed: tuple[int, ...]
) -> npt.NDArray[np.uint16]:
    """A camera's image of it, out of focus by so many z steps: blur, then photon noise."""
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(sharp, _DEFOCUS_PX * abs(from_focus))
    noisy = np.random.default_rng(seed).poisson(4 * blurred) * 4 + 100
    return np.asarray(noisy.clip(0, 65535), np.uint16)
