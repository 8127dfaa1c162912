"""Files into items: what is in them, how their axes are named, how large a pixel is."""

from __future__ import annotations

import json
import logging
import re
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from openhcs_stream.errors import InvalidItem, LossyConversion, StreamError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from openhcs_stream.rois import Roi

__all__ = ["FileItem", "check", "read", "suffixes"]

#: Images from this size on are mapped instead of read, where the file allows it.
_MAP_NBYTES = 64 << 20
#: Zarr arrays from this size on are read and sent piece by piece along their first axis.
_WHOLE_NBYTES = 512 << 20
#: GeoJSON and metadata files are read at once; larger ones are no such files.
_TEXT_NBYTES = 1 << 30

_log = logging.getLogger(__name__)

_COMPONENT_OF_AXIS = {"T": "time", "Z": "z", "C": "channel"}
_UNITS = {
    "µm": "um",
    "μm": "um",
    "um": "um",
    "\\u00b5m": "um",
    "micron": "um",
    "microns": "um",
    "micrometer": "um",
    "micrometers": "um",
    "micrometre": "um",
    "nm": "nm",
    "nanometer": "nm",
    "nanometre": "nm",
    "mm": "mm",
    "millimeter": "mm",
    "millimetre": "mm",
    "cm": "cm",
    "centimeter": "cm",
    "m": "m",
    "meter": "m",
}
#: Resolutions that image editors write when nobody measured anything, in pixels per inch.
_PRINT_DPI = {1, 72, 75, 90, 96, 100, 120, 150, 200, 240, 300, 400, 600, 1200}


@dataclass(frozen=True)
class FileItem:
    """One thing to send.

    Attributes
    ----------
    kind : "image", "labels" or "rois"
    name : str
        The file's name without its suffix, and what else tells it from its neighbours.
    data : ndarray, or list of ROIs
    axes : str
        One letter per axis of an array.
    pixel_size : tuple of float
        (Y, X) or (Z, Y, X); empty where the file does not say.
    unit : str
        Of `pixel_size`.
    place : mapping
        What the file itself says about its place: the channel's name.
    """

    kind: Literal["image", "labels", "rois"]
    name: str
    data: Any
    axes: str = ""
    pixel_size: tuple[float, ...] = ()
    unit: str = ""
    place: Mapping[str, int | str] = field(default_factory=dict)


def suffixes() -> tuple[str, ...]:
    """What `read` knows, for messages."""
    return tuple(_READERS)


def read(path: Path, *, labels: bool = False) -> Iterator[FileItem]:
    """Everything in one file, in its order.

    Parameters
    ----------
    path : Path
        An image, a list of ROIs, or the folder of an OME-Zarr image.
    labels : bool
        Images are label images.

    Raises
    ------
    UsageError
        There is no such file, it is of an unknown kind, or what reads it is not installed.
    InvalidItem
        The file is broken.
    """
    reader = _reader_of(path)
    for item in _guarded(reader, path):
        yield replace(item, kind="labels") if labels and item.kind == "image" else item


def check(path: Path) -> None:
    """Look whether `read` can read a file, by its name alone.

    Raises
    ------
    UsageError
        As `read` does.
    """
    _reader_of(path)


def _reader_of(path: Path) -> Callable[[Path], Iterator[FileItem]]:
    if not path.exists():
        raise UsageError(f"there is no file {path}.", cure="Check the path.")
    if path.is_dir():
        # With or without the suffix: the images in an OME-Zarr plate have none.
        if path.suffix.lower() == ".zarr" or _zarr_metadata_of(path) is not None:
            return _read_zarr
        raise UsageError(
            f"{path} is a folder, and no OME-Zarr image.", cure="Name the files in it."
        )
    reader = _READERS.get(path.suffix.lower())
    if reader is None or reader is _read_zarr:
        raise UsageError(
            f"{path} is of no kind that can be read.", cure=f"Known are {', '.join(_READERS)}."
        )
    return reader


