"""The ROIs of OME-XML: files of Bio-Formats, OMERO and other programs, through ome-types.

Coordinates are taken as they stand. Bio-Formats' ``ROIHandler`` writes ImageJ's own numbers (a
rectangle's bounds, a polygon's vertices, a point's x and y) and reads them back as such, so that
shapes with an area count from pixel corners, lines and points from pixel centres, as `Roi` does.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
import warnings
from collections import Counter
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem, LossyConversion, StreamError, UsageError
from openhcs_stream.rois._details import Arrow, Text
from openhcs_stream.rois._labels import from_labels
from openhcs_stream.rois._listed import first_few
from openhcs_stream.rois._model import Roi
from openhcs_stream.rois._ome_mask import mask_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

__all__ = ["from_ome"]

#: What one document may have.
MAX_XML_NBYTES: Final = 1 << 28
_TIFF: Final = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})
_CURE: Final = "Pass OME-XML as text, the path of an .ome.xml or .ome.tif file, or an OME object."
_FONTS: Final = {"serif": "Serif", "monospace": "Monospaced"}
#: How much room a letter of a text takes, as a share of its size.
_LETTER: Final = 0.6
_LINE: Final = 1.2
_FONT_SIZE: Final = 12
#: Of shapes whose sides are this nearly square to each other.
_SQUARE: Final = 1e-9


def from_ome(source: str | bytes | os.PathLike[str] | Any) -> list[Roi]:
    """Read the ROIs of an OME-XML document: `pip install "openhcs-stream[ome]"`.

    Parameters
    ----------
    source : str, bytes, path or ome_types.OME
        OME-XML as text, which begins with ``<``; the path of such a file, or of an OME-TIFF; or the
        object that ``ome_types`` makes of it. Documents of older schemas need lxml too.

    Returns
    -------
    list of Roi
        One for each shape, in order. The shapes of one OME ROI have its name (or else each its own
        text), and its id as the property "id", by which they can be brought together; with
        "description", "text", "isLocked" and the pairs of its map annotations as further
        properties, and "image" where the document has several images. TheC, TheZ and TheT, which
        count from 0, become `Roi.position`. A line with an arrow's head becomes an arrow, an
        ellipse or rectangle that is turned one of its own kind, a mask the outline of its pixels,
        and a label a text whose box is estimated from its letters.

    Warns
    -----
    LossyConversion
        Once, of shapes that are left out because they can't be read, with their ids and the
        reasons, and of what is not kept of others.

    Raises
    ------
    InvalidItem
        It is no OME-XML, or none of its shapes can be read.
    UsageError
        ome-types is not installed.
    OSError
        The file can't be read.
    """
    document = _document(source)
    told: Counter[str] = Counter()
    left_out: list[str] = []
    made: list[Roi] = []

    def tell(what: str) -> None:
        told[what] += 1

    annotations = _annotations(document)
    images = _images(document)
    for ome_roi in document.rois:
        shared = _shared(ome_roi, annotations, images, tell)
        for shape in ome_roi.union:
            try:
                made.append(_of_shape(ome_roi, shape, shared, tell))
            except InvalidItem as error:
                left_out.append(f"{shape.id} of {ome_roi.id}: {error.what.rstrip('.')}")
    named = first_few(left_out)
    if left_out and not made:
        raise InvalidItem(f"no shape in the OME-XML can be read: {named}.", cure="Export it anew.")
    lines = [f"{what} ({n} times)" if n > 1 else what for what, n in told.items()]
    if left_out:
        lines.insert(0, f"{len(left_out)} shapes that can't be read are left out: {named}")
    if lines:
        warnings.warn(f"OME-XML: {'; '.join(lines)}.", LossyConversion, stacklevel=2)
    return made


# --- the document ---------------------------------------------------------------------------------


def _document(source: Any) -> Any:
    try:
        import ome_types
    except ImportError as error:
        raise UsageError(
            "OME-XML is read by ome-types, which is not installed.",
            cure='Install it: pip install "openhcs-stream[ome]".',
        ) from error
    if isinstance(source, ome_types.OME):
        return source
    text = _text(source)
    # Entities that grow without bound are declared in one, and OME-XML has none.
    if b"<!DOCTYPE" in text.translate(None, b"\0"):  # in UTF-16 too
        raise _no_ome("it has a DOCTYPE")
    try:
        document: Any = ome_types.from_xml(text)
    except ImportError as error:
        raise UsageError(
            f"this OME-XML is of an older schema, for which {error.name or error} is missing.",
            cure="Install it: pip install lxml.",
        ) from error
    except Exception as error:
        # Those of two XML parsers, of xsdata and of pydantic, which have no common base.
        if isinstance(error, (StreamError, MemoryError)):
            raise
        raise _no_ome(f"{type(error).__name__}: {error}") from error
    if not isinstance(document, ome_types.OME):
        raise _no_ome(f"it is one {type(document).__name__}")
    return document


def _text(source: Any) -> bytes:
    if isinstance(source, str) and source.lstrip("\ufeff \t\r\n").startswith("<"):
        source = _encoded(source.lstrip("\ufeff \t\r\n"))
    if isinstance(source, (str, os.PathLike)):
        source = _of_file(FilePath(source))
    if not isinstance(source, (bytes, bytearray, memoryview)):
        raise InvalidItem(f"{reprlib.repr(source)} is no OME-XML.", cure=_CURE)
    if len(source) > MAX_XML_NBYTES:
        raise _no_ome(f"it has more than {MAX_XML_NBYTES} bytes")
    return bytes(source)


def _of_file(path: FilePath) -> bytes:
    with path.open("rb") as file:
        head = file.read(4)
        if head not in _TIFF:
            return head + file.read(MAX_XML_NBYTES)
    try:
        import tifffile
    except ImportError as error:
        raise UsageError(
            "OME-TIFF is read by tifffile, which is not installed.",
            cure='Install it: pip install "openhcs-stream[ome]".',
        ) from error
    try:
        with tifffile.TiffFile(path) as tiff:
            text = tiff.ome_metadata
    except Exception as error:
        # A damaged file leads it anywhere.
        if isinstance(error, (MemoryError, OSError)):
            raise
        raise _no_ome(f"{path.name!r}: {type(error).__name__}: {error}") from error
    if text is None:
        raise _no_ome(f"{path.name!r} is a TIFF without any")
    return _encoded(text)


def _encoded(text: str) -> bytes:
    """Encode what was decoded already, and so has no other encoding, whatever it says."""
    return re.sub(r"^<\?xml[^>]*\?>", "", text).encode("utf-8", "surrogatepass")


def _no_ome(why: str) -> InvalidItem:
    return InvalidItem(f"this is no OME-XML: {why}.", cure=_CURE)


def _annotations(document: Any) -> dict[str, Any]:
    found = document.structured_annotations
    return {each.id: each for each in found} if found else {}


def _images(document: Any) -> dict[str, list[str]]:
    """Which images each ROI belongs to, where that is a question."""
    if len(document.images) < 2:
        return {}
    found: dict[str, list[str]] = {}
    for image in document.images:
        for ref in image.roi_refs:
            found.setdefault(ref.id, []).append(image.id)
    return found


# --- one shape ------------------------------------------------------------------------------------


def _shared(
    ome_roi: Any,
    annotations: dict[str, Any],
    images: dict[str, list[str]],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Give the properties that all shapes of an OME ROI have."""
    made: dict[str, str] = {}
    for ref in ome_roi.annotation_refs:
        value: Any = getattr(annotations.get(ref.id), "value", None)
        if hasattr(value, "ms"):
            made |= {pair.k or "": pair.value or "" for pair in value.ms}
        else:
            tell("an annotation that is no map is left out")
    if ome_roi.description:
        made["description"] = ome_roi.description
    if ome_roi.id in images:
        made["image"] = " ".join(images[ome_roi.id])
    made["id"] = ome_roi.id
    return made


