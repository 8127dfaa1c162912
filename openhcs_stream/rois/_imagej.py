"""ROIs as ImageJ's ``.roi`` files, through roifile."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._details import (
    ARROW_STYLES,
    JUSTIFICATIONS,
    MARKERS,
    Arrow,
    Corners,
    Details,
    Markers,
    Path,
    Spline,
    Text,
)
from openhcs_stream.rois._model import BOXES, KEPT_OPTIONS, KINDS, KindRow, Roi
from openhcs_stream.rois._outline import (
    aspect_ratio,
    ellipse_vertices,
    is_whole,
    major_first,
    rectangle_corners,
    rectangle_width,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["from_imagej", "from_roifile", "to_imagej"]

#: What ImageJ's 16-bit coordinates can hold; anything else is written in floats.
_LEAST: Final = -5000
_MOST: Final = 60535
#: A third of the largest float32: sizes and the corners of rotated rectangles must be finite too.
_LARGEST: Final = 1e38

#: Bits of a file's options, and numbers of its subtypes.
_SPLINE_FIT: Final = 1
_DOUBLE_HEADED: Final = 2
_OUTLINE: Final = 4
_SUBPIXEL: Final = 128
_DRAW_OFFSET: Final = 256
_SHOW_LABELS: Final = 1024
_IMAGE: Final = 4

_ROW_OF_TYPE: Final = {
    (row.imagej_type, row.imagej_subtype): row for row in KINDS.values() if row.imagej_subtype >= 0
}
_BOLD: Final = 1
_ITALIC: Final = 2
#: Kinds that ImageJ keeps in whole numbers or in floats: the bounds of a line depend on it.
_EITHER_WAY: Final = frozenset(
    BOXES | {"polygon", "freehand", "traced", "polyline", "freeline", "angle"}
)
#: In the field of a text's style and justification; roifile leaves it out.
_DRAW_STRING: Final = 1024
_STYLE_AT: Final = 68  # where that field is
_VERTICES_OF_SEGMENT: Final = (1, 1, 2, 3, 0)


def from_imagej(data: bytes | bytearray | memoryview) -> Roi:
    """Read one ``.roi`` file.

    Parameters
    ----------
    data : bytes
        The whole file, which begins with ``Iout``.

    Raises
    ------
    InvalidItem
        The bytes are no ROI, or an image; or these are no bytes.
    """
    from roifile import ImagejRoi

    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidItem(
            f"{data!r:.200} is no content of a .roi file.",
            cure="Pass bytes; read_imagej reads the file of a path, from_roifile an ImagejRoi.",
        )
    try:
        ours = ImagejRoi.frombytes(bytes(data))
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise _no_roi(len(data), str(error)) from error
    roi = from_roifile(ours)
    if isinstance(roi.details, Text):
        if len(data) < _STYLE_AT + 4:
            raise _no_roi(len(data), "it ends before the style of its text")
        (style,) = struct.unpack_from(">i", data, _STYLE_AT)
        if style & _DRAW_STRING:
            roi = roi.replace(details=msgspec.structs.replace(roi.details, draw_string=True))
    return roi


def _no_roi(nbytes: int, why: str) -> InvalidItem:
    return InvalidItem(
        f"{nbytes} bytes are no ImageJ ROI: {why}.", cure="Pass the content of one .roi file."
    )


def from_roifile(imagej: Any) -> Roi:
    """Convert a ``roifile.ImagejRoi``.

    A position in a plain stack, which ImageJ keeps apart from channel, slice and frame, is taken as
    the slice (z), and `Roi.flat_position` is set.

    Raises
    ------
    InvalidItem
        It is an image, which is not supported, or its values contradict each other.
    """
    row = _row_of(imagej)
    c, z, t = (max(number, 0) for number in _czt(imagej))
    is_flat = not (c or z or t) and imagej.position > 0
    width = imagej.float_stroke_width
    if width == 0 and row.kind != "point":  # a point's field is the size of its marker
        width = imagej.stroke_width
    coordinates, details = _coordinates_of(imagej, row)
    options = int(imagej.options) & KEPT_OPTIONS
    if row.kind not in _EITHER_WAY or isinstance(details, Spline) or not is_whole(coordinates):
        options &= ~_SUBPIXEL  # it goes without saying
    return Roi(
        row.kind,
        coordinates,
        name=imagej.name,
        stroke_color=_color(imagej.stroke_color),
        fill_color=_color(imagej.fill_color),
        stroke_width=float(width),
        group=int(imagej.group),
        position=(0, imagej.position, 0) if is_flat else (c, z, t),
        properties=_properties(imagej.props),
        details=details,
        flat_position=is_flat,
        imagej_options=options,
    )


def to_imagej(roi: Roi) -> bytes:
    """Write one ``.roi`` file. Coordinates that are no whole numbers are rounded to float32.

    Raises
    ------
    InvalidItem
        A property can't be written, because the format ends it at a line break, or a coordinate is
        beyond float32.
    """
    from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

    row, details = roi.row, roi.details
    c, z, t = roi.position
    name, props = roi.name, _property_text(roi.properties)
    imagej = ImagejRoi(
        roitype=ROI_TYPE(row.imagej_type),
        subtype=ROI_SUBTYPE(max(row.imagej_subtype, 0)),
        # roifile counts characters where the format counts UTF-16 units: stand-ins of the right
        # length keep its offsets right for any character.
        name="?" * _utf16_length(name),
        props="?" * _utf16_length(props),
        stroke_color=_argb(roi.stroke_color),
        fill_color=_argb(roi.fill_color),
        float_stroke_width=roi.stroke_width,
        stroke_width=0 if roi.kind == "point" else min(round(roi.stroke_width), 32767),
        group=roi.group,
    )
    if roi.flat_position and not (c or t):
        imagej.position = z
    else:
        imagej.c_position, imagej.z_position, imagej.t_position = c, z, t
    xy = roi.coordinates
    if np.abs(xy).max() > _LARGEST:
        raise InvalidItem(
            f"a {roi.kind} reaches to {np.abs(xy).max():g}, which an ImageJ ROI can't hold.",
            cure="Leave it out.",
        )
    options = roi.imagej_options
    # What is drawn with an offset is written in floats, or ImageJ forgets the offset; and a spline,
    # as ImageJ writes it.
    in_floats = bool(options & (_DRAW_OFFSET | _SUBPIXEL)) or isinstance(details, Spline)
    whole = is_whole(xy) and not in_floats
    options &= ~_SUBPIXEL
    if row.kind in ("line", "arrow"):
        (imagej.x1, imagej.y1), (imagej.x2, imagej.y2) = xy.tolist()
        if options & _DRAW_OFFSET:
            options |= _SUBPIXEL
    elif row.kind in BOXES:
        if not whole:
            options |= _SUBPIXEL
            imagej.xd, imagej.yd = xy[0].tolist()
            imagej.widthd, imagej.heightd = (xy[1] - xy[0]).tolist()
    elif not isinstance(details, Path):
        vertices: npt.NDArray[Any] = xy
        if row.kind in ("ellipse", "rotated rectangle"):
            if row.kind == "ellipse":
                xy = major_first(xy)
                number, vertices = aspect_ratio(xy), ellipse_vertices(xy)
            else:
                number, vertices = rectangle_width(xy), rectangle_corners(xy)
            (imagej.x1, imagej.y1), (imagej.x2, imagej.y2) = xy[:2].tolist()
            _set_float(imagej, number)
            xy, whole = vertices.astype(np.float64), False
        left, top = _clipped(np.floor(xy.min(axis=0)))
        imagej.n_coordinates = len(xy)
        imagej.integer_coordinates = np.clip(np.trunc(xy) - (left, top), 0, 65535).astype(np.int32)
        if not whole:
            options |= _SUBPIXEL
            imagej.subpixel_coordinates = vertices.astype(np.float32)
    imagej.left, imagej.top = _clipped(np.floor(xy.min(axis=0)))
    imagej.right, imagej.bottom = _clipped(np.ceil(xy.max(axis=0)))
    texts = []
    match details:
        case Spline():
            options |= _SPLINE_FIT
        case Corners():
            imagej.rounded_rect_arc_size = details.diameter
        case Path():
            imagej.multi_coordinates = _path_floats(xy, details.segments)
            imagej.shape_roi_size = len(imagej.multi_coordinates)
        case Arrow():
            imagej.arrow_style_or_aspect_ratio = ARROW_STYLES.index(details.style)
            imagej.arrow_head_size = details.head_size
            options |= _OUTLINE * details.outline | _DOUBLE_HEADED * details.double_headed
        case Markers():
            imagej.arrow_style_or_aspect_ratio = MARKERS.index(details.shape)
            imagej.stroke_width = details.size
            options |= _SHOW_LABELS * details.labels
            if details.counters or details.slices:
                imagej.counters = np.array(details.counters or (0,) * len(xy), np.uint8)
                imagej.counter_positions = np.array(details.slices or (0,) * len(xy), np.uint32)
        case Text():
            imagej.text_size, imagej.text_angle = details.size, details.angle
            imagej.text_style = _BOLD * details.bold | _ITALIC * details.italic
            imagej.text_justification = JUSTIFICATIONS.index(details.justification)
            if details.draw_string:
                imagej.text_justification |= _DRAW_STRING >> 8
            imagej.text_name = "?" * _utf16_length(details.font)
            imagej.text = "?" * _utf16_length(details.text)
            texts = [(80, details.font), (80 + 2 * len(imagej.text_name), details.text)]
    imagej.options = ROI_OPTIONS(options)
    data = bytearray(imagej.tobytes())
    _write_texts(data, texts, name, props)
    return bytes(data)


def _czt(imagej: Any) -> tuple[int, int, int]:
    return imagej.c_position, imagej.z_position, imagej.t_position


def _row_of(imagej: Any) -> KindRow:
    kind, subtype = int(imagej.roitype), int(imagej.subtype)
    if imagej.composite:
        return KINDS["composite"]
    if kind == 1 and subtype == _IMAGE and imagej.image_size > 0:
        missing = "image"
    else:
        # A subtype counts with its own type alone: ImageJ itself saves some rotated rectangles as
        # polygons with the subtype beside, and reads them as polygons.
        row = _ROW_OF_TYPE.get((kind, subtype), _ROW_OF_TYPE.get((kind, 0)))
        if row is not None:
            is_round = row.kind == "rectangle" and imagej.rounded_rect_arc_size > 0
            return KINDS["rounded rectangle"] if is_round else row
        if kind == 7:
            return KINDS["freehand"]
        missing = f"type {kind}, subtype {subtype}"
    raise InvalidItem(
        f"the ImageJ ROI {imagej.name!r} is of a kind that is not supported: {missing}.",
        cure="Leave it out; send an image as an image.",
    )


def _coordinates_of(imagej: Any, row: KindRow) -> tuple[npt.NDArray[np.float64], Details | None]:
    match row.kind:
        case "composite":
            return _path_of(imagej)
        case "line":
            return _ends(imagej), None
        case "arrow":
            options, style = int(imagej.options), imagej.arrow_style_or_aspect_ratio
            return _ends(imagej), Arrow(
                style=ARROW_STYLES[style if style < len(ARROW_STYLES) else 0],
                head_size=imagej.arrow_head_size,
                outline=bool(options & _OUTLINE),
                double_headed=bool(options & _DOUBLE_HEADED),
            )
        case "rectangle" | "oval":
            return _box(imagej), None
        case "rounded rectangle":
            return _box(imagej), Corners(imagej.rounded_rect_arc_size)
        case "text":
            justification = imagej.text_justification & 3
            return _box(imagej), Text(
                imagej.text,
                font=imagej.text_name,
                size=imagej.text_size,
                bold=bool(imagej.text_style & _BOLD),
                italic=bool(imagej.text_style & _ITALIC),
                justification=JUSTIFICATIONS[justification % len(JUSTIFICATIONS)],
                angle=imagej.text_angle,
            )
        case "ellipse" | "rotated rectangle":
            start, end = _ends(imagej)
            vector = end - start
            length = float(np.hypot(*vector))
            number = _float(imagej)
            if row.kind == "ellipse":
                dx, dy = vector / 2 * min(max(number, 0.0), 1.0)
            elif length:
                dx, dy = vector / length * (number / 2)
            else:
                dx, dy = number / 2, 0.0
            return np.stack([start, end, (start + end) / 2 + (-dy, dx)]), None
    xy = _vertices(imagej)
    if row.kind == "point":
        return xy, _markers(imagej, len(xy))
    return xy, Spline() if int(imagej.options) & _SPLINE_FIT else None


def _ends(imagej: Any) -> npt.NDArray[np.float64]:
    return np.array([(imagej.x1, imagej.y1), (imagej.x2, imagej.y2)], np.float64)


def _box(imagej: Any) -> npt.NDArray[np.float64]:
    # Some writers announce exact numbers and give none: OpenHCS 0.8's ellipses, which ImageJ then
    # draws with no size at the corner of the image.
    if imagej.subpixelrect and any((imagej.xd, imagej.yd, imagej.widthd, imagej.heightd)):
        start = np.array((imagej.xd, imagej.yd), np.float64)
        return np.stack([start, start + np.array((imagej.widthd, imagej.heightd))])
    return np.array([(imagej.left, imagej.top), (imagej.right, imagej.bottom)], np.float64)


def _vertices(imagej: Any) -> npt.NDArray[np.float64]:
    if imagej.subpixel_coordinates is not None:
        # A damaged file has numbers that are none; the model refuses them.
        with np.errstate(invalid="ignore"):
            return np.asarray(imagej.subpixel_coordinates, np.float64)
    if imagej.integer_coordinates is None:
        return np.empty((0, 2), np.float64)
    return np.asarray(imagej.integer_coordinates + np.array([imagej.left, imagej.top]), np.float64)


def _markers(imagej: Any, n: int) -> Markers | None:
    shape = imagej.arrow_style_or_aspect_ratio
    counters: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    if imagej.counters is not None and imagej.counters.any():
        counters = tuple(imagej.counters.tolist())
    if imagej.counter_positions is not None and imagej.counter_positions.any():
        slices = tuple(imagej.counter_positions.tolist())
    made = Markers(
        shape=MARKERS[shape if shape < len(MARKERS) else 0],
        size=max(int(imagej.stroke_width), 0),
        labels=bool(int(imagej.options) & _SHOW_LABELS),
        counters=counters,
        slices=slices,
    )
    return None if made == Markers() else made


def _path_of(imagej: Any) -> tuple[npt.NDArray[np.float64], Path]:
    """Take a path apart: each segment's number, then its coordinates. roifile fails at curves."""
    if imagej.multi_coordinates is None:
        raise InvalidItem(
            f"the composite {imagej.name!r} is of another type, {int(imagej.roitype)}.",
            cure="Save it anew in ImageJ.",
        )
    numbers: list[float] = imagej.multi_coordinates.tolist()
    segments = bytearray()
    pairs: list[tuple[float, float]] = []
    at = 0
    while at < len(numbers):
        kind = int(numbers[at]) if 0 <= numbers[at] < 5 else 5
        if kind == 5:
            raise InvalidItem(
                f"the composite {imagej.name!r} has an unknown segment {numbers[at]:g}.",
                cure="Save it anew in ImageJ.",
            )
        count = _VERTICES_OF_SEGMENT[kind]
        if at + 1 + 2 * count > len(numbers):  # a rest, which ImageJ leaves out
            break
        segments.append(kind)
        pairs += [(numbers[i], numbers[i + 1]) for i in range(at + 1, at + 2 * count, 2)]
        at += 1 + 2 * count
    return np.array(pairs, np.float64).reshape(-1, 2), Path(bytes(segments))


