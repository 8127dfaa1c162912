"""What becomes of a ROI when a person changes, in napari, the shape that shows it.

napari has five shapes and ROIs have sixteen kinds, so the edited shape alone does not tell what
the ROI is now. The rule:

- *Moved*: every kind stays what it is, and all its coordinates move by the same step.
- *Resized, turned, sheared*: whatever is made of vertices (outlines, lines, composites with their
  curves, splines, arrows, points) follows exactly. A rectangle or an oval that was turned becomes
  a rotated rectangle or an ellipse. A rounded rectangle follows while it is upright and becomes
  a polygon when it is turned. A text keeps its words, and turns them.
- *Vertices moved, added, taken away*: outlines and lines keep their kind, and vertices that
  nobody touched keep their coordinates to the last bit. A composite keeps its rings. A rectangle,
  oval, rounded rectangle or spline becomes a polygon (or line) of straight pieces; an arrow
  follows its tail and its tip; a text takes the box around what was drawn; the marks of a point
  carry it along.

Name, colours, width, group, position and properties are not a matter of shape and are kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from openhcs_stream.rois._details import Arrow, Markers, Path, Spline, Text
from openhcs_stream.rois._losses import STRAIGHT
from openhcs_stream.rois._model import BOXES, Roi
from openhcs_stream.rois._napari import roi_of_shape, unbridged
from openhcs_stream.rois._outline import rings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from openhcs_stream.rois._model import RoiKind

    Array = npt.NDArray[np.float64]

__all__ = ["POINTS_PER_MARK", "follow_napari"]

#: A point in a shapes layer is a path of this many vertices around it, the last one the first.
POINTS_PER_MARK = 5

#: How far rounding may take a vertex while it is dragged: napari adds up float32 steps.
_ROUNDING = 128 * float(np.finfo(np.float32).eps)


def follow_napari(
    roi: Roi, was_type: str, was: npt.ArrayLike, now_type: str, now: npt.ArrayLike
) -> tuple[Roi, str]:
    """Change a ROI as a person changed the shape that shows it.

    Parameters
    ----------
    roi : Roi
        As it was.
    was_type, was : str, (N, 2) array
        The shape as napari had it before: y, x, what `to_napari` gave. An outline may also be
        shown as a closed path, and points as a path of `POINTS_PER_MARK` vertices around each.
    now_type, now : str, (M, 2) array
        The shape as it is now.

    Returns
    -------
    roi : Roi
        The very object that was given where the shape is the same.
    lost : str
        What of it could not be kept; empty where nothing was lost.

    Raises
    ------
    InvalidItem
        The shape is none of which a ROI can be made.
    """
    old, new = np.asarray(was, np.float64), np.asarray(now, np.float64)
    if old.shape == new.shape and (was_type == now_type or len(old) > 4):
        if np.array_equal(old, new):
            return roi, ""
        step = _step(old, new)
        if step is not None:
            return roi.replace(coordinates=roi.coordinates + step[::-1]), ""
    made, lost = _FOLLOW[roi.kind](roi, old, now_type, new)
    kept = {
        name: getattr(roi, name)
        for name in ("name", "stroke_color", "fill_color", "stroke_width", "group", "position",
                     "properties", "flat_position", "imagej_options")
    }  # fmt: skip
    return made.replace(**kept), lost


# --- what was done ------------------------------------------------------------------------------


def _tolerance(*vertices: Array) -> float:
    return max(1e-3, _ROUNDING * max(float(np.abs(each).max()) for each in vertices))


def _step(old: Array, new: Array) -> Array | None:
    """By how much all vertices were moved; None where they did not move together."""
    moved = new - old
    if (moved == 0).all(axis=1).any():
        return None  # one stayed where it was: somebody moved the others
    step: Array = moved.mean(axis=0)
    return step if np.abs(moved - step).max() <= _tolerance(old, new) else None


def _map(old: Array, new: Array) -> tuple[Array, Array] | None:
    """Find the matrix and the step that take all old vertices to the new ones: new = m @ old + s.

    None where no such map does, or several.
    """
    if old.shape != new.shape or len(old) < 4:
        return None
    centre = old.mean(axis=0)  # far from the origin the fit would lose its last digits
    centred = old - centre
    if np.linalg.matrix_rank(centred, tol=_tolerance(old)) < 2:
        return None
    matrix, *_ = np.linalg.lstsq(centred, new - new.mean(axis=0), rcond=None)
    if np.abs(centred @ matrix + new.mean(axis=0) - new).max() > _tolerance(old, new):
        return None
    turned = matrix.T
    return turned, new.mean(axis=0) - turned @ centre


def _mapped(roi: Roi, found: tuple[Array, Array]) -> Roi:
    matrix, step = found
    shift = 0.5 if roi.is_area else 0.0
    yx = (roi.coordinates[:, ::-1] - shift) @ matrix.T + step
    return roi.replace(coordinates=yx[:, ::-1] + shift)


def _is_upright(matrix: Array, size: float) -> bool:
    """Whether a map only stretches: what is upright stays so, within rounding."""
    return float(np.abs(matrix[[0, 1], [1, 0]]).max()) * size <= 2e-3


# --- what it makes of each kind -----------------------------------------------------------------


def _box(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    """Rectangles and ellipses of all sorts: four corners, until somebody moves one of them."""
    if now_type not in ("rectangle", "ellipse"):
        return Roi.polygon(_kept_rows(roi, old, _open(new))), ""
    made = roi_of_shape(now_type, new)
    if made.kind == roi.kind and roi.kind in BOXES:
        return _with_box(roi, made.coordinates, _corners(old)), ""
    return made, ""


def _corners(yx: Array) -> Array:
    return np.stack([yx.min(axis=0), yx.max(axis=0)])[:, ::-1] + 0.5


def _with_box(roi: Roi, box: Array, was: Array) -> Roi:
    """Take a new box; a side that stayed where it was keeps its coordinate to the last bit."""
    stayed = np.abs(box - was) <= _tolerance(box, was) / 8
    return roi.replace(coordinates=np.where(stayed, roi.coordinates, box))


def _rounded(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    found = _map(_open(old), _open(new))
    if found is not None and _is_upright(found[0], float(np.ptp(old))):
        ends = _mapped(roi, found).coordinates if (found[0].diagonal() > 0).all() else None
        box = _corners(new) if ends is None else ends
        return _with_box(roi, box, roi.coordinates), ""
    yx = _kept_rows(roi, old, _open(new))
    return Roi.polygon(yx), f"its round corners are lost: {STRAIGHT}"


def _text(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    assert isinstance(roi.details, Text)
    found = _map(old, new) if now_type == "rectangle" else None
    if found is None or _is_upright(found[0], float(np.ptp(old))):
        return _with_box(roi, _corners(new), _corners(old)), ""
    matrix = found[0]
    # What pointed to the right: y points down, and counter-clockwise is positive.
    turned = math.degrees(math.atan2(-matrix[0, 1], matrix[1, 1]))
    angle = (roi.details.angle + turned + 180) % 360 - 180
    centre = new.mean(axis=0)[::-1] + 0.5
    half = np.ptp(roi.coordinates, axis=0) / 2
    details = msgspec.structs.replace(roi.details, angle=angle)
    return roi.replace(coordinates=np.stack([centre - half, centre + half]), details=details), ""


def _arrow(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    assert isinstance(roi.details, Arrow)
    if len(old) != len(new):
        return Roi.polyline(new), "it is no arrow any more: its head is a part of the line"
    found = _map(old, new)
    if found is not None:
        return _mapped(roi, found), ""
    # Tail and tip come several times in the path: whichever was dragged tells.
    tails, tips = ((1, 3), (4, 6)) if roi.details.double_headed else ((0,), (1, 3))
    ends = roi.coordinates[:, ::-1].copy()
    for end, rows in enumerate((tails, tips)):
        for row in rows:
            if row < len(new) and (new[row] != old[row]).any():
                ends[end] = new[row]
    return roi.replace(coordinates=ends[:, ::-1]), ""


def _line(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    yx = _kept_rows(roi, old, new)
    return (Roi("line", yx[:, ::-1]) if len(yx) == 2 else Roi.polyline(yx)), ""


def _outline(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    """Polygons, freehand and traced outlines, polylines, freelines, angles."""
    if isinstance(roi.details, Spline):
        found = _map(_open(old), _open(new)) if roi.is_area else _map(old, new)
        if found is not None:
            return _mapped(roi, found), ""
        lost = "its spline becomes straight pieces"
    else:
        lost = ""
    if not roi.is_area:
        yx = _kept_rows(roi, old, new)
        kind = "polyline" if roi.kind == "angle" and len(yx) != 3 else roi.kind
        return Roi(kind, yx[:, ::-1]), lost
    yx = _kept_rows(roi, old, _open(new))
    if len(yx) < 3:
        return Roi.polyline(yx), "two vertices enclose nothing: it becomes a line"
    return Roi(roi.kind, yx[:, ::-1] + 0.5), lost


def _composite(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    assert isinstance(roi.details, Path)
    found = _map(old, new)
    if found is not None:
        return _mapped(roi, found), ""
    curved = b"\2" in roi.details.segments or b"\3" in roi.details.segments
    lost = f"its curves are lost: {STRAIGHT}" if curved else ""
    yx = _kept_rows(roi, old, new)
    if len(old) == len(new):
        return Roi.of_rings([ring[:, ::-1] + 0.5 for ring in _rings_of(roi, yx, new != old)]), lost
    parts = unbridged(_open(yx)[:, ::-1] + 0.5)
    if len(parts) == 1 and len(rings(roi)) > 1:
        return Roi.polygon(_open(yx)), "its rings become one outline, joined by lines"
    return Roi.of_rings(parts), lost


def _rings_of(roi: Roi, new: Array, moved: npt.NDArray[np.bool_]) -> list[Array]:
    """Take a composite's one polygon apart: it goes back to the first vertex after each ring."""
    changed = np.any(moved, axis=1)
    parts: list[Array] = []
    at = 0
    for ring in rings(roi):
        part = new[at : at + len(ring)].copy()
        back = at + len(ring)  # where the ring's first vertex comes again
        if parts and back < len(new) and changed[back] and not changed[at]:
            part[0] = new[back]
        parts.append(part)
        at += len(ring) + (1 if len(parts) == 1 else 2)
    return parts