def _of_shape(ome_roi: Any, shape: Any, shared: dict[str, str], tell: Callable[[str], None]) -> Roi:
    properties = dict(shared)
    name = ome_roi.name or shape.text or ""
    kind = type(shape).__name__
    if shape.text and shape.text != name and kind != "Label":
        properties["text"] = shape.text
    if shape.locked:
        properties["isLocked"] = "true"
    width = shape.stroke_width or 0.0
    if width and shape.stroke_width_unit.name != "PIXEL":
        tell(f"a stroke's width in {shape.stroke_width_unit.value} is left out")
        width = 0.0
    fields = {
        "name": name,
        "stroke_color": _color(shape.stroke_color),
        "fill_color": _color(shape.fill_color),
        "stroke_width": width,
        "position": tuple(
            0 if number is None else number + 1
            for number in (shape.the_c, shape.the_z, shape.the_t)
        ),
        "properties": properties,
    }
    build = _BUILDERS.get(kind)
    if build is None:
        raise InvalidItem(f"a shape of type {kind} is not known.", cure="Leave it out.")
    return build(shape, _Transform(shape.transform), fields, tell)


class _Transform:
    """A shape's affine transform, or none."""

    def __init__(self, given: Any) -> None:
        rows = ((1, 0, 0), (0, 1, 0))
        if given is not None:
            rows = (given.a00, given.a01, given.a02), (given.a10, given.a11, given.a12)
        matrix = np.array(rows, np.float64)
        self.linear: Floats = matrix[:, :2]
        self._shift: Floats = matrix[:, 2]

    def __call__(self, pairs: Any) -> Floats:
        """Move x, y pairs."""
        with np.errstate(over="ignore", invalid="ignore"):  # the model refuses what is infinite
            moved: Floats = np.asarray(pairs, np.float64) @ self.linear.T + self._shift
        return moved

    @property
    def is_upright(self) -> bool:
        return not self.linear[0, 1] and not self.linear[1, 0]