def _guarded(reader: Callable[[Path], Iterator[FileItem]], path: Path) -> Iterator[FileItem]:
    """A foreign reader's errors become ours, with the file's name in them."""
    items = reader(path)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (StreamError, MemoryError):
            raise
        except ImportError as error:
            raise UsageError(
                f"{path} can't be read, because {error.name or error} is not installed.",
                cure="Install what reads images: `pip install 'openhcs-stream[images]'`.",
            ) from error
        except Exception as error:
            # Whatever a codec raises on a broken file; they have no common base.
            raise InvalidItem(
                f"{path} can't be read: {type(error).__name__}: {error}.",
                cure="Open it in the program that made it and save it anew.",
            ) from error
        yield item


# --- TIFF -----------------------------------------------------------------------------------------


def _read_tiff(path: Path) -> Iterator[FileItem]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        described = _describe_ome(tiff.ome_metadata) if tiff.ome_metadata else []
        total = len(tiff.series)
        for index, series in enumerate(tiff.series):
            about = described[index] if index < len(described) else _Described()
            if not described:
                about = _describe_tags(tiff, series)
            array: npt.NDArray[Any] | None = None
            if series.nbytes >= _MAP_NBYTES and series.dataoffset is not None:
                try:
                    array = tifffile.memmap(path, series=index, mode="r")
                except (ValueError, OSError):  # compressed, or of another byte order
                    array = None
            if array is None:
                array = series.asarray()
            axes = series.axes
            if len(axes) != array.ndim:  # memmap keeps axes of length one that series drops
                array = array.reshape(series.shape)
            title = path.name.removesuffix(path.suffix).removesuffix(".ome")
            if total > 1:
                title += f" [{about.name or series.name or index}]"
            yield from _by_channel(
                FileItem(
                    "image",
                    title,
                    array,
                    _our_letters(axes),
                    about.pixel_size(axes),
                    about.unit,
                ),
                about.channels,
            )


@dataclass(frozen=True)
class _Described:
    """What a file says about one image."""

    name: str = ""
    y: float = 0.0
    x: float = 0.0
    z: float = 0.0
    unit: str = ""
    channels: tuple[str, ...] = ()

    def pixel_size(self, axes: str) -> tuple[float, ...]:
        if not (self.y > 0 and self.x > 0 and self.unit):
            return ()
        if "Z" in axes and self.z > 0:
            return (self.z, self.y, self.x)
        return (self.y, self.x)


def _describe_ome(text: str) -> list[_Described]:
    """The images of an OME-XML document, in its order."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return []
    found = []
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        # OME's default unit is the micrometre. One unit for all axes: the others are converted.
        unit = _UNITS.get(pixels.get("PhysicalSizeXUnit", "µm").lower(), "")
        names = [channel.get("Name") or "" for channel in pixels.iterfind("{*}Channel")]
        found.append(
            _Described(
                image.get("Name") or "",
                _ome_size(pixels, "Y", unit),
                _ome_size(pixels, "X", unit),
                _ome_size(pixels, "Z", unit),
                unit,
                tuple(names) if all(names) and len(set(names)) == len(names) else (),
            )
        )
    return found


_METRES = {"nm": 1e-9, "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}


def _ome_size(pixels: ElementTree.Element, axis: str, unit: str) -> float:
    size = _number(pixels.get(f"PhysicalSize{axis}"))
    own = _UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm").lower(), "")
    if not unit or not own:
        return 0.0
    return size if own == unit else size * _METRES[own] / _METRES[unit]


def _describe_tags(tiff: Any, series: Any) -> _Described:
    """Pixel size and names from ImageJ's description, else from the resolution tags."""
    page = series.keyframe
    x, y = (_per_unit(page, tag) for tag in ("XResolution", "YResolution"))
    if tiff.is_imagej:
        facts = tiff.imagej_metadata or {}
        unit = _UNITS.get(str(facts.get("unit", "")).strip().lower(), "")
        labels = facts.get("Labels") or ()
        channels = int(facts.get("channels", 1))
        names = tuple(str(label) for label in labels[:channels]) if channels > 1 else ()
        if len(labels) != channels or len(set(names)) != len(names):
            names = ()  # labels of slices, not of channels
        return _Described("", y, x, _number(facts.get("spacing")), unit, names)
    tag = page.tags.get("ResolutionUnit")
    factor = {2: 25_400.0, 3: 10_000.0}.get(int(tag.value) if tag is not None else 0, 0.0)
    if not (x and y and factor):
        return _Described()
    if factor == 25_400.0 and round(1 / x) in _PRINT_DPI:
        return _Described()
    return _Described("", y * factor, x * factor, 0.0, "um")


