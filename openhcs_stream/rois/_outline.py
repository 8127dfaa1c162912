"""What a ROI's outline is, as straight pieces: ellipses, curves and splines as ImageJ cuts them.

ImageJ computes in float32 where this does, and in the same order: whether a pixel's centre lies on
an outline is decided by the last bit. Sources: ``EllipseRoi``, ``RotatedRectRoi``, ``PolygonRoi``,
``ShapeRoi`` and ``SplineFitter`` of ImageJ 1.54p, ``FlatteningPathIterator`` and
``RoundRectangle2D`` of Java.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.rois._details import Corners, Path, Spline

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.rois._model import Roi

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float32]

__all__ = [
    "CURVE_FLATNESS",
    "FARTHEST",
    "aspect_ratio",
    "ellipse_vertices",
    "int_box",
    "path_rings",
    "rectangle_corners",
    "rectangle_width",
    "rings",
    "rounded_path",
    "spline_relative",
]

#: ImageJ draws an EllipseRoi with this many vertices.
ELLIPSE_VERTICES: Final = 72
#: How far from a curve its straight pieces may be, in pixels, where ImageJ fills it.
CURVE_FLATNESS: Final = 0.01
#: ImageJ's bounds are integers of 32 bits: what is computed of vertices that lie farther from the
#: origin is computed of the nearest place here, where float32 still has room for squares.
FARTHEST: Final = 1e9
#: ImageJ cuts a spline into pieces of two pixels, however long it is. Here it has as many pieces as
#: there up to this number, that is up to a length of 131 072 pixels, more than a whole slide is
#: wide; a longer one has this many longer ones. They are shorter where vertices are close: beside
#: one vertex at 1 000 000 the rest of an outline moves by less than a thousandth of a pixel, and
#: farther away float32 moves it more. Without it one changed byte of a file takes gigabytes.
SPLINE_POINTS: Final = 1 << 16
#: As many has a spline that is kept or drawn and not only filled, because napari takes some 20 ms
#: to draw them: 2048 pixels in ImageJ's own pieces.
DRAWN_SPLINE_POINTS: Final = 1 << 10
#: A spline of many vertices has so many points for each of them, if that is more.
_POINTS_OF_VERTEX: Final = 32
_VERTICES_OF_SEGMENT: Final = (1, 1, 2, 3, 0)
_DEEPEST: Final = 10  # a curve is halved so many times at most
_MOST_PIECES: Final = 1 << 20  # of a path's curves together: very many are halved less often
_SHALLOWEST: Final = 3
_TINY: Final = np.float32(1.4e-45)  # Float.MIN_VALUE, from which ImageJ starts to look for the most


def rings(roi: Roi) -> list[npt.NDArray[np.float64]]:
    """Give the closed rings of an area, or the one open line of a line, as straight pieces.

    Returns
    -------
    list of (N, 2) float64
        x, y in ImageJ's convention, all finite. Upright ovals have 72 vertices here; `to_mask`
        counts their pixels by another rule. A very long spline has `DRAWN_SPLINE_POINTS`, or 32
        for each of its vertices where that is more.
    """
    xy = roi.coordinates
    match roi.kind:
        case "rectangle" | "text":
            return [_box_corners(xy)]
        case "oval":
            (left, top), (right, bottom) = xy
            # Halved first: the sum of two numbers that are finite need not be.
            centre = left / 2 + right / 2, top / 2 + bottom / 2
            angle = np.linspace(0, 2 * np.pi, ELLIPSE_VERTICES, endpoint=False)
            x = centre[0] + np.cos(angle) * (right / 2 - left / 2)
            return [np.stack([x, centre[1] + np.sin(angle) * (bottom / 2 - top / 2)], axis=1)]
        case "ellipse":
            return [ellipse_vertices(within_reach(xy)).astype(np.float64)]
        case "rotated rectangle":
            return [rectangle_corners(within_reach(xy)).astype(np.float64)]
        case "rounded rectangle":
            assert isinstance(roi.details, Corners)
            (left, top), (right, bottom) = within_reach(xy).tolist()
            points, segments = rounded_path(
                left, top, right - left, bottom - top, roi.details.diameter
            )
            return path_rings(points, segments)
        case "composite":
            assert isinstance(roi.details, Path)
            segments = roi.details.segments
            return path_rings(within_reach(xy) if _has_curves(segments) else xy, segments)
        case _:
            if isinstance(roi.details, Spline):
                relative, base = spline_relative(roi, DRAWN_SPLINE_POINTS)
                return [relative.astype(np.float64) + base]
            return [xy]


def within_reach(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Move what lies beyond `FARTHEST` there."""
    return xy if np.abs(xy).max() <= FARTHEST else np.clip(xy, -FARTHEST, FARTHEST)


