"""ROIs as ImageJ's ``.roi`` files, through roifile."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._model import KINDS, KindRow, Roi

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["from_imagej", "from_roifile", "to_imagej"]

#: What ImageJ's 16-bit coordinates can hold; anything else is written in floats.
_LEAST: Final = -5000
_MOST: Final = 60535
#: ImageJ draws an EllipseRoi with this many vertices.
_ELLIPSE_VERTICES: Final = 72
_SPLINE_FIT: Final = 1
_SUBPIXEL: Final = 128
_PLAIN: Final = 0
_ELLIPSE: Final = 3

_ROW_OF_TYPE: Final = {(row.imagej_type, row.imagej_subtype): row for row in KINDS.values()}
_SUBTYPES: Final = {1: "text", 2: "arrow", 4: "image", 5: "rotated rectangle"}


def from_imagej(data: bytes | bytearray | memoryview) -> Roi:
    """Read one ``.roi`` file.

    Parameters
    ----------
    data : bytes
        The whole file, which begins with ``Iout``.

    Raises
    ------
    InvalidItem
        The bytes are no ROI, or one of a kind that is not supported yet.
    """
    from roifile import ImagejRoi

    try:
        ours = ImagejRoi.frombytes(bytes(data))
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise InvalidItem(
            f"{len(data)} bytes are no ImageJ ROI: {error}.",
            cure="Pass the content of one .roi file.",
        ) from error
    return from_roifile(ours)


def from_roifile(imagej: Any) -> Roi:
    """Convert a ``roifile.ImagejRoi``.

    A position in a plain stack, which ImageJ keeps apart from channel, slice and frame, is taken as
    the slice (z).

    Raises
    ------
    InvalidItem
        It is of a kind that is not supported yet: composite, text, image, arrow, rotated or
        rounded rectangle, spline.
    """
    row = _row_of(imagej)
    c, z, t = imagej.c_position, imagej.z_position, imagej.t_position
    if not (c or z or t):
        z = imagej.position
    width = imagej.float_stroke_width
    if width == 0 and row.kind != "point":  # a point's field is the size of its marker
        width = imagej.stroke_width
    return Roi(
        row.kind,
        _coordinates_of(imagej, row),
        name=imagej.name,
        stroke_color=_color(imagej.stroke_color),
        fill_color=_color(imagej.fill_color),
        stroke_width=float(width),
        group=int(imagej.group),
        position=(max(c, 0), max(z, 0), max(t, 0)),
        properties=_properties(imagej.props),
    )


def to_imagej(roi: Roi) -> bytes:
    """Write one ``.roi`` file. Coordinates that are no whole numbers are rounded to float32.

    Raises
    ------
    InvalidItem
        A property can't be written, because the format ends it at a line break.
    """
    from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi

    row = roi.row
    c, z, t = roi.position
    name, props = roi.name, _property_text(roi.properties)
    imagej = ImagejRoi(
        roitype=ROI_TYPE(row.imagej_type),
        subtype=ROI_SUBTYPE(row.imagej_subtype),
        # roifile counts characters where the format counts UTF-16 units: stand-ins of the right
        # length keep its offsets right for any character.
        name="?" * _utf16_length(name),
        props="?" * _utf16_length(props),
        stroke_color=_argb(roi.stroke_color),
        fill_color=_argb(roi.fill_color),
        float_stroke_width=roi.stroke_width,
        stroke_width=0 if roi.kind == "point" else min(round(roi.stroke_width), 32767),
        group=roi.group,
        c_position=c,
        z_position=z,
        t_position=t,
    )
    xy = roi.coordinates
    left, top = _clipped(np.floor(xy.min(axis=0)))
    right, bottom = _clipped(np.ceil(xy.max(axis=0)))
    imagej.left, imagej.top, imagej.right, imagej.bottom = left, top, right, bottom
    whole = bool((xy == np.rint(xy)).all() and xy.min() >= _LEAST and xy.max() <= _MOST)
    if row.kind == "line":
        (imagej.x1, imagej.y1), (imagej.x2, imagej.y2) = xy.tolist()
    elif row.kind in ("rectangle", "oval"):
        if not whole:
            imagej.options = ROI_OPTIONS(_SUBPIXEL)
            imagej.xd, imagej.yd = xy[0].tolist()
            imagej.widthd, imagej.heightd = (xy[1] - xy[0]).tolist()
    else:
        if row.kind == "ellipse":
            (imagej.x1, imagej.y1), (imagej.x2, imagej.y2) = xy[:2].tolist()
            _set_aspect_ratio(imagej, xy)
            xy, whole = _ellipse_vertices(xy), False
        imagej.n_coordinates = len(xy)
        imagej.integer_coordinates = np.clip(np.trunc(xy) - (left, top), 0, 65535).astype(np.int32)
        if not whole:
            imagej.options = ROI_OPTIONS(_SUBPIXEL)
            imagej.subpixel_coordinates = xy.astype(np.float32)
    data = bytearray(imagej.tobytes())
    _write_texts(data, name, props)
    return bytes(data)


def _row_of(imagej: Any) -> KindRow:
    kind, subtype = int(imagej.roitype), int(imagej.subtype)
    if imagej.composite:
        missing = "composite"
    elif subtype in _SUBTYPES:
        missing = _SUBTYPES[subtype]
    elif int(imagej.options) & _SPLINE_FIT and kind not in (1, 2, 3, 10):
        missing = "spline"
    elif kind == 1 and imagej.rounded_rect_arc_size:
        missing = "rounded rectangle"
    else:
        row = _ROW_OF_TYPE.get((kind, subtype if subtype == _ELLIPSE else _PLAIN))
        if row is not None:
            return row
        missing = f"type {kind}, subtype {subtype}"
    raise InvalidItem(
        f"the ImageJ ROI {imagej.name!r} is of a kind that is not supported yet: {missing}.",
        cure="Convert it to a polygon in ImageJ (Edit > Selection), or leave it out.",
    )


def _coordinates_of(imagej: Any, row: KindRow) -> npt.NDArray[np.float64]:
    if row.kind == "line":
        return np.array([(imagej.x1, imagej.y1), (imagej.x2, imagej.y2)], np.float64)
    if row.kind in ("rectangle", "oval"):
        if imagej.subpixelrect:
            start = np.array((imagej.xd, imagej.yd), np.float64)
            return np.stack([start, start + np.array((imagej.widthd, imagej.heightd))])
        return np.array([(imagej.left, imagej.top), (imagej.right, imagej.bottom)], np.float64)
    if row.kind == "ellipse":
        start = np.array((imagej.x1, imagej.y1), np.float64)
        end = np.array((imagej.x2, imagej.y2), np.float64)
        dx, dy = (end - start) / 2 * _aspect_ratio(imagej)
        return np.stack([start, end, (start + end) / 2 + (-dy, dx)])
    return np.asarray(imagej.coordinates(), np.float64)


def _set_aspect_ratio(imagej: Any, xy: npt.NDArray[np.float64]) -> None:
    """The ratio is a float in four bytes that roifile knows as three other fields."""
    centre = (xy[0] + xy[1]) / 2
    major = float(np.hypot(*(xy[1] - centre)))
    ratio = float(np.hypot(*(xy[2] - centre))) / major if major else 1.0
    fields = struct.unpack(">BBh", struct.pack(">f", ratio))
    imagej.arrow_style_or_aspect_ratio, imagej.arrow_head_size, imagej.rounded_rect_arc_size = (
        fields
    )


def _aspect_ratio(imagej: Any) -> float:
    fields = struct.pack(
        ">BBh",
        imagej.arrow_style_or_aspect_ratio,
        imagej.arrow_head_size,
        imagej.rounded_rect_arc_size,
    )
    ratio: float = struct.unpack(">f", fields)[0]
    return ratio


def _ellipse_vertices(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centre = (xy[0] + xy[1]) / 2
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_VERTICES, endpoint=False)[:, None]
    vertices: npt.NDArray[np.float64] = (
        centre + np.cos(angle) * (xy[1] - centre) + np.sin(angle) * (xy[2] - centre)
    )
    return vertices


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


def _property_text(properties: dict[str, str]) -> str:
    for key, value in properties.items():
        if ":" in key or "\n" in key + value:
            raise InvalidItem(
                f"the property {key!r}: {value!r} can't be kept in an ImageJ ROI.",
                cure="Leave out line breaks, and colons in the name.",
            )
    return "".join(f"{key}: {value}\n" for key, value in properties.items())


def _utf16_length(text: str) -> int:
    return len(text.encode("utf-16-be", "surrogatepass")) // 2


def _write_texts(data: bytearray, name: str, props: str) -> None:
    """Put the texts where their stand-ins are; offsets as in ImageJ's ``RoiDecoder``."""
    (header2,) = struct.unpack_from(">i", data, 60)
    (name_at,) = struct.unpack_from(">i", data, header2 + 16)
    (props_at,) = struct.unpack_from(">i", data, header2 + 40)
    for at, text in ((name_at, name), (props_at, props)):
        encoded = text.encode("utf-16-be", "surrogatepass")
        data[at : at + len(encoded)] = encoded
