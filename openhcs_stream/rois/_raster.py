"""Which pixels a ROI has: ImageJ's own rule, so that a region has the same pixels here and there.

- Polygons and whatever becomes one (freehand, traced, splines, ellipses, rotated and rounded
  rectangles, composites): even-odd at the pixel's centre. Ties: the left and top edges exclude, the
  right and bottom edges include.
- Rectangles and upright ovals count with whole numbers: the corner cut toward zero, the size
  rounded up. An oval has the pixels whose centres fulfil (dx / a)² + (dy / b)² <= 1.
- A text has its box.
- Points: a whole number is the centre of its pixel; half is rounded up.
- Lines of any kind, arrows too: the pixels that ImageJ draws with a width of one pixel, whatever
  the stroke's width.

Source: ImageJ 1.54p ``PolygonFiller``, ``OvalRoi``, ``PointRoi``, ``ImageProcessor.lineTo``.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import _outline
from openhcs_stream.rois._details import Corners, Path, Spline
from openhcs_stream.rois._listed import listed_rois
from openhcs_stream.rois._losses import warn_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openhcs_stream.rois._model import Roi

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]

__all__ = ["to_labels", "to_mask"]

_log = logging.getLogger(__name__)

#: Crossings this near to the border of a pixel are computed again, step by step as ImageJ does.
_NEAR: Final = 1e-9
#: Plain polygons of so few vertices and pixels a side are painted so many at a time.
_PLAIN: Final = frozenset({"polygon", "freehand", "traced"})
_FEW: Final = 256
_BATCH: Final = 256
#: Crossings of rows and edges that are looked at in one go.
_CROSSINGS: Final = 1 << 21
#: An edge of more rows is not: ImageJ has no image so tall.
_TALLEST: Final = 1 << 20
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,19}")
#: The largest label.
_LARGEST_LABEL: Final = (1 << 64) - 1


def to_mask(roi: Roi | Iterable[Roi], shape: tuple[int, int]) -> Mask:
    """Mark the pixels of a ROI in an image, by ImageJ's rule (see this module's text).

    Parameters
    ----------
    roi : Roi, or iterable of Roi
        Any kind. Of several, what lies in any of them is marked.
    shape : (height, width)
        In pixels.

    Returns
    -------
    (Y, X) bool array
        What lies outside of the image is cut off. However far a ROI reaches, no more memory is
        taken than the image and its vertices need.
    """
    mask = np.zeros(_checked_shape(shape), np.bool_)
    for each in listed_rois(roi):
        top, left, part = _part(each, *mask.shape)
        mask[top : top + part.shape[0], left : left + part.shape[1]] |= part
    return mask


def to_labels(
    rois: Roi | Iterable[Roi], shape: tuple[int, int], *, warn: bool = True
) -> npt.NDArray[Any]:
    """Paint ROIs into a label image, by the same rule as `to_mask`; the later covers the earlier.

    Parameters
    ----------
    rois : Roi, or iterable of Roi
        One whose name is a whole number from 1, as `from_labels` names them, has that label. The
        others have the numbers that follow the greatest of these, in their order; so has one whose
        number an earlier one has already, because two ROIs are two objects, and `from_labels` makes
        one composite of a label in several parts. The log tells how many these are.
    shape : (height, width)
        In pixels.
    warn : bool
        False: neither warn nor log.

    Returns
    -------
    (Y, X) array of uint16, or uint32 or uint64 where a label is larger
        0 where there is no ROI.

    Warns
    -----
    LossyConversion
        Words, arrow heads or markers are lost.
    """
    rois = listed_rois(rois)
    if warn:
        warn_of(rois, "labels")
    height, width = _checked_shape(shape)
    numbers, n_taken = _numbers([roi.name for roi in rois])
    if n_taken and warn:
        _log.warning(
            "to_labels: %d of %d ROIs are named by a number that another has already: they have "
            "the labels that follow the greatest",
            n_taken, len(rois),
        )  # fmt: skip
    labels = np.zeros((height, width), _dtype_of(max(numbers, default=0)))
    small: list[int] = []  # polygons that wait to be painted together
    for i, roi in enumerate(rois):
        if _is_small(roi):
            small.append(i)
            if len(small) == _BATCH:
                _paint_small(labels, rois, numbers, small)
        else:
            _paint_small(labels, rois, numbers, small)
            top, left, part = _part(roi, height, width)
            labels[top : top + part.shape[0], left : left + part.shape[1]][part] = numbers[i]
    _paint_small(labels, rois, numbers, small)
    return labels


def _numbers(names: list[str]) -> tuple[list[int], int]:
    """Give each name its label; count those whose own is another's already."""
    numbers = [int(name) if _NUMBER.fullmatch(name) else 0 for name in names]
    own = {each for each in numbers if 0 < each <= _LARGEST_LABEL}
    following = max(own, default=0)
    if following > _LARGEST_LABEL - len(names):  # too few follow: those from 1 that are free
        following = 0
    seen: set[int] = set()
    n_taken = 0
    for i, number in enumerate(numbers):
        n_taken += number in seen
        if not 0 < number <= _LARGEST_LABEL or number in seen:
            following += 1
            while following in own:
                following += 1
            numbers[i] = following
        else:
            seen.add(number)
    return numbers, n_taken