def _per_unit(page: Any, name: str) -> float:
    """Units per pixel from a resolution tag, which counts pixels per unit; 0 where unknown."""
    tag = page.tags.get(name)
    if tag is None:
        return 0.0
    numerator, denominator = tag.value
    return denominator / numerator if numerator else 0.0


def _our_letters(axes: str) -> str:
    """tifffile's letters, without repetitions; D, J and O are not ours.

    Q and I mean that the file does not say what the axis is: as ImageJ does, the last such axis
    is taken for Z, where there is no other.
    """
    if "Z" not in axes:
        unknown = max(axes.rfind("Q"), axes.rfind("I"))
        if unknown >= 0:
            axes = f"{axes[:unknown]}Z{axes[unknown + 1 :]}"
    free = iter("QIABEFGHKLMNPRUVW")
    seen: list[str] = []
    for letter in axes:
        if letter in seen or letter in "DJO":
            letter = next(other for other in free if other not in axes and other not in seen)
        seen.append(letter)
    return "".join(seen)


def _by_channel(item: FileItem, names: tuple[str, ...]) -> Iterator[FileItem]:
    """An item for each named channel, so that it stands under its name; else the item itself."""
    import numpy as np

    axis = item.axes.find("C")
    if not names or (axis < 0 and len(names) != 1):
        yield item
        return
    if axis < 0:
        yield replace(item, place={"channel": names[0]})
        return
    if len(names) != item.data.shape[axis]:
        yield item
        return
    for index, name in enumerate(names):
        plane = np.moveaxis(item.data, axis, 0)[index]
        yield replace(item, data=plane, axes=item.axes.replace("C", ""), place={"channel": name})


# --- PNG and its like -----------------------------------------------------------------------------


def _read_picture(path: Path) -> Iterator[FileItem]:
    import imageio.v3 as iio

    array: npt.NDArray[Any] = iio.imread(path)
    axes = {2: "YX", 3: "YXS", 4: "TYXS"}.get(array.ndim)
    if array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4):
        axes = "TYX"
    if axes is None:
        raise ValueError(f"an image of shape {array.shape}")
    if axes.endswith("S") and array.shape[-1] in (1, 2):  # grey, with alpha or without
        array, axes = array[..., 0], axes[:-1]
    yield FileItem("image", path.stem, array, axes)


# --- OME-Zarr -------------------------------------------------------------------------------------


def _read_zarr(path: Path) -> Iterator[FileItem]:
    facts = _zarr_metadata_of(path)
    if facts is None:
        raise UsageError(
            f"{path} is no OME-Zarr image: it has no multiscales metadata.",
            cure="Name the folder of one image; in a plate that is a field such as A/1/0.",
        )
    try:
        zarr: Any = import_module("zarr")
    except ImportError as error:
        raise UsageError(
            f"{path} can't be read, because zarr is not installed.",
            cure="Install it: `pip install zarr`.",
        ) from error
    multiscale = facts["multiscales"][0]
    level = multiscale["datasets"][0]
    array: Any = zarr.open_array(str(path / level["path"]), mode="r")
    # Version 0.3 names axes by letters, later ones by objects, 0.1 not at all: then it is TCZYX.
    axes = [
        axis if isinstance(axis, str) else str(axis["name"])
        for axis in multiscale.get("axes", "tczyx"[5 - min(5, array.ndim) :])
    ]
    letters = _our_letters("".join(name[:1].upper() for name in axes))
    if len(letters) != array.ndim:
        raise ValueError(f"{len(letters)} axes for an array of shape {array.shape}")
    sizes, unit = _zarr_sizes(multiscale, level, axes)
    channels = tuple(
        str(channel.get("label") or "") for channel in facts.get("omero", {}).get("channels", [])
    )
    if not all(channels) or len(set(channels)) != len(channels):
        channels = ()
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    item = FileItem("image", name, None, letters, sizes, unit)
    leading = letters[0]
    if array.nbytes < _WHOLE_NBYTES or leading in "YX" or (leading == "C" and channels):
        yield from _by_channel(replace(item, data=array[...]), channels)
        return
    component = _COMPONENT_OF_AXIS.get(leading, leading.lower())
    for index in range(array.shape[0]):
        for part in _by_channel(replace(item, data=array[index], axes=letters[1:]), channels):
            yield replace(part, place={**part.place, component: index})