def _point(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    return Roi("point", moved([(shape.x, shape.y)]), **fields)


def _line(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    ends = moved([(shape.x1, shape.y1), (shape.x2, shape.y2)])
    heads = shape.marker_start is not None, shape.marker_end is not None
    if not any(heads):
        return Roi("line", ends, **fields)
    if not heads[1]:
        ends = ends[::-1]
    return Roi("arrow", ends, details=Arrow(double_headed=all(heads)), **fields)


def _polyline(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    if shape.marker_start is not None or shape.marker_end is not None:
        tell("an arrow's head at a line of several pieces is left out")
    return Roi("polyline", moved(_vertices(shape.points)), **fields)


def _polygon(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    return Roi("polygon", moved(_vertices(shape.points)), **fields)


def _rectangle(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    if shape.width < 0 or shape.height < 0:
        raise InvalidItem(
            f"a rectangle of {shape.width} x {shape.height} pixels has a negative size.",
            cure="Leave it out.",
        )
    left, top, right, bottom = shape.x, shape.y, shape.x + shape.width, shape.y + shape.height
    corners = moved([(left, top), (right, top), (right, bottom), (left, bottom)])
    if moved.is_upright:
        return Roi("rectangle", np.array([corners.min(axis=0), corners.max(axis=0)]), **fields)
    across, down = corners[1] - corners[0], corners[3] - corners[0]
    if abs(across @ down) > _SQUARE * np.hypot(*across) * np.hypot(*down):
        return Roi("polygon", corners, **fields)
    start, end = (corners[0] + corners[3]) / 2, (corners[1] + corners[2]) / 2
    three = np.stack([start, end, (corners[2] + corners[3]) / 2])
    return Roi("rotated rectangle", three, **fields)


def _ellipse(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    radii = np.array([shape.radius_x, shape.radius_y], np.float64)
    if not (np.isfinite(radii).all() and (radii >= 0).all()):
        raise InvalidItem(
            f"an ellipse of radii {radii.tolist()} can't be drawn.", cure="Leave it out."
        )
    centre = moved((shape.x, shape.y))
    if moved.is_upright:
        radii = radii * np.abs(np.diag(moved.linear))
        return Roi("oval", np.stack([centre - radii, centre + radii]), **fields)
    if not np.isfinite(moved.linear).all():
        raise InvalidItem("an ellipse's transform is no number.", cure="Leave it out.")
    # The axes of what a linear map makes of a circle.
    directions, lengths, _ = np.linalg.svd(moved.linear * radii)
    major, minor = (directions * lengths).T
    three = np.stack([centre - major, centre + major, centre + minor])
    return Roi("ellipse", three, **fields)


def _label(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    text = shape.text or ""
    size = shape.font_size if shape.font_size else _FONT_SIZE
    style = shape.font_style.value if shape.font_style else ""
    family = shape.font_family.value if shape.font_family else ""
    details = Text(
        text,
        font=_FONTS.get(family, "SansSerif"),
        size=size,
        bold=style.startswith("Bold"),
        italic=style.endswith("Italic"),
        angle=-math.degrees(math.atan2(moved.linear[1, 0], moved.linear[0, 0])) + 0.0,
    )
    lines = text.split("\n")
    start = moved((shape.x, shape.y))
    room = np.array([max(map(len, lines)) * _LETTER, len(lines) * _LINE]) * size
    return Roi("text", np.stack([start, start + room]), details=details, **fields)


def _mask(shape: Any, moved: _Transform, fields: dict[str, Any], tell: Any) -> Roi:
    found = from_labels(mask_of(shape))
    if not found:
        raise InvalidItem("a mask has no pixel.", cure="Leave it out.")
    [outline] = found
    return outline.replace(
        coordinates=moved(outline.coordinates + np.array([shape.x, shape.y])), **fields
    )


_BUILDERS: Final[dict[str, Callable[[Any, _Transform, dict[str, Any], Any], Roi]]] = {
    "Ellipse": _ellipse,
    "Label": _label,
    "Line": _line,
    "Mask": _mask,
    "Point": _point,
    "Polygon": _polygon,
    "Polyline": _polyline,
    "Rectangle": _rectangle,
}


def _vertices(text: str) -> Floats:
    """Give the x, y of "1,2 3,4"."""
    words = re.split(r"[\s,]+", text.strip(" \t\r\n,"))
    try:
        numbers = [float(word) for word in words]
        return np.array(numbers, np.float64).reshape(-1, 2)
    except ValueError:
        raise InvalidItem(
            f"the points {reprlib.repr(text)} are no pairs of numbers.", cure="Leave it out."
        ) from None


def _color(color: Any) -> str:
    if color is None:
        return ""
    red, green, blue, alpha = color.as_rgb_tuple(alpha=True)
    return f"#{red:02x}{green:02x}{blue:02x}{round(alpha * 255):02x}"