def _points(roi: Roi, old: Array, now_type: str, new: Array) -> tuple[Roi, str]:
    found = _map(old, new)
    if found is not None:
        return _mapped(roi, found), ""
    if len(old) != len(new) or len(new) != POINTS_PER_MARK * len(roi.coordinates):
        return _remaining(roi, old, new), ""
    moved = (new - old).reshape(-1, POINTS_PER_MARK, 2)
    furthest = np.hypot(*moved.transpose(2, 0, 1)).argmax(axis=1)
    steps = moved[np.arange(len(moved)), furthest]
    return roi.replace(coordinates=roi.coordinates + steps[:, ::-1]), ""


def _remaining(roi: Roi, old: Array, new: Array) -> Roi:
    """The points whose marks are whole: to take a vertex of a mark away takes its point away."""
    have = new.tobytes()
    marks = old.reshape(-1, POINTS_PER_MARK, 2)
    whole: npt.NDArray[np.bool_] = np.array([mark.tobytes() in have for mark in marks])
    if whole.all() or not whole.any():
        return roi
    details = roi.details
    if isinstance(details, Markers):
        counters, slices = (
            tuple(np.array(each)[whole].tolist()) if each else ()
            for each in (details.counters, details.slices)
        )
        details = msgspec.structs.replace(details, counters=counters, slices=slices)
    return roi.replace(coordinates=roi.coordinates[whole], details=details)