def _dtype_of(largest: int) -> type[np.unsignedinteger[Any]]:
    if largest < 1 << 16:
        return np.uint16
    return np.uint32 if largest < 1 << 32 else np.uint64


def _is_small(roi: Roi) -> bool:
    xy = roi.coordinates
    return (
        roi.kind in _PLAIN
        and roi.details is None
        and len(xy) <= _FEW
        and bool((np.abs(xy) < _outline.FARTHEST).all())
        and bool((np.ptp(xy, axis=0) <= _FEW).all())
    )


def _paint_small(
    labels: npt.NDArray[Any], all_rois: Sequence[Roi], all_numbers: list[int], which: list[int]
) -> None:
    """Do what `_part` and `_filled` do, for many polygons in one go; then none waits."""
    if not which:
        return
    rois = [all_rois[i] for i in which]
    numbers = np.array([all_numbers[i] for i in which], labels.dtype)
    which.clear()
    height, width = labels.shape
    counts = np.array([len(roi.coordinates) for roi in rois])
    stops = np.cumsum(counts)
    begins = stops - counts
    owner = np.repeat(np.arange(len(rois)), counts)
    floats = np.concatenate([roi.coordinates for roi in rois]).astype(np.float32)
    least = np.minimum.reduceat(floats, begins, axis=0)
    relative = floats - least[owner]
    base = least.astype(np.float64)
    low = np.floor(base)
    size = np.ceil(base + np.maximum.reduceat(relative, begins, axis=0)) - low
    starts = relative.astype(np.float64) + (base - low)[owner]
    after = np.arange(1, len(starts) + 1)
    after[stops - 1] = begins
    ends = starts[after]
    row1, row2 = _rounded(starts[:, 1]), _rounded(ends[:, 1])
    crossing = (row1 != row2) & ((row1 > 0) | (row2 > 0))
    starts, ends, row1, row2, owner = (
        values[crossing] for values in (starts, ends, row1, row2, owner)
    )
    upward = (row1 > row2)[:, None]
    starts, ends = np.where(upward, ends, starts), np.where(upward, starts, ends)
    row1, row2 = np.minimum(row1, row2), np.maximum(row1, row2)
    slope = (ends[:, 0] - starts[:, 0]) / (ends[:, 1] - starts[:, 1])
    x = starts[:, 0] + (row1 - starts[:, 1] + 0.5) * slope + 1e-8
    top = low[owner, 1]
    first = np.maximum(row1, -top)
    last = np.minimum(row2, np.minimum(size[owner, 1], height - top))
    rows = np.maximum(last - first, 0).astype(np.int64)
    edge = np.repeat(np.arange(len(rows)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows) + first[edge]
    at = x[edge] + (row - row1[edge]) * slope[edge] + 0.5
    for i in np.flatnonzero(np.abs(at - np.rint(at)) < _NEAR).tolist():
        one = edge[i]
        steps = int(row[i] - row1[one])
        if steps > 0:
            walk = np.append(x[one], np.full(steps, slope[one]))
            at[i] = np.add.accumulate(walk)[-1] + 0.5
    owner = owner[edge]
    column = np.clip(np.clip(np.trunc(at), 0, size[owner, 0]) + low[owner, 0], 0, width)
    row = row + low[owner, 1]
    # Two and two crossings of a row of a polygon, from left to right, have the pixels between them.
    order = np.lexsort((column, row, owner))
    left, right = column[order[::2]].astype(np.int64), column[order[1::2]].astype(np.int64)
    lengths = right - left
    begin = row[order[::2]].astype(np.int64) * width + left
    pixels = np.arange(int(lengths.sum())) + np.repeat(
        begin - (np.cumsum(lengths) - lengths), lengths
    )
    # Where pixels repeat, the last one stays.
    labels.reshape(-1)[pixels] = np.repeat(numbers[owner[order[::2]]], lengths)


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (int(number) for number in shape)
    except (TypeError, ValueError):
        height = width = -1
    if height < 0 or width < 0:
        raise InvalidItem(
            f"{shape!r} is no shape of an image plane.", cure="Pass (height, width) in pixels."
        )
    return height, width


def _part(roi: Roi, height: int, width: int) -> tuple[int, int, Mask]:
    """Find the top, left and mask of what lies in an image: no larger than the image, or empty."""
    if np.abs(roi.coordinates).max() > _outline.FARTHEST:
        roi = roi.replace(coordinates=_outline.within_reach(roi.coordinates))
    xy = roi.coordinates
    match roi.kind:
        case "rectangle" | "text":
            left, top, wide, high = _outline.int_box(xy)
            window = _Window(left, top, wide, high, height, width)
            return window.placed(np.ones(window.shape, np.bool_))
        case "oval":
            return _oval(_outline.int_box(xy), height, width)
        case "rounded rectangle":
            assert isinstance(roi.details, Corners)
            left, top, wide, high = _outline.int_box(xy)
            points, segments = _outline.rounded_path(left, top, wide, high, roi.details.diameter)
            relative = (points - (left, top)).astype(np.float32)
            rings = _outline.path_rings(relative, segments)
            window = _Window(left, top, wide, high, height, width)
            return _filled([ring.astype(np.float32) for ring in rings], (0.0, 0.0), window)
        case "composite":
            assert isinstance(roi.details, Path)
            return _composite(xy, roi.details.segments, height, width)
        case "ellipse" | "rotated rectangle":
            corners = (
                _outline.ellipse_vertices(xy)
                if roi.kind == "ellipse"
                else _outline.rectangle_corners(xy)
            )
            low = np.floor(corners.min(axis=0))
            size = ((_outline.most(corners) - low).astype(np.float64) + 0.5).astype(np.int64)
            wide, high = size.tolist()
            window = _Window(int(low[0]), int(low[1]), wide, high, height, width)
            return _filled([corners - low], (0.0, 0.0), window)
        case "point":
            return _points(xy, height, width)
        case "line" | "arrow":
            # A straight line keeps its ends in full; ImageJ's file has them in float32.
            ends = _rounded(xy.astype(np.float32).astype(np.float64))
            return _drawn(ends, height, width)
    if isinstance(roi.details, Spline):
        relative, base = _outline.spline_relative(roi)
    else:
        relative, base = _outline.relative_vertices(xy)
    if not roi.is_area:
        return _drawn(_rounded(base + relative), height, width)
    low = np.floor(base)
    size = relative.max(axis=0).astype(np.float64)
    wide, high = (np.ceil(base + size) - low).astype(np.int64).tolist()
    window = _Window(int(low[0]), int(low[1]), wide, high, height, width)
    return _filled([relative], tuple((base - low).tolist()), window)


class _Window:
    """What an image shows of a ROI's integer bounds: rows and columns counted from the bounds."""

    def __init__(self, left: int, top: int, wide: int, high: int, height: int, width: int) -> None:
        self.left, self.top, self.wide = left, top, wide
        self.first_row, self.end_row = _common(top, high, height)
        self.first_column, self.end_column = _common(left, wide, width)
        self.shape = self.end_row - self.first_row, self.end_column - self.first_column

    def placed(self, mask: Mask) -> tuple[int, int, Mask]:
        return max(self.top + self.first_row, 0), max(self.left + self.first_column, 0), mask


def _common(start: int, size: int, image_size: int) -> tuple[int, int]:
    first = min(max(0, -start), max(size, 0))
    return first, max(first, min(size, image_size - start))


def _oval(box: tuple[int, int, int, int], height: int, width: int) -> tuple[int, int, Mask]:
    left, top, wide, high = box
    window = _Window(left, top, wide, high, height, width)
    a, b = wide / 2.0, high / 2.0
    x = np.arange(window.first_column, window.end_column) - (a - 0.5)
    y = np.arange(window.first_row, window.end_row)[:, None] - (b - 0.5)
    return window.placed(x * x / (a * a) + y * y / (b * b) <= 1.0)


def _composite(
    xy: npt.NDArray[np.float64], segments: bytes, height: int, width: int
) -> tuple[int, int, Mask]:
    floats = xy.astype(np.float32).astype(np.float64)
    low = np.floor(_outline.path_low(floats, segments))
    high = np.ceil(floats.max(axis=0))
    relative = (floats - low).astype(np.float32)
    rings = [ring.astype(np.float32) for ring in _outline.path_rings(relative, segments)]
    wide, tall = (high - low).astype(np.int64).tolist()
    window = _Window(int(low[0]), int(low[1]), wide, tall, height, width)
    return _filled(rings, (0.0, 0.0), window)


def _filled(
    rings: list[Floats], offset: tuple[float, ...], window: _Window
) -> tuple[int, int, Mask]:
    """Fill rings as ImageJ's ``PolygonFiller``; what is inside an even number of rings is a hole.

    The filler pairs the crossings of each row from left to right. Toggling everything to the right
    of each crossing gives the same, without sorting.
    """
    rows, columns = window.shape
    if not rings or not rows or not columns:
        return window.placed(np.zeros((rows, columns), np.bool_))
    starts = np.concatenate(rings).astype(np.float64) + offset
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.float64) + offset
    row1, row2 = (_rounded(points[:, 1]) for points in (starts, ends))
    crossing = (row1 != row2) & ((row1 > 0) | (row2 > 0))
    starts, ends, row1, row2 = (values[crossing] for values in (starts, ends, row1, row2))
    upward = (row1 > row2)[:, None]
    starts, ends = np.where(upward, ends, starts), np.where(upward, starts, ends)
    row1, row2 = np.minimum(row1, row2), np.maximum(row1, row2)
    slope = (ends[:, 0] - starts[:, 0]) / (ends[:, 1] - starts[:, 1])
    x = starts[:, 0] + (row1 - starts[:, 1] + 0.5) * slope + 1e-8
    above = row1 < 0
    x[above] += slope[above] * -row1[above]
    row1[above] = 0
    first = np.maximum(row1, window.first_row)
    last = np.minimum(row2, window.end_row)
    counts = np.maximum(last - first, 0).astype(np.int64)
    done = np.cumsum(counts)
    toggles = np.zeros(rows * (columns + 1), np.uint8)
    begin = 0
    while begin < len(counts):  # in parts: many long edges have very many crossings
        limit = (done[begin - 1] if begin else 0) + _CROSSINGS
        end = max(begin + 1, int(np.searchsorted(done, limit, side="right")))
        edge = np.repeat(np.arange(begin, end), counts[begin:end])
        row = np.arange(len(edge)) - np.repeat(
            done[begin:end] - counts[begin:end] - (done[begin] - counts[begin]), counts[begin:end]
        )
        row = row + first[edge]
        at = x[edge] + (row - row1[edge]) * slope[edge] + 0.5
        for i in np.flatnonzero(np.abs(at - np.rint(at)) < _NEAR).tolist():
            # ImageJ adds the slope row by row, and this near the last bit decides.
            one = edge[i]
            steps = int(row[i] - row1[one])
            if 0 < steps < _TALLEST:
                walk = np.append(x[one], np.full(steps, slope[one]))
                at[i] = np.add.accumulate(walk)[-1] + 0.5
        # Toward zero as Java casts, cut to the bounds, then to what the image shows of them.
        column = np.clip(np.trunc(at), 0, window.wide).astype(np.int64)
        column = np.clip(column - window.first_column, 0, columns)
        cell = (row.astype(np.int64) - window.first_row) * (columns + 1) + column
        toggles ^= (np.bincount(cell, minlength=len(toggles)) & 1).astype(np.uint8)
        begin = end
    inside = np.bitwise_xor.accumulate(toggles.reshape(rows, columns + 1)[:, :columns], axis=1)
    return window.placed(inside.view(np.bool_))


