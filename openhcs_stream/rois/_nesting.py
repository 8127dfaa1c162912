"""Which ring lies in which: the rings of an area, sorted into polygons with holes.

A ring is looked up only in the rings whose bounds are around it, and of those only the edges that
cross its row: the time grows with the rings that really lie in each other, not with the square of
their number. What is held in memory at a time is bounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Numbers = npt.NDArray[np.int64]

__all__ = ["polygons_of"]

#: Pairs of rings, or of rings and edges, that are looked at in one go.
_PAIRS: Final = 1 << 21


def polygons_of(rings: list[npt.NDArray[np.float64]]) -> list[list[int]]:
    """Sort rings into polygons by the even-odd rule.

    Parameters
    ----------
    rings : list of (N, 2) arrays, N >= 1
        x, y of each ring, without a last vertex that repeats the first.

    Returns
    -------
    list of lists of int
        For each polygon the numbers of its rings: the outer one, then its holes. A ring is a hole
        where an odd number of others are around it, and belongs to the innermost of these that is
        an outer ring itself.
    """
    n = len(rings)
    if n == 1:
        return [[0]]
    all_rings = _Rings(rings)
    depth = np.zeros(n, np.int64)
    for inner, _ in all_rings.pairs(np.arange(n)):
        depth += np.bincount(inner, minlength=n)
    holes = np.flatnonzero(depth % 2)
    owner = np.full(n, -1, np.int64)
    best = np.full(n, -1, np.int64)
    for inner, outer in all_rings.pairs(holes):
        is_outer = depth[outer] % 2 == 0
        inner, outer = inner[is_outer], outer[is_outer]
        # The deepest of a ring comes last; of equals, the first.
        order = np.lexsort((-outer, depth[outer], inner))
        inner, outer = inner[order], outer[order]
        last = np.append(inner[1:] != inner[:-1], True)[: len(inner)]
        inner, outer = inner[last], outer[last]
        better = depth[outer] > best[inner]
        inner, outer = inner[better], outer[better]
        owner[inner], best[inner] = outer, depth[outer]
    polygons = {i: [i] for i in np.flatnonzero(depth % 2 == 0).tolist()}
    for hole in holes.tolist():
        if owner[hole] >= 0:
            polygons[int(owner[hole])].append(hole)
        else:  # rings that cross each other: better an island than nothing
            polygons[hole] = [hole]
    return list(polygons.values())


class _Rings:
    """All edges of all rings, and a point of each ring: the middle of its longest edge.

    A middle, because rings may touch at their corners.
    """

    def __init__(self, rings: list[npt.NDArray[np.float64]]) -> None:
        self.counts = np.array([len(ring) for ring in rings])
        self.stops = np.cumsum(self.counts)
        self.begins = self.stops - self.counts
        self.starts = np.concatenate(rings)
        after = np.arange(1, len(self.starts) + 1)
        after[self.stops - 1] = self.begins
        self.ends = self.starts[after]
        self.lows = np.minimum.reduceat(self.starts, self.begins, axis=0)
        self.highs = np.maximum.reduceat(self.starts, self.begins, axis=0)
        lengths = np.hypot(*(self.ends - self.starts).T)
        of_ring = np.repeat(np.arange(len(rings)), self.counts)
        first = np.lexsort((np.arange(len(lengths)), -lengths, of_ring))[self.begins]
        self.points = (self.starts[first] + self.ends[first]) / 2

    def pairs(self, which: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """Find which of all rings are around the points of some.

        Yields
        ------
        inner, outer : arrays of int
            All rings around one inner ring come in no order, and maybe in several parts.
        """
        for outer, inner in self._in_bounds(which):
            inside = self._inside(outer, inner)
            yield inner[inside], outer[inside]

    def _in_bounds(self, which: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """Pair rings with the others' points within their bounds.

        The points lie in strips of equal numbers by y, and in each in the order of x: a ring looks
        through the strips that it meets.
        """
        if not len(which):
            return
        by_y = which[np.argsort(self.points[which, 1], kind="stable")]
        y = self.points[by_y, 1]
        height = max(1, math.isqrt(len(by_y)))  # points of a strip
        strip = np.arange(len(by_y)) // height
        order = np.lexsort((self.points[by_y, 0], strip))
        by_x = by_y[order]
        # Ranks instead of x, so that a strip and a place in it make one whole number.
        values = np.sort(self.points[which, 0])
        span = len(values) + 1
        keys = strip * span + np.searchsorted(values, self.points[by_x, 0], side="left")
        low = np.searchsorted(values, self.lows[:, 0], side="left")
        high = np.searchsorted(values, self.highs[:, 0], side="right")
        top = np.searchsorted(y, self.lows[:, 1], side="left")
        bottom = np.searchsorted(y, self.highs[:, 1], side="right")
        first = top // height
        strips = np.where(bottom > top, (bottom - 1) // height - first + 1, 0)
        for ring, offset in _expanded(strips):
            here = (first[ring] + offset) * span
            begin = np.searchsorted(keys, here + low[ring], side="left")
            end = np.searchsorted(keys, here + high[ring], side="left")
            for which_one, step in _expanded(np.maximum(end - begin, 0)):
                outer, inner = ring[which_one], by_x[begin[which_one] + step]
                at = self.points[inner]
                kept = (
                    (outer != inner)
                    & ((self.lows[outer] <= at) & (at <= self.highs[outer])).all(axis=1)
                )  # fmt: skip
                if kept.any():
                    yield outer[kept], inner[kept]

    def _inside(self, outer: Numbers, inner: Numbers) -> npt.NDArray[np.bool_]:
        """Whether each inner ring's point has an odd number of edges of its outer one beside it."""
        y = self.points[inner, 1]
        values = np.unique(y)
        span = len(values) + 1
        order = np.lexsort((y, outer))
        keys = outer[order] * span + np.searchsorted(values, y[order])
        rings = np.unique(outer)
        counts = self.counts[rings]
        edge = np.arange(int(counts.sum()))
        edge += np.repeat(self.begins[rings] - (np.cumsum(counts) - counts), counts)
        ring = np.repeat(rings, counts)
        y1, y2 = self.starts[edge, 1], self.ends[edge, 1]
        begin = np.searchsorted(keys, ring * span + np.searchsorted(values, np.minimum(y1, y2)))
        end = np.searchsorted(keys, ring * span + np.searchsorted(values, np.maximum(y1, y2)))
        crossings = np.zeros(len(outer), np.int64)
        for which_edge, step in _expanded(end - begin):
            pair = order[begin[which_edge] + step]
            a, b = self.starts[edge[which_edge]], self.ends[edge[which_edge]]
            at = self.points[inner[pair]]
            share = (at[:, 1] - a[:, 1]) / (b[:, 1] - a[:, 1])
            beyond = a[:, 0] + share * (b[:, 0] - a[:, 0]) > at[:, 0]
            crossings += np.bincount(pair[beyond], minlength=len(crossings))
        found: npt.NDArray[np.bool_] = crossings % 2 == 1
        return found


def _expanded(counts: Array) -> Iterator[tuple[Numbers, Numbers]]:
    """Count up to each number: (0, 0), (0, 1) ... of all, so many at a time."""
    stops = np.cumsum(counts, dtype=np.int64)
    total = int(stops[-1]) if len(stops) else 0
    for begin in range(0, total, _PAIRS):
        at = np.arange(begin, min(begin + _PAIRS, total))
        which = np.searchsorted(stops, at, side="right")
        yield which, at - (stops[which] - counts[which])
