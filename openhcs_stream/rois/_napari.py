"""ROIs as napari's shapes: (y, x), whole numbers at pixel centres.

Areas lie half a pixel nearer to the origin than in ImageJ, which counts from the corner of the
top-left pixel; lines and points have the same numbers in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._model import Roi

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["from_napari", "to_napari"]

#: Corners this near to an upright box, in pixels, are that box: napari's own arithmetic is float32.
_UPRIGHT_TOLERANCE = 1e-5


def to_napari(roi: Roi) -> tuple[str, npt.NDArray[np.float64]]:
    """Give a ROI as napari takes it.

    Returns
    -------
    shape_type : str
        "polygon", "rectangle", "ellipse", "line" or "path" for a Shapes layer; "points" for a
        Points layer.
    data : (N, 2) float64
        y, x. Four corners for a rectangle and an ellipse, in napari's order.
    """
    shape_type = roi.row.napari
    xy = roi.coordinates
    if roi.kind in ("rectangle", "oval"):
        (left, top), (right, bottom) = xy
        xy = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif roi.kind == "ellipse":
        xy = ellipse_corners(xy)
    yx = xy[:, ::-1]
    return shape_type, yx - 0.5 if roi.is_area else yx.copy()


def from_napari(shape_type: str, data: npt.ArrayLike) -> Roi:
    """Make a ROI of one napari shape: the inverse of `to_napari`.

    Parameters
    ----------
    shape_type : str
        "polygon", "rectangle", "ellipse", "line", "path", or "points".
    data : (N, 2) array
        y, x. A rectangle that was turned becomes a polygon, an ellipse that was turned an ellipse.

    Raises
    ------
    InvalidItem
        The shape type is unknown, or the data can't be one.
    """
    match shape_type:
        case "polygon":
            return Roi.polygon(data)
        case "path":
            return Roi.polyline(data)
        case "points":
            return Roi.points(data)
        case "line":
            yx = np.asarray(data, np.float64)
            return Roi("line", yx[:, ::-1] if yx.ndim == 2 else yx)
        case "rectangle" | "ellipse":
            return _from_corners(shape_type, np.asarray(data, np.float64))
        case _:
            raise InvalidItem(
                f"napari has no shape type {shape_type!r}.",
                cure="Use polygon, rectangle, ellipse, line, path or points.",
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


def _from_corners(shape_type: str, yx: npt.NDArray[np.float64]) -> Roi:
    if yx.shape != (4, 2):
        raise InvalidItem(
            f"a napari {shape_type} of shape {yx.shape} has no four corners.",
            cure="Pass (4, 2) y, x.",
        )
    top, left = yx.min(axis=0)
    bottom, right = yx.max(axis=0)
    edges = np.abs(np.roll(yx, -1, axis=0) - yx)
    if (edges.min(axis=1) <= _UPRIGHT_TOLERANCE).all():
        build = Roi.rectangle if shape_type == "rectangle" else Roi.oval
        return build(top + 0.5, left + 0.5, bottom + 0.5, right + 0.5)
    if shape_type == "rectangle":
        return Roi.polygon(yx)
    xy = yx[:, ::-1] + 0.5
    centre = xy.mean(axis=0)
    along, across = (xy[1] - xy[0]) / 2, (xy[3] - xy[0]) / 2
    if np.hypot(*across) > np.hypot(*along):
        along, across = across, along
    return Roi("ellipse", np.array([centre - along, centre + along, centre + across]))