def _open(yx: Array) -> Array:
    """A ring without its first vertex again at its end."""
    return yx[:-1] if len(yx) > 1 and np.array_equal(yx[0], yx[-1]) else yx


def _kept_rows(roi: Roi, old: Array, new: Array) -> Array:
    """The new vertices; those that were there before as the ROI itself has them, in float64."""
    (own, *more) = [ring[:, ::-1] - (0.5 if roi.is_area else 0.0) for ring in rings(roi)]
    for ring in more:  # as `to_napari` joins them
        own = np.concatenate([own, own[:1], ring, ring[:1]])
    exact = dict(zip(map(bytes, np.ascontiguousarray(old)), own, strict=False))
    made: Array = np.stack([exact.get(bytes(row), row) for row in np.ascontiguousarray(new)])
    return made


_FOLLOW: Final[Mapping[RoiKind, Callable[[Roi, Array, str, Array], tuple[Roi, str]]]] = {
    "polygon": _outline,
    "freehand": _outline,
    "traced": _outline,
    "polyline": _outline,
    "freeline": _outline,
    "angle": _outline,
    "rectangle": _box,
    "oval": _box,
    "ellipse": _box,
    "rotated rectangle": _box,
    "rounded rectangle": _rounded,
    "text": _text,
    "line": _line,
    "arrow": _arrow,
    "composite": _composite,
    "point": _points,
}