def _zarr_metadata_of(path: Path) -> dict[str, Any] | None:
    """The attributes of an OME-Zarr image, versions 0.1 to 0.5; None where it is none."""
    for name in ("zarr.json", ".zattrs"):
        try:
            content = json.loads(_text(path / name))
        except FileNotFoundError:
            continue
        if name == "zarr.json":
            content = content.get("attributes", {})
            content = content.get("ome", content)
        if isinstance(content, dict) and content.get("multiscales"):
            return content
    return None


def _zarr_sizes(
    multiscale: Mapping[str, Any], level: Mapping[str, Any], axes: list[str]
) -> tuple[tuple[float, ...], str]:
    scale = [1.0] * len(axes)
    found = False
    for step in [
        *level.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ]:
        if step.get("type") == "scale" and len(step.get("scale", ())) == len(axes):
            scale = [one * float(other) for one, other in zip(scale, step["scale"], strict=True)]
            found = True
    units = [
        _UNITS.get(str(axis.get("unit", "")).lower(), "")
        for axis in multiscale.get("axes", ())
        if isinstance(axis, dict) and axis.get("name") in ("z", "y", "x")
    ]
    unit = units[-1] if units else ""
    if not (found and unit and set(units) == {unit}):
        return (), ""
    by_name = dict(zip(axes, scale, strict=True))
    return tuple(by_name[name] for name in ("z", "y", "x") if name in by_name), unit


# --- ROIs -----------------------------------------------------------------------------------------


def _read_imagej_rois(path: Path) -> Iterator[FileItem]:
    from openhcs_stream.rois import read_imagej

    yield _rois(path, partial(read_imagej, path))


def _read_geojson(path: Path) -> Iterator[FileItem]:
    from openhcs_stream.rois import from_geojson

    yield _rois(path, partial(from_geojson, _text(path)))


def _read_ome_rois(path: Path) -> Iterator[FileItem]:
    from openhcs_stream.rois import from_ome

    yield _rois(path, partial(from_ome, path))


def _rois(path: Path, reader: Callable[[], list[Roi]]) -> FileItem:
    """What is left out is told with the file's name, and not with a line of this package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LossyConversion)
        rois = reader()
    for each in caught:
        _log.warning("%s: %s", path, each.message)
    if not rois and path.suffix.lower() in (".zip", ".xml"):  # an empty GeoJSON says so itself
        raise UsageError(
            f"{path} has no ROI in it.", cure="Check that they were saved to this file."
        )
    return FileItem("rois", path.stem, rois)


# --- small things ---------------------------------------------------------------------------------


def _text(path: Path) -> str:
    if path.stat().st_size > _TEXT_NBYTES:
        raise InvalidItem(
            f"{path} has {path.stat().st_size} bytes, more than any metadata or outline file.",
            cure="Check that it is what its name says.",
        )
    return path.read_text(encoding="utf-8")


def _number(text: object) -> float:
    """A positive number from metadata, else 0."""
    try:
        value = float(re.sub(r"[^0-9.eE+-]", "", str(text)))
    except ValueError:
        return 0.0
    return value if 0 < value < float("inf") else 0.0


_READERS: dict[str, Callable[[Path], Iterator[FileItem]]] = {
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".bmp": _read_picture,
    ".zarr": _read_zarr,
    ".roi": _read_imagej_rois,
    ".zip": _read_imagej_rois,
    ".geojson": _read_geojson,
    ".json": _read_geojson,
    ".xml": _read_ome_rois,
}
