"""ImageJ's objects as ROIs, with all that ImageJ keeps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import KINDS, Roi, from_imagej
from openhcs_stream_fiji._rois import PLAIN

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._java import Java

__all__ = ["NativeReader", "as_color", "as_properties"]

logger = logging.getLogger(__name__)

_KIND_OF_TYPE: Final = {number: kind for kind, number in PLAIN.items()}
#: Bits of a .roi file's options.
_SUBPIXEL: Final = 128
_SCALED_STROKE: Final = 8192
#: Java's hashes of true and false.
_TRUE: Final = 1231
_FALSE: Final = 1237
#: ImageJ writes more vertices, and larger coordinates, in another way.
_MOST_VERTICES: Final = 65535
_MOST: Final = 60000
#: How labels are drawn; what was read from a file may have a choice of its own.
_LABELS: Final = tuple(
    f"getPrototypeOverlay.{name}"
    for name in ("getDrawLabels", "getDrawNames", "getDrawBackgrounds", "scalableLabels",
                 "getLabelFont")
)  # fmt: skip


class NativeReader:
    """Reads arrays of `ij.gui.Roi`.

    Parameters
    ----------
    java : Java
    bulk : Bulk
    """

    def __init__(self, java: Java, bulk: Bulk) -> None:
        self._java = java
        self._bulk = bulk

    def read(self, natives: Any) -> list[Roi | None]:
        """Read each with its name, colours, group and properties, but not its position.

        None for an image, and for what has too few vertices to be drawn: a line in the log tells.
        """
        found = self.shapes(natives)
        stroke, fill, group, width = (
            self._bulk.numbers(natives, name).tolist()
            for name in ("getStrokeColor", "getFillColor", "getGroup", "getStrokeWidth")
        )
        for index, roi in enumerate(found):
            if roi is None:
                continue
            native = natives[index]
            found[index] = Roi.unchecked(
                roi.kind, roi.coordinates, str(native.getName() or ""), as_color(stroke[index]),
                as_color(fill[index]), float(width[index]), group[index], (0, 0, 0),
                as_properties(str(native.getProperties() or "")), roi.details, False,
                roi.imagej_options,
            )  # fmt: skip
        return found

    def shapes(self, natives: Any) -> list[Roi | None]:
        """Read each one's kind, coordinates, details and options, and nothing else."""
        count = len(natives)
        found: list[Roi | None] = [None] * count
        is_plain = self._plain(natives)
        indices = np.flatnonzero(is_plain)
        if len(indices):
            self._read_plain(natives, indices, found)
        for index in [i for i in range(count) if found[i] is None]:
            try:
                found[index] = self._read_one(natives[index])
            except InvalidItem as error:
                logger.warning("%s It stays in ImageJ alone.", error)
        return found

    def _plain(self, natives: Any) -> npt.NDArray[np.bool_]:
        """Which are made of vertices and nothing else."""
        java, bulk = self._java, self._bulk
        classes = bulk.numbers(natives, "getClass")
        plain = [
            int(java.jpype.JClass(name).class_.hashCode())
            for name in ("ij.gui.PolygonRoi", "ij.gui.FreehandRoi")
        ]
        is_plain = np.isin(classes, plain)
        is_plain &= np.isin(bulk.numbers(natives, "getType"), list(_KIND_OF_TYPE))
        for name in _LABELS:
            is_plain &= np.isin(bulk.numbers(natives, name), (0, _FALSE))
        for name in ("getXBase", "getYBase", "getFloatWidth", "getFloatHeight"):
            is_plain &= bulk.numbers(natives, name) < _MOST
        chosen = np.flatnonzero(is_plain)
        if len(chosen):
            splines = bulk.numbers(bulk.take(natives, chosen), "isSplineFit", java.PolygonRoi)
            is_plain[chosen] = splines != _TRUE
        return np.asarray(is_plain, np.bool_)

    def _read_plain(
        self, natives: Any, indices: npt.NDArray[np.intp], found: list[Roi | None]
    ) -> None:
        bulk = self._bulk
        plain = bulk.take(natives, indices)
        counts, vertices = bulk.vertices(plain)
        xy = vertices.astype(np.float64)
        xy.setflags(write=False)
        kinds = [_KIND_OF_TYPE[number] for number in bulk.numbers(plain, "getType").tolist()]
        scaled = bulk.numbers(plain, "getScaleStrokeWidth") == _TRUE
        fine = bulk.numbers(plain, "subPixelResolution") == _TRUE
        stops = np.cumsum(counts)
        starts = stops - counts
        whole, finite = (
            np.logical_and.reduceat(each.all(axis=1), starts) if counts.all() else None
            for each in (np.rint(xy) == xy, np.isfinite(xy))
        )
        if whole is None or finite is None:
            return  # one by one: something has no vertices at all
        options = scaled * _SCALED_STROKE + (fine & whole) * _SUBPIXEL
        for at, index in enumerate(indices.tolist()):
            kind = kinds[at]
            if finite[at] and KINDS[kind].least <= counts[at] <= _MOST_VERTICES:
                found[index] = Roi.unchecked(
                    kind, xy[starts[at] : stops[at]], "", "", "", 0.0, 0, (0, 0, 0), {}, None,
                    False, int(options[at]),
                )  # fmt: skip

    def _read_one(self, native: Any) -> Roi:
        roi = from_imagej(bytes(self._java.RoiEncoder.saveAsByteArray(native)))
        return Roi(
            roi.kind, roi.coordinates, details=roi.details, imagej_options=roi.imagej_options
        )


def as_color(argb: int) -> str:
    """The model's form of a colour's number; 0 is none."""
    number = argb & 0xFFFFFFFF
    return f"#{number & 0xFFFFFF:06x}{number >> 24:02x}" if number else ""


def as_properties(text: str) -> dict[str, str]:
    """Properties from the one text that ImageJ gives for all of them."""
    pairs = (line.partition(":") for line in text.split("\n") if ":" in line)
    return {key: value.removeprefix(" ") for key, _, value in pairs}
