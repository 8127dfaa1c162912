"""ROIs as napari's programs hand shapes around: single, in pairs, in lists, in layers.

`_napari` knows what one ROI is as one shape; this knows in which forms shapes are given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, overload

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._listed import listed_rois
from openhcs_stream.rois._losses import warn_of
from openhcs_stream.rois._model import Roi
from openhcs_stream.rois._napari import roi_of_shape, shape_of_roi

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[np.float64]
    #: One shape: its type and its vertices.
    Shape: TypeAlias = tuple[str, npt.ArrayLike]

__all__ = ["from_napari", "to_napari"]

#: What the leading columns are, by their number: as `Stream.image` takes its axes.
_AXES: Final = ("YX", "ZYX", "CZYX", "TCZYX")
_PLACES: Final = "CZT"  # as in `Roi.position`


@overload
def to_napari(rois: Roi, *, warn: bool = True) -> tuple[str, Array]: ...
@overload
def to_napari(rois: Iterable[Roi], *, warn: bool = True) -> list[tuple[Array, str]]: ...
def to_napari(
    rois: Roi | Iterable[Roi], *, warn: bool = True
) -> tuple[str, Array] | list[tuple[Array, str]]:
    """Give a ROI, or a list of them, as napari takes shapes.

    Parameters
    ----------
    rois : Roi, or iterable of Roi
        Of any kinds.
    warn : bool
        Issue one `LossyConversion` where the words of a text, the head of an arrow or the counters
        of points are lost. What else changes `losses` tells.

    Returns
    -------
    shape_type : str
        "polygon", "rectangle", "ellipse", "line" or "path" for a Shapes layer; "points" for a
        Points layer.
    data : (N, 2) float64
        y, x. Four corners for a rectangle and an ellipse, in napari's order.

        Of a list a list of (data, shape_type), one for each ROI: in this order napari's
        ``viewer.add_shapes`` takes them. Points are no shapes: leave theirs to ``add_points``.

    Raises
    ------
    InvalidItem
        Something given is no ROI.
    """
    listed = listed_rois(rois)
    if warn:
        warn_of(listed, "napari")
    shapes = [shape_of_roi(roi) for roi in listed]
    if isinstance(rois, Roi):
        return shapes[0]
    return [(data, shape_type) for shape_type, data in shapes]


@overload
def from_napari(
    shape_type: str, data: npt.ArrayLike, /, *, name: str = "", axes: str | None = None
) -> Roi: ...
@overload
def from_napari(
    *given: Any,
    shape_type: str | Sequence[str] | None = None,
    data: Any = None,
    name: str | Sequence[str] = "",
    axes: str | None = None,
) -> Any: ...
def from_napari(
    *given: Any,
    shape_type: str | Sequence[str] | None = None,
    data: Any = None,
    name: str | Sequence[str] = "",
    axes: str | None = None,
) -> Roi | list[Roi]:
    """Make ROIs of napari's shapes: the inverse of `to_napari`.

    Parameters
    ----------
    *given
        - A shape type and its data, in either order, or both as one tuple.
        - A list of such tuples; or types and data as two lists, as ``layer.shape_type`` and
          ``layer.data`` are, in either order; or one type for all data of a list.
        - A Shapes or a Points layer. Its shapes' colours and widths become the ROIs', and
          ``layer.features["name"]``, where there is one, their names; each point is one ROI of
          the colour of its face. The layer's scale is not applied: ROIs count in pixels.
    shape_type : str, or sequence of str
        "polygon", "rectangle", "ellipse", "line", "path", or "points"; upper or lower case.
    data : (N, 2) array, or sequence of arrays
        y, x. As in napari, a rectangle may also be two opposite corners, and an ellipse its centre
        and its two radii. A rectangle that was turned becomes a rotated rectangle, an ellipse that
        was turned an ellipse; either that was sheared a polygon or, for want of better, the nearest
        ellipse. A polygon that returns to its first vertex after each ring becomes a composite.

        With more columns, in a stack, the leading ones have the same values in all rows of a
        shape: they become the ROI's `position`, whose numbers begin at 1, of the nearest plane.
    name : str, or sequence of str
        Of the ROI; of all of them, or of each.
    axes : str
        Letters of the columns, Y and X last, before them of C, Z and T. None: YX, ZYX, CZYX or
        TCZYX by their number.

    Returns
    -------
    Roi, or list of Roi
        A list where a list or a layer is given.

    Raises
    ------
    InvalidItem
        The shape type is unknown, the data can't be one, or lies in several planes.
    """
    parts = [each for each in (*given, data, shape_type) if each is not None]
    if len(parts) == 1 and _is_layer(parts[0]):
        rois = _of_layer(parts[0], axes)
        return _named(rois, name) if name else rois
    shapes = _shapes(parts)
    if isinstance(shapes, tuple):
        return _named([_roi(shapes, axes)], name)[0]
    rois = [_roi(shape, axes) for shape in shapes]
    return _named(rois, name) if name else rois


# --- what was given -------------------------------------------------------------------------------


def _shapes(parts: Sequence[Any]) -> Shape | list[Shape]:
    """Find out which is the type and which the data."""
    if len(parts) == 1:
        (one,) = parts
        if isinstance(one, tuple) and len(one) == 2 and any(map(_is_types, one)):
            return _shapes(one)
        if isinstance(one, list | tuple) and all(isinstance(each, tuple) for each in one):
            found = [_shapes([each]) for each in one]
            if all(isinstance(each, tuple) for each in found):
                return found  # type: ignore[return-value]
        raise _unclear("no shape type is given")
    types = [each for each in parts if _is_types(each)]
    others = [each for each in parts if not _is_types(each)]
    if len(types) == 2 and not others:  # two empty lists, or a type and no data
        types, others = (
            (types[:1], types[1:]) if isinstance(types[0], str) else (types[1:], types[:1])
        )
    if len(types) != 1 or len(others) != 1:
        raise _unclear(f"{len(types)} shape types and {len(others)} sets of data are given")
    return _paired(types[0], others[0])


def _paired(types: str | Sequence[str], data: Any) -> Shape | list[Shape]:
    if isinstance(types, str):
        try:
            is_one = len(data) == 0 or np.ndim(data[0]) < 2
        except (TypeError, ValueError, LookupError):
            is_one = True  # whatever it is: what reads it says what is wrong
        return (types, data) if is_one else [(types, each) for each in data]
    try:
        data = list(data)
    except TypeError:
        raise _unclear(f"{type(data).__name__} is no list of data") from None
    if len(types) != len(data):
        raise _unclear(f"{len(types)} shape types are given for the data of {len(data)} shapes")
    return list(zip(types, data, strict=True))


def _is_types(thing: Any) -> bool:
    """Whether it is a shape type, or a list of them."""
    return isinstance(thing, str) or (
        isinstance(thing, list | tuple) and all(isinstance(each, str) for each in thing)
    )


def _unclear(what: str) -> InvalidItem:
    return InvalidItem(
        f"this is no shape of napari: {what}.",
        cure='Pass a shape type and its data, as in from_napari("polygon", data), a list of '
        "(data, shape_type), or a Shapes or Points layer.",
    )


def _named(rois: list[Roi], name: str | Sequence[str]) -> list[Roi]:
    names = [name] * len(rois) if isinstance(name, str) else list(name)
    if len(names) != len(rois):
        raise InvalidItem(
            f"{len(names)} names are given for {len(rois)} shapes.", cure="Give each its own."
        )
    return [roi.replace(name=each) for roi, each in zip(rois, names, strict=True)]


# --- a shape, in a stack or not -------------------------------------------------------------------


def _roi(shape: Shape, axes: str | None) -> Roi:
    shape_type, data = shape
    if not isinstance(shape_type, str):
        raise _unclear(f"{shape_type!r} is no shape type")
    try:
        rows = np.asarray(data, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidItem(
            f"the data of a napari {shape_type} is no array of numbers: {error}.",
            cure="Pass (N, 2) y, x.",
        ) from error
    if rows.ndim != 2 or rows.shape[1] <= 2:
        return roi_of_shape(shape_type, rows)
    letters = _letters(axes, rows.shape[1])
    leading = rows[:, :-2]
    if shape_type.lower() == "ellipse" and len(rows) == 2:
        leading = leading[:1]  # behind the centre come the radii
    return roi_of_shape(shape_type, rows[:, -2:]).replace(position=_position(leading, letters))


def _letters(axes: str | None, columns: int) -> str:
    if axes is None:
        axes = next((each for each in _AXES if len(each) == columns), "")
    axes = axes.upper()
    leading = axes[:-2]
    if len(axes) != columns or axes[-2:] != "YX" or len({*leading} & {*_PLACES}) != columns - 2:
        raise InvalidItem(
            f"the {columns} columns of napari's data are not those of axes={axes!r}.",
            cure="Pass axes with a letter for each, of C, Z and T, then Y and X: 'TZYX', say; or "
            "data of the last two columns.",
        )
    return leading


def _position(leading: Array, letters: str) -> tuple[int, int, int]:
    """Where in the stack all rows lie: (c, z, t), counted from 1."""
    if not np.isfinite(leading).all() or (leading != leading[0]).any():
        raise InvalidItem(
            f"a shape lies in several planes of its stack: its {letters} is not the same in all "
            "rows.",
            cure="Cut it at the planes, or pass the last two columns, data[:, -2:], alone.",
        )
    planes = dict(zip(letters, np.rint(leading[0]).tolist(), strict=True))
    if min(planes.values()) < 0:
        raise InvalidItem(
            f"a shape lies before its stack: at {planes}.",
            cure="Pass planes counted from 0, or the last two columns, data[:, -2:], alone.",
        )
    c, z, t = (int(planes[letter]) + 1 if letter in planes else 0 for letter in _PLACES)
    return c, z, t


# --- layers ---------------------------------------------------------------------------------------


def _is_layer(thing: Any) -> bool:
    """A Shapes or Points layer, by what it has: napari itself need not be there."""
    return hasattr(thing, "data") and hasattr(thing, "face_color")


def _of_layer(layer: Any, axes: str | None) -> list[Roi]:
    names = _names_of(layer)
    faces = [_hex(rgba) for rgba in layer.face_color]
    looks: list[dict[str, Any]]
    if not hasattr(layer, "shape_type"):
        looks = [{"stroke_color": face} for face in faces]
        shapes = [("points", [row]) for row in layer.data]
    else:
        edges = map(_hex, layer.edge_color)
        looks = [
            {"stroke_color": edge, "fill_color": face, "stroke_width": float(width)}
            for edge, face, width in zip(edges, faces, layer.edge_width, strict=True)
        ]
        shapes = list(zip(layer.shape_type, layer.data, strict=True))
    return [
        _roi(shape, axes).replace(name=name, **look)
        for shape, name, look in zip(shapes, names, looks, strict=True)
    ]


def _names_of(layer: Any) -> list[str]:
    features = getattr(layer, "features", {})
    if "name" not in features:
        return [""] * len(layer.data)
    # What is missing there is no number, and that alone differs from itself.
    return [str(name) if name == name and name is not None else "" for name in features["name"]]


def _hex(rgba: Sequence[float]) -> str:
    """Four numbers from 0 to 1 as ROIs have colours; none where nothing is seen of it."""
    parts = [round(min(max(float(part), 0.0), 1.0) * 255) for part in rgba]
    return f"#{bytes(parts).hex()}" if parts[3] else ""
