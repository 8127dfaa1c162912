"""Outlines and points of an OpenHCS item, as ImageJ's bytes or as napari's coordinates."""

from __future__ import annotations

import base64
import binascii
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from openhcs_stream.dialects._openhcs_wire import ImageJRois, Shapes, decode_part, reason_of
from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import Roi, from_imagej

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from msgspec import Raw

    from openhcs_stream.dialects._openhcs_wire import Shape
    from openhcs_stream.messages import PlaceValue

__all__ = ["by_plane", "read_imagej_rois", "read_points", "read_shapes", "to_rois"]

_MAX_NAME_CHARS = 256


def read_imagej_rois(raw: Raw, path: str | None) -> list[Roi]:
    """Read outlines for Fiji: named by their file and number, as its viewer names them.

    Raises
    ------
    InvalidItem, msgspec.DecodeError
        One can't be read.
    """
    stem = PurePath(path or "unknown").stem[: _MAX_NAME_CHARS - 8]
    rois = []
    for index, text in enumerate(decode_part(raw, ImageJRois).rois):
        try:
            roi = from_imagej(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:  # InvalidItem is a ValueError
            raise InvalidItem(
                f"outline {index} can't be read: {reason_of(error)}.",
                cure="Send the bytes of one ImageJ .roi file in base64 for each outline.",
            ) from error
        # Where it is in the stack its metadata say, not its file.
        rois.append(roi.replace(name=f"{stem}_{index:04d}", position=(0, 0, 0)))
    return rois


def read_shapes(raw: Raw) -> list[Shape]:
    """Decode shapes for napari.

    Raises
    ------
    msgspec.DecodeError
    """
    shapes: list[Shape] = decode_part(raw, Shapes).shapes
    return shapes


def by_plane(
    shapes: Sequence[Shape], planes: Mapping[str, Sequence[PlaceValue]]
) -> dict[tuple[PlaceValue, ...], list[tuple[int, Shape]]]:
    """Sort shapes by the plane that each says it is on: (number, shape) by values of `planes`.

    Raises
    ------
    InvalidItem
        One says no plane, or one that is not there.
    """
    sorted_: dict[tuple[PlaceValue, ...], list[tuple[int, Shape]]] = {}
    for index, shape in enumerate(shapes):
        told = (shape.metadata or {}).get("plane_indices")
        try:
            at = msgspec.convert(told, tuple[int, ...])
            if len(at) != len(planes) or min(at, default=0) < 0:
                raise IndexError
            values = tuple(v[i] for v, i in zip(planes.values(), at, strict=True))
        except (msgspec.ValidationError, IndexError) as error:
            raise InvalidItem(
                f"shape {index} says {told!r:.80} of the planes "
                f"{ {name: len(values) for name, values in planes.items()} }.",
                cure="Give plane_indices in the metadata of each shape, or no planes.",
            ) from error
        sorted_.setdefault(values, []).append((index, shape))
    return sorted_


def to_rois(shapes: Sequence[tuple[int, Shape]]) -> list[Roi]:
    """Make ROIs of numbered shapes.

    Raises
    ------
    InvalidItem
        One is of an unknown kind or incomplete; the text says which.
    """
    return [_roi(index, shape) for index, shape in shapes]


def read_points(shapes: Sequence[tuple[int, Shape]]) -> npt.NDArray[np.float64]:
    """Make one table of numbered points: (N, 2), y and x.

    Raises
    ------
    InvalidItem
        One is no point.
    """
    rows = []
    for index, shape in shapes:
        if shape.type not in ("point", "points"):
            raise InvalidItem(
                f"shape {index} of a list of points is of type {shape.type!r}.",
                cure='Send {"type": "points", "coordinates": [[y, x]]}.',
            )
        rows.append(_vertices(index, shape))
    return np.concatenate(rows) if rows else np.zeros((0, 2))


def _roi(index: int, shape: Shape) -> Roi:
    """One shape as napari has it: y, x, whole numbers at pixel centres."""
    label = (shape.metadata or {}).get("label")
    name = "" if label is None else str(label)[:_MAX_NAME_CHARS]
    try:
        match shape.type:
            case "polygon":
                return Roi.polygon(_vertices(index, shape), name=name)
            case "path" | "line":
                return Roi.polyline(_vertices(index, shape), name=name)
            case "point" | "points":
                return Roi.points(_vertices(index, shape), name=name)
            case "rectangle":
                return Roi.polygon(_vertices(index, shape), name=name)
            case "ellipse" if shape.center is not None and shape.radii is not None:
                return _oval(_yx(shape.center), _yx(shape.radii), name)
            case "ellipse" if shape.coordinates:
                corners = _vertices(index, shape)  # of the box around it
                low, high = corners.min(axis=0), corners.max(axis=0)
                return _oval((low + high) / 2, (high - low) / 2, name)
    except InvalidItem as error:
        raise InvalidItem(f"shape {index}: {error.what}", cure=error.cure) from error
    raise InvalidItem(
        f"shape {index} of type {shape.type!r} is unknown or incomplete.",
        cure="Send polygon, path or points with coordinates, ellipse with center and radii.",
    )


def _oval(center: Any, radii: Any, name: str) -> Roi:
    (y, x), (radius_y, radius_x) = center, radii
    # An oval's bounds count from pixel corners, its centre here from pixel centres.
    top, left = y + 0.5 - radius_y, x + 0.5 - radius_x
    return Roi.oval(top, left, top + 2 * radius_y, left + 2 * radius_x, name=name)


def _vertices(index: int, shape: Shape) -> npt.NDArray[np.float64]:
    """The vertices as (N, 2) y, x; of a vertex with three coordinates the last two count."""
    pairs = [_yx(point) for point in shape.coordinates if isinstance(point, tuple)]
    if not pairs:
        pairs = [_yx(tuple(each for each in shape.coordinates if isinstance(each, float)))]
    return np.array(pairs, np.float64)


def _yx(point: tuple[float, ...]) -> tuple[float, float]:
    if len(point) < 2:
        raise InvalidItem(f"{len(point)} coordinates are no point.", cure="Send y, x.")
    return point[-2], point[-1]
