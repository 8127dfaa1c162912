"""Whatever people have as regions of interest, as a list of `Roi`. Nothing is imported for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._imagej import from_imagej, from_roifile
from openhcs_stream.rois._labels import from_labels
from openhcs_stream.rois._model import Roi

__all__ = ["coerce", "looks_like_rois"]

_CURE = (
    "Pass Roi objects, (N, 2) arrays of y, x vertices, roifile or shapely objects, "
    "the bytes of .roi files, or a list of these."
)


def coerce(rois: Any) -> list[Roi]:
    """Make a list of ROIs of anything that plainly is one.

    Parameters
    ----------
    rois : object, or an iterable of such
        - `Roi`;
        - (N, 2) array or nested list: a polygon, y, x, whole numbers at pixel centres;
        - ``roifile.ImagejRoi``, or the bytes of a ``.roi`` file;
        - shapely polygons, with holes or without: x, y, counted from pixel corners, as QuPath and
          GeoJSON have them;
        - objects with ``shapes`` that have ``coordinates`` (a polygon or, by its ``shape_type``,
          a polyline), ``center`` and ``radii`` (or ``center_y``, ``radius_y`` and the same of x),
          ``y`` and ``x``, or ``mask`` and ``bbox``, all in y, x with whole numbers at pixel
          centres, as OpenHCS has them. A ``label`` in their ``metadata`` becomes the name.

    Returns
    -------
    list of Roi
        Empty where the list was.

    Raises
    ------
    InvalidItem
        Something in it is no ROI; the text names its type.
    """
    one = _one(rois)
    if one is not None:
        return one
    if isinstance(rois, (str, dict)) or not isinstance(rois, Iterable):
        raise InvalidItem(f"an object of type {_type(rois)} is no ROI.", cure=_CURE)
    items = list(rois)
    if items and all(_is_number_pair(item) for item in items):
        return [Roi.polygon(items)]
    made: list[Roi] = []
    for index, item in enumerate(items):
        one = _one(item)
        if (
            one is None
            and isinstance(item, (list, tuple))
            and item
            and all(map(_is_number_pair, item))
        ):
            one = [Roi.polygon(item)]
        if one is None:
            raise InvalidItem(f"item {index}, of type {_type(item)}, is no ROI.", cure=_CURE)
        made += one
    return made


def looks_like_rois(data: Any) -> bool:
    """Whether data is ROIs rather than an image: for callers that are given either.

    A bare array is always an image; a list of (N, 2) arrays, and an empty list, are ROIs.
    """
    if isinstance(data, np.ndarray):
        return False
    if isinstance(data, (list, tuple)):
        return all(_looks_like_one(item) or _is_vertices(item) for item in data)
    return _looks_like_one(data)


def _looks_like_one(item: Any) -> bool:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item[:4]) == b"Iout"
    return isinstance(item, Roi) or any(
        hasattr(item, name) for name in ("roitype", "exterior", "geoms", "shapes")
    )


def _one(item: Any) -> list[Roi] | None:
    """Convert one thing that may stand for several ROIs; None where it is nothing known."""
    if isinstance(item, Roi):
        return [item]
    if isinstance(item, (bytes, bytearray, memoryview)):
        return [from_imagej(item)]
    if isinstance(item, np.ndarray):
        return _from_array(item)
    if hasattr(item, "roitype"):
        return [from_roifile(item)]
    if hasattr(item, "exterior"):
        return [_from_shapely(item)]
    if hasattr(item, "geoms"):
        return coerce(list(item.geoms))
    if hasattr(item, "shapes"):
        return _from_shapes(item)
    return None


def _from_array(array: np.ndarray[Any, Any]) -> list[Roi] | None:
    if _is_vertices(array):
        return [Roi.polygon(array)]
    if array.ndim in (1, 3) or array.dtype.kind == "O":
        return None  # a list of something, to be looked at one by one
    raise InvalidItem(
        f"an array of shape {array.shape} and dtype {array.dtype} is no polygon.",
        cure="Pass (N, 2) y, x vertices. Send a label image as labels, or use rois.from_labels.",
    )


def _from_shapely(item: Any) -> Roi:
    rings = [
        np.asarray(ring.coords, np.float64)[:-1, :2]
        for ring in (item.exterior, *getattr(item, "interiors", ()))
    ]
    return Roi("polygon", rings[0]) if len(rings) == 1 else Roi.of_rings(rings)


def _from_shapes(item: Any) -> list[Roi]:
    metadata = getattr(item, "metadata", None) or {}
    label = metadata.get("label", "")
    name = str(label) if label is not None else ""
    made: list[Roi] = []
    for shape in item.shapes:
        if hasattr(shape, "coordinates"):
            kind = getattr(shape, "shape_type", "")
            kind = str(getattr(kind, "value", kind)).lower()
            build = Roi.polyline if kind in ("polyline", "path", "line") else Roi.polygon
            made.append(build(shape.coordinates, name=name))
        elif hasattr(shape, "center") and hasattr(shape, "radii"):
            made.append(_oval(shape.center, shape.radii, name))
        elif hasattr(shape, "center_y") and hasattr(shape, "radius_y"):
            centre = (shape.center_y, shape.center_x)
            made.append(_oval(centre, (shape.radius_y, shape.radius_x), name))
        elif hasattr(shape, "mask") and hasattr(shape, "bbox"):
            top, left = shape.bbox[:2]
            made += [
                roi.replace(coordinates=roi.coordinates + np.array([left, top]), name=name)
                for roi in from_labels(np.asarray(shape.mask, bool))
            ]
        elif hasattr(shape, "y") and hasattr(shape, "x"):
            made.append(Roi.points([(shape.y, shape.x)], name=name))
        else:
            raise InvalidItem(
                f"a shape of type {_type(shape)} in a {_type(item)} is not known.", cure=_CURE
            )
    return made


def _oval(centre: Any, radii: Any, name: str) -> Roi:
    """An oval by its centre and radii, y, x: its bounds count from pixel corners."""
    (y, x), (radius_y, radius_x) = centre, radii
    y, x = y + 0.5, x + 0.5
    return Roi.oval(y - radius_y, x - radius_x, y + radius_y, x + radius_x, name=name)


def _is_vertices(item: Any) -> bool:
    return (
        isinstance(item, np.ndarray)
        and item.ndim == 2
        and item.shape[1] == 2
        and item.dtype.kind in "biuf"
    )


def _is_number_pair(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.shape == (2,) and item.dtype.kind in "biuf"
    return (
        isinstance(item, (list, tuple))
        and len(item) == 2
        and all(isinstance(number, (int, float, np.number)) for number in item)
    )


def _type(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
