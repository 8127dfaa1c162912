"""ROIs as napari's shapes: (y, x), whole numbers at pixel centres.

Areas lie half a pixel nearer to the origin than in ImageJ, which counts from the corner of the
top-left pixel; lines and points have the same numbers in both.

What napari has no shape for is converted (`losses` tells each ROI's): splines and rounded
rectangles become polygons of straight pieces, an arrow a path that draws its head, a text its box.
A composite becomes one polygon that returns to its first vertex after each ring: in and out of a
hole on the same line, which encloses nothing. `from_napari` makes a composite of it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._details import Arrow
from openhcs_stream.rois._model import BOXES, Roi
from openhcs_stream.rois._outline import major_first, rectangle_width, rings, within_reach

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ellipse_corners", "roi_of_shape", "shape_of_roi", "unbridged"]

#: Corners this near to an upright box, in pixels, are that box.
_UPRIGHT_TOLERANCE = 1e-5


def shape_of_roi(roi: Roi) -> tuple[str, npt.NDArray[np.float64]]:
    """Give a ROI's shape type and (N, 2) y, x: what `to_napari` gives, without a warning."""
    shape_type = roi.row.napari
    xy = roi.coordinates
    if shape_type == "rectangle" or roi.kind == "oval":
        if roi.kind in BOXES:
            (left, top), (right, bottom) = xy
            xy = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        else:
            xy = _rectangle_corners(within_reach(xy))
    elif roi.kind == "ellipse":
        xy = ellipse_corners(within_reach(xy))
    elif roi.kind == "arrow":
        xy = _arrow(roi)
    elif roi.kind == "composite":
        xy = _bridged(rings(roi))
    elif roi.kind != "point":
        (xy,) = rings(roi)
    yx = xy[:, ::-1]
    return shape_type, yx - 0.5 if roi.is_area else yx.copy()