def _points(xy: npt.NDArray[np.float64], height: int, width: int) -> tuple[int, int, Mask]:
    relative, base = _outline.relative_vertices(xy)
    low = np.floor(base + 0.5)
    return _cells(low + _rounded(relative + (base - low)), height, width)


def _drawn(ends: npt.NDArray[np.float64], height: int, width: int) -> tuple[int, int, Mask]:
    """Draw a line through whole numbers: equal steps, as many as the longer side has pixels.

    A piece that comes from outside begins at the image's border, as in ImageJ: which pixels it has
    depends, where it passes between two, on the image's size.
    """
    starts, stops = ends[:-1], ends[1:]
    low, high = np.minimum(starts, stops), np.maximum(starts, stops)
    seen = (high >= 0).all(axis=1) & (low < (width, height)).all(axis=1)
    if not seen.any():
        return 0, 0, np.zeros((0, 0), np.bool_)
    left, top = np.maximum(low[seen].min(axis=0), 0).astype(np.int64).tolist()
    right, bottom = np.minimum(high[seen].max(axis=0) + 1, (width, height)).astype(int).tolist()
    part = np.zeros((bottom - top, right - left), np.bool_)
    waiting: list[npt.NDArray[np.float64]] = []
    n_waiting = 0
    for start, end in zip(starts[seen].tolist(), stops[seen].tolist(), strict=True):
        dx, dy = end[0] - start[0], end[1] - start[1]
        n = max(abs(dx), abs(dy))
        steps = (dx / n, dy / n) if n else (0.0, 0.0)
        first, last = 0.0, n
        for at, step, size in zip(start, steps, (width, height), strict=True):
            if step:
                near, far = (-1, size) if step > 0 else (size, -1)
                first = max(first, math.trunc((near - at) / step))
                last = min(last, math.trunc((far - at) / step))
            elif not -1 <= at <= size:
                last = -1.0
        if first <= last:
            walk = np.empty((int(last - first) + 1, 2))
            walk[0] = start[0] + first * steps[0], start[1] + first * steps[1]
            walk[1:] = steps
            waiting.append(np.add.accumulate(walk))
            n_waiting += len(walk)
            if n_waiting > _CROSSINGS:  # many long pieces have very many pixels, the same ones
                _mark(part, waiting, left, top)
                n_waiting = 0
    _mark(part, waiting, left, top)
    return top, left, part


def _mark(part: Mask, places: list[npt.NDArray[np.float64]], left: int, top: int) -> None:
    """Mark x, y in a part of an image that begins at its left and top; then none waits."""
    if not places:
        return
    cells = _rounded(np.concatenate(places)) - (left, top)
    places.clear()
    cells = cells[(cells >= 0).all(axis=1) & (cells < part.shape[::-1]).all(axis=1)]
    x, y = cells.astype(np.int64).T
    part[y, x] = True


def _rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round half up as Java's ``Math.round``: floor(x + 0.5) is wrong just below a half."""
    low = np.floor(values)
    return low + (values - low >= 0.5)


def _cells(cells: npt.NDArray[np.float64], height: int, width: int) -> tuple[int, int, Mask]:
    seen = (cells >= 0).all(axis=1) & (cells[:, 0] < width) & (cells[:, 1] < height)
    if not seen.any():
        return 0, 0, np.zeros((0, 0), np.bool_)
    x, y = cells[seen].astype(np.int64).T
    left, top = int(x.min()), int(y.min())
    part = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), np.bool_)
    part[y - top, x - left] = True
    return top, left, part