def is_whole(xy: Array) -> bool:
    """Whether ImageJ's 16-bit coordinates hold them, so that nothing is written in floats."""
    return bool(((xy == np.rint(xy)) & (xy >= -5000) & (xy <= 60535)).all())


# --- boxes, ellipses, rotated rectangles ----------------------------------------------------------


def int_box(xy: npt.NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Find the left, top, width and height that ImageJ counts pixels with."""
    start, size = xy[0], xy[1] - xy[0]
    if not is_whole(xy):  # it is written, and read, in float32
        start, size = start.astype(np.float32), size.astype(np.float32)
    width, height = (max(1, math.ceil(number)) for number in size.tolist())
    left, top = (int(number) for number in start.tolist())  # toward zero, as Java's cast
    return left, top, width, height


def aspect_ratio(xy: npt.NDArray[np.float64]) -> float:
    """Minor over major axis of an ellipse of three points."""
    centre = (xy[0] + xy[1]) / 2
    major = float(np.hypot(*(xy[1] - centre)))
    return float(np.hypot(*(xy[2] - centre))) / major if major else 1.0


def rectangle_width(xy: npt.NDArray[np.float64]) -> float:
    """How wide a rotated rectangle of three points is, across its middle line."""
    return 2 * float(np.hypot(*(xy[2] - (xy[0] + xy[1]) / 2)))


def major_first(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn an ellipse's three points so that its longer axis comes first, as ImageJ wants it."""
    centre = (xy[0] + xy[1]) / 2
    side = xy[2] - centre
    if np.hypot(*side) <= np.hypot(*(xy[1] - centre)):
        return xy
    return np.stack([centre - side, centre + side, xy[1]])


def ellipse_vertices(xy: npt.NDArray[np.float64]) -> Floats:
    """Compute the 72 vertices of an ellipse of three points."""
    xy = major_first(xy)
    ratio = min(float(np.float32(aspect_ratio(xy))), 1.0)
    (x1, y1), (x2, y2) = xy[:2].astype(np.float32).astype(np.float64).tolist()
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    dx, dy = x2 - x1, y2 - y1
    major = math.sqrt(dx * dx + dy * dy)
    minor = major * ratio
    alpha = math.atan2(dy, dx) * 180.0 / math.pi
    made = np.empty((ELLIPSE_VERTICES, 2), np.float32)
    for i in range(ELLIPSE_VERTICES):
        beta = i * 360.0 / ELLIPSE_VERTICES / 180.0 * math.pi
        dx, dy = math.cos(beta) * major / 2.0, math.sin(beta) * minor / 2.0
        turned = math.atan2(dy, dx) + alpha / 180.0 * math.pi
        radius = math.sqrt(dx * dx + dy * dy)
        made[i] = centre_x + math.cos(turned) * radius, centre_y + math.sin(turned) * radius
    return made


def rectangle_corners(xy: npt.NDArray[np.float64]) -> Floats:
    """Compute the four corners of a rotated rectangle of three points."""
    (x1, y1), (x2, y2) = xy[:2].astype(np.float32).astype(np.float64).tolist()
    width = float(np.float32(rectangle_width(xy)))
    length = math.sqrt((x2 - x1) * (x2 - x1) + (y2 - y1) * (y2 - y1))
    if not length:  # ImageJ would divide by zero
        return np.array([(x1, y1)] * 4, np.float32)
    wsa, wca = 0.5 * width * (y2 - y1) / length, -0.5 * width * (x2 - x1) / length
    return np.array(
        [(x1 + wsa, y1 + wca), (x2 + wsa, y2 + wca), (x2 - wsa, y2 - wca), (x1 - wsa, y1 - wca)],
        np.float32,
    )


def _box_corners(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    (left, top), (right, bottom) = xy
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


# --- paths with curves ----------------------------------------------------------------------------


def rounded_path(
    left: float, top: float, width: float, height: float, diameter: float
) -> tuple[npt.NDArray[np.float64], bytes]:
    """Make the path of a rounded rectangle, as ``RoundRectangle2D`` walks it."""
    a = 1.0 - math.cos(math.pi / 4)
    b = math.tan(math.pi / 4)
    c = math.sqrt(1.0 + b * b) - 1.0 + a
    near = (1.0 - 4.0 / 3.0 * a * b / c) / 2.0
    across, down = min(width, diameter), min(height, diameter)
    # Each point is so many widths plus corners to the right, so many heights plus corners down.
    steps = [
        (0, 0, 0, 0.5), (0, 0, 1, -0.5),
        (0, 0, 1, -near), (0, near, 1, 0), (0, 0.5, 1, 0), (1, -0.5, 1, 0),
        (1, -near, 1, 0), (1, 0, 1, -near), (1, 0, 1, -0.5), (1, 0, 0, 0.5),
        (1, 0, 0, near), (1, -near, 0, 0), (1, -0.5, 0, 0), (0, 0.5, 0, 0),
        (0, near, 0, 0), (0, 0, 0, near), (0, 0, 0, 0.5),
    ]  # fmt: skip
    points = [(left + w * width + u * across, top + h * height + v * down) for w, u, h, v in steps]
    return np.array(points, np.float64), b"\0\1\3\1\3\1\3\1\3\4"


def _has_curves(segments: bytes) -> bool:
    return b"\2" in segments or b"\3" in segments


def path_rings(points: Array, segments: bytes) -> list[npt.NDArray[np.float64]]:
    """Cut a path into rings of straight pieces; open ones are closed by whoever fills them."""
    pairs: list[list[float]] = points.tolist()
    made: list[npt.NDArray[np.float64]] = []
    ring: list[tuple[float, float]] = []
    at = 0
    start = here = (0.0, 0.0)
    n_curves = segments.count(2) + segments.count(3)
    deepest = _DEEPEST
    while deepest > _SHALLOWEST and n_curves << deepest > _MOST_PIECES:
        deepest -= 1

    def finish() -> None:
        if ring:
            made.append(np.array(ring, np.float64))
            ring.clear()

    for kind in segments:
        if kind == 4:
            if len(ring) > 1 and ring[-1] == ring[0]:
                ring.pop()
            finish()
            here = start
            continue
        count = 1 if kind < 2 else kind
        ends = [(pair[0], pair[1]) for pair in pairs[at : at + count]]
        at += count
        if kind == 0:
            finish()
            start = ends[0]
            ring.append(start)
        elif kind == 1:
            ring.append(ends[0])
        else:
            ring.extend(_flattened([here, *ends], CURVE_FLATNESS**2, deepest))
        here = ends[-1]
    finish()
    return made


def path_low(points: npt.NDArray[np.float64], segments: bytes) -> npt.NDArray[np.float64]:
    """Find the least x and y of a path; of its curves, not of their control points (Java 19)."""
    found = []
    at = 0
    for kind in segments:
        count = _VERTICES_OF_SEGMENT[kind]
        curve = points[max(at - 1, 0) : at + count]
        at += count
        if count:
            found.append(points[at - 1])
        if kind in (2, 3):
            inner = np.diff(curve, axis=0)
            for axis in (0, 1):
                d = inner[:, axis].tolist()
                # The derivative's coefficients, from t squared down.
                roots = (
                    np.roots([d[1] - d[0], d[0]])
                    if kind == 2
                    else np.roots([d[0] - 2 * d[1] + d[2], 2 * (d[1] - d[0]), d[0]])
                )
                for t in roots[np.isreal(roots)].real:
                    if 0 < t < 1:
                        pieces = curve
                        while len(pieces) > 1:
                            pieces = pieces[:-1] + (pieces[1:] - pieces[:-1]) * t
                        found.append(pieces[0])
    low: npt.NDArray[np.float64] = np.min(found, axis=0)
    return low


def _flattened(
    curve: list[tuple[float, float]], flat_squared: float, deepest: int
) -> list[tuple[float, float]]:
    """Give the ends of the straight pieces of a Bézier curve of three or four points."""
    first, last = curve[0], curve[-1]
    if deepest <= 0 or all(
        _distance_squared(first, last, control) < flat_squared for control in curve[1:-1]
    ):
        return [last]
    left, right = [first], [last]
    while len(curve) > 1:  # de Casteljau's halving
        curve = [((p[0] + q[0]) / 2, (p[1] + q[1]) / 2) for p, q in itertools.pairwise(curve)]
        left.append(curve[0])
        right.append(curve[-1])
    return [
        *_flattened(left, flat_squared, deepest - 1),
        *_flattened(right[::-1], flat_squared, deepest - 1),
    ]


def _distance_squared(
    start: tuple[float, float], end: tuple[float, float], point: tuple[float, float]
) -> float:
    """From a point to a piece of a line, as ``Line2D.ptSegDistSq``."""
    x2, y2 = end[0] - start[0], end[1] - start[1]
    px, py = point[0] - start[0], point[1] - start[1]
    dot = px * x2 + py * y2
    projected = 0.0
    if dot > 0.0:
        px, py = x2 - px, y2 - py
        dot = px * x2 + py * y2
        if dot > 0.0:
            projected = dot * dot / (x2 * x2 + y2 * y2)
    return max(px * px + py * py - projected, 0.0)


# --- splines --------------------------------------------------------------------------------------


def relative_vertices(
    xy: npt.NDArray[np.float64],
) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Make vertices relative to their bounds, as ImageJ keeps them: float32, and their origin."""
    floats = xy.astype(np.float32)
    base = floats.min(axis=0)
    return floats - base, base.astype(np.float64)


def most(xy: Floats) -> Floats:
    """Find the right and bottom as ImageJ does, which never finds less than about 0."""
    found: Floats = np.maximum(xy.max(axis=0), _TINY)
    return found


def spline_relative(roi: Roi, most: int = SPLINE_POINTS) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Compute the points of a spline, relative to their bounds, and the bounds' origin.

    Parameters
    ----------
    roi : Roi
        An outline or line with `Spline`.
    most : int
        Points that it may have, but for one of very many vertices.

    Returns
    -------
    relative : (N, 2) float32
    base : (2,) float64
        Where vertices that are far away leave no room between others in float32, so that ImageJ
        divides by zero, these are the vertices themselves: a polygon, or a line.
    """
    is_line = not roi.is_area
    relative, base = relative_vertices(within_reach(roi.coordinates))
    n_points = max(100, int(_length(roi, relative, is_line) / 2.0))
    n_points = min(n_points, max(most, _POINTS_OF_VERTEX * len(relative)))
    closed = relative if is_line else np.concatenate([relative, relative[:1]])
    positions = np.zeros(len(closed), np.float32)
    for i in range(1, len(closed)):
        # The last step of a closed one is measured the other way round; the square is the same.
        dx, dy = closed[i] - closed[i - 1]
        step = np.float32(math.sqrt(math.sqrt(dx * dx + dy * dy)))
        positions[i] = positions[i - 1] + max(step, np.float32(0.001))
    end = float(positions[-1])
    if not is_line:
        positions, closed = _around(positions, closed)
    if not (np.diff(positions) > 0).all():
        return relative, base
    at = np.arange(n_points, dtype=np.float64) * (end / (n_points - 1))
    spline = np.stack(
        [_Spline(positions, closed[:, axis]).at(at) for axis in (0, 1)], axis=1
    ).astype(np.float32)
    spline = spline + base.astype(np.float32)
    return relative_vertices(spline.astype(np.float64))


def _around(x: Floats, xy: Floats) -> tuple[Floats, Floats]:
    """Let the knots of a closed spline go on for 7 more at both ends."""
    n = len(x)
    more = min(7, n - 1)
    before, after = slice(n - 1 - more, n - 1), slice(1, more + 1)
    x = np.concatenate([x[before] - x[-1], x, x[after] - x[0] + x[-1]])
    return x, np.concatenate([xy[before], xy, xy[after]])


def _length(roi: Roi, xy: Floats, is_line: bool) -> float:
    """Measure the length that ImageJ measures: smoothed for freehand, counted for traced."""
    n = len(xy)
    upright = bool(
        (np.diff(xy, axis=0, append=xy[:1]) == 0).any(axis=1).all() and (xy == np.trunc(xy)).all()
    )
    if roi.kind == "traced":
        return 0.0  # a splined one is kept in floats, of which ImageJ finds "not a number"
    if roi.kind == "polygon" and upright:
        return _traced_length(xy.astype(int).tolist()) if n >= 4 else 0.0
    if n > 2 and (
        roi.kind == "freehand" or (roi.kind == "freeline" and bool((np.ptp(xy, axis=0) > 0).all()))
    ):
        first = (xy[0] + xy[1] + xy[2]).astype(np.float64) / 3.0 - xy[0]
        middle = (xy[3:] - xy[:-3]).astype(np.float64) / 3.0
        last = xy[-1] - (xy[-3] + xy[-2] + xy[-1]).astype(np.float64) / 3.0
        steps = np.concatenate([first[None], middle, last[None]])
        if roi.kind == "freehand":
            steps = np.concatenate([steps, (xy[-1:] - xy[:1]).astype(np.float64)])
    else:
        steps = np.diff(xy if is_line else np.concatenate([xy, xy[:1]]), axis=0).astype(np.float64)
    return sum(math.sqrt(dx * dx + dy * dy) for dx, dy in steps.tolist())


def _traced_length(xy: list[list[int]]) -> float:
    total = corners = 0
    corner = False
    dx1, dy1 = xy[0][0] - xy[-1][0], xy[0][1] - xy[-1][1]
    side1 = abs(dx1) + abs(dy1)
    for i in range(len(xy)):
        following = xy[(i + 1) % len(xy)]
        dx2, dy2 = following[0] - xy[i][0], following[1] - xy[i][1]
        total += abs(dx1) + abs(dy1)
        side2 = abs(dx2) + abs(dy2)
        corner = side1 > 1 or not corner
        corners += corner
        dx1, dy1, side1 = dx2, dy2, side2
    return total - corners * (2.0 - math.sqrt(2.0))


class _Spline:
    """A cubic spline through knots in float32, which rise."""

    def __init__(self, x: Floats, y: Floats) -> None:
        n = len(x)
        self._x, self._y = x, y
        second, factor = [0.0] * n, [0.0] * n
        knots: list[float] = x.astype(np.float64).tolist()
        values: list[float] = y.astype(np.float64).tolist()
        gap = float(x[1] - x[0])
        slope = float(y[1] - y[0]) / gap
        for j in range(1, n - 1):
            before_gap, before_slope = gap, slope
            gap = knots[j + 1] - knots[j]
            slope = (values[j + 1] - values[j]) / gap
            share = 1.0 / (2.0 * (gap + before_gap) - before_gap * factor[j - 1])
            second[j] = (6.0 * (slope - before_slope) - before_gap * second[j - 1]) * share
            factor[j] = gap * share
        for j in range(n - 2, -1, -1):
            second[j] -= factor[j] * second[j + 1]
        self._second = np.array(second)

    def at(self, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y, second = self._x, self._y, self._second
        left = np.clip(np.searchsorted(x, positions, side="left") - 1, 0, len(x) - 2)
        right = left + 1
        gap = (x[right] - x[left]).astype(np.float64)
        after, before = positions - x[left], x[right] - positions
        lower = after * y[right] + before * y[left]
        c = (after * after - gap * gap) * after * second[right]
        d = (before * before - gap * gap) * before * second[left]
        made: npt.NDArray[np.float64] = (lower + (c + d) / 6.0) / gap
        return made