def _bridged(parts: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Join rings to one: each is closed, and after each the first vertex comes again."""
    first = parts[0]
    joined = [first]
    for ring in parts[1:]:
        joined += [first[:1], ring, ring[:1]]
    xy = np.concatenate(joined)
    # One ring that encloses nothing may have fewer vertices than a polygon.
    return np.pad(xy, ((0, max(0, 3 - len(xy))), (0, 0)), mode="edge")


def unbridged(xy: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Find the rings that `_bridged` joined; one, the polygon itself, where it joined none."""
    vertices = [tuple(pair) for pair in xy.tolist()]
    found = []
    start = 0
    while start < len(vertices):
        try:
            end = vertices.index(vertices[start], start + 1)
        except ValueError:
            # The first ring alone is not closed again where nothing follows.
            return [xy]
        found.append(xy[start:end])
        start = end + 1
        if len(found) == 1:
            continue  # the first ring ends with its first vertex, and the second ring follows
        if start == len(vertices):
            break
        if vertices[start] != vertices[0]:
            return [xy]
        start += 1
    return found if len(found) > 1 and min(map(len, found)) >= 3 else [xy]


def _arrow(roi: Roi) -> npt.NDArray[np.float64]:
    """Draw an arrow in one go: along its shaft, then to both ends of its head."""
    tail, tip = within_reach(roi.coordinates)
    assert isinstance(roi.details, Arrow)
    vector = tip - tail
    length = float(np.hypot(*vector))
    if not length or roi.details.style == "headless":
        return roi.coordinates
    head = float(roi.details.head_size)
    along = vector / length * head
    across = np.array([-along[1], along[0]]) * 0.36  # ImageJ's heads open by 20 degrees each side
    made = [tail, tip, tip - along + across, tip, tip - along - across]
    if roi.details.double_headed:
        made = [tail + along + across, tail, tail + along - across, *made]
    return np.array(made)


def roi_of_shape(shape_type: str, yx: npt.NDArray[np.float64]) -> Roi:
    """Make a ROI of one shape: `from_napari` of a type and (N, 2) y, x.

    Raises
    ------
    InvalidItem
        The shape type is unknown, or the data can't be one.
    """
    match shape_type.lower():
        case "polygon":
            roi = Roi.polygon(yx)
            parts = unbridged(roi.coordinates)
            return Roi.of_rings(parts) if len(parts) > 1 else roi
        case "path":
            return Roi.polyline(yx)
        case "points":
            return Roi.points(yx)
        case "line":
            return Roi("line", yx[:, ::-1] if yx.ndim == 2 else yx)
        case "rectangle" | "ellipse" as box:
            return _from_corners(box, _four_corners(box, yx))
        case _:
            raise InvalidItem(
                f"napari has no shape type {shape_type!r}.",
                cure="Use polygon, rectangle, ellipse, line, path or points.",
            )


def _four_corners(shape_type: str, yx: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What napari makes of the two vertices by which a rectangle or an ellipse may be given."""
    if not np.isfinite(yx).all():
        raise InvalidItem(
            f"a napari {shape_type} has coordinates that are infinite or no numbers.",
            cure="Leave it out.",
        )
    if yx.shape == (2, 2):
        first, last = yx if shape_type == "rectangle" else (yx[0] - yx[1], yx[0] + yx[1])
        (top, left), (bottom, right) = np.minimum(first, last), np.maximum(first, last)
        return np.array([(top, left), (bottom, left), (bottom, right), (top, right)])
    if yx.shape == (4, 2):
        return yx
    raise InvalidItem(
        f"a napari {shape_type} of shape {yx.shape} has no four corners, nor two.",
        cure="Pass (4, 2) y, x; or two opposite corners of a rectangle, or the centre and the "
        "radii of an ellipse.",
    )


def ellipse_corners(axes_xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Find the four corners of the turned box around an ellipse of three points."""
    start, end, side = axes_xy
    centre = (start + end) / 2
    major, minor = end - centre, side - centre
    return np.array(
        [
            centre - major - minor,
            centre + major - minor,
            centre + major + minor,
            centre - major + minor,
        ]
    )


def _rectangle_corners(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Find the corners of a rotated rectangle: as ImageJ does, but in float64."""
    start, end, _ = xy
    along = end - start
    length = float(np.hypot(*along))
    if not length:
        return np.array([start] * 4)
    across = np.array([along[1], -along[0]]) * (rectangle_width(xy) / 2 / length)
    return np.array([start + across, end + across, end - across, start - across])


def _tolerance(yx: npt.NDArray[np.float64]) -> float:
    """How far rounding may have moved a corner, pixels: napari keeps float32."""
    with np.errstate(over="ignore"):
        is_narrow = np.array_equal(yx.astype(np.float32), yx)
    eps = float(np.finfo(np.float32 if is_narrow else np.float64).eps)
    return min(max(_UPRIGHT_TOLERANCE, 4 * eps * float(np.abs(yx).max())), 0.25)


def _from_corners(shape_type: str, yx: npt.NDArray[np.float64]) -> Roi:
    tolerance = _tolerance(yx)
    top, left = yx.min(axis=0)
    bottom, right = yx.max(axis=0)
    edges = np.abs(np.roll(yx, -1, axis=0) - yx)
    if (edges.min(axis=1) <= tolerance).all():
        build = Roi.rectangle if shape_type == "rectangle" else Roi.oval
        return build(top + 0.5, left + 0.5, bottom + 0.5, right + 0.5)
    xy = yx[:, ::-1] + 0.5
    centre = xy.mean(axis=0)
    along, across = (xy[1] - xy[0]) / 2, (xy[3] - xy[0]) / 2
    if shape_type == "rectangle":
        length, width = float(np.hypot(*along)), float(np.hypot(*across))
        off = _UPRIGHT_TOLERANCE * length * width + tolerance * (length + width)
        square = abs(float(along @ across)) <= off
        closed = np.abs(xy[0] + xy[2] - xy[1] - xy[3]).max() <= 2 * tolerance
        if not (square and closed):
            return Roi.polygon(yx)
        return Roi("rotated rectangle", np.array([centre - along, centre + along, centre + across]))
    return Roi("ellipse", major_first(np.array([centre - along, centre + along, centre + across])))