def _path_floats(xy: npt.NDArray[np.float64], segments: bytes) -> npt.NDArray[np.float32]:
    kinds = np.frombuffer(segments, np.uint8)
    sizes = 1 + 2 * np.array(_VERTICES_OF_SEGMENT)[kinds]
    starts = np.cumsum(sizes) - sizes
    made = np.empty(int(sizes.sum()), np.float32)
    is_kind = np.zeros(len(made), np.bool_)
    is_kind[starts] = True
    made[is_kind], made[~is_kind] = kinds, xy.ravel()
    return made


def _set_float(imagej: Any, number: float) -> None:
    """A float in four bytes (aspect ratio, width) that roifile knows as three other fields."""
    fields = struct.unpack(">BBh", struct.pack(">f", number))
    imagej.arrow_style_or_aspect_ratio, imagej.arrow_head_size, imagej.rounded_rect_arc_size = (
        fields
    )


def _float(imagej: Any) -> float:
    fields = struct.pack(
        ">BBh",
        imagej.arrow_style_or_aspect_ratio,
        imagej.arrow_head_size,
        imagej.rounded_rect_arc_size,
    )
    number: float = struct.unpack(">f", fields)[0]
    return number


def _clipped(corner: npt.NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.clip(corner, _LEAST, _MOST).astype(int).tolist()
    return x, y


def _color(argb: bytes) -> str:
    alpha, red, green, blue = argb
    return f"#{red:02x}{green:02x}{blue:02x}{alpha:02x}" if any(argb) else ""


def _argb(color: str) -> bytes:
    if not color:
        return bytes(4)
    red, green, blue, alpha = bytes.fromhex(color[1:])
    return bytes((alpha, red, green, blue))


def _properties(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.split("\n") if ":" in line)
    return {key: value.removeprefix(" ") for key, _, value in pairs}


def _property_text(properties: Mapping[str, str]) -> str:
    for key, value in properties.items():
        if ":" in key or "\n" in key + value:
            raise InvalidItem(
                f"the property {key!r}: {value!r} can't be kept in an ImageJ ROI.",
                cure="Leave out line breaks, and colons in the name.",
            )
    return "".join(f"{key}: {value}\n" for key, value in properties.items())


def _utf16_length(text: str) -> int:
    return len(text.encode("utf-16-be")) // 2


def _write_texts(data: bytearray, texts: list[tuple[int, str]], name: str, props: str) -> None:
    """Put the texts where their stand-ins are; offsets as in ImageJ's ``RoiDecoder``."""
    (header2,) = struct.unpack_from(">i", data, 60)
    (name_at,) = struct.unpack_from(">i", data, header2 + 16)
    (props_at,) = struct.unpack_from(">i", data, header2 + 40)
    for at, text in (*texts, (name_at, name), (props_at, props)):
        encoded = text.encode("utf-16-be")
        data[at : at + len(encoded)] = encoded
