"""Smaller copies of very large planes, made on a thread of their own while the window goes on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

__all__ = ["Pyramid"]

#: Planes of a layer whose levels are kept: those that were wanted last. A third of a plane each.
MOST_PLANES = 2
#: Pixels that are taken in one step, between two looks at whether it is still wanted.
_STEP_PX = 1 << 22


class Pyramid:
    """Levels 1, 2, ... of planes: each half as high and wide as the one before, rounded up.

    All methods but the making itself belong to the viewer's own thread.

    Parameters
    ----------
    levels : int
        With the plane itself.
    exact : bool
        Every second pixel, as labels need it, instead of the mean of four.
    """

    def __init__(self, levels: int, *, exact: bool) -> None:
        self._levels = levels
        self._exact = exact
        #: By the address of their first pixel, which stays theirs as long as they are in here.
        self._made: dict[int, tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]] = {}
        self._job: _Job | None = None
        self._next: npt.NDArray[Any] | None = None

    def level(self, plane: npt.NDArray[Any], number: int) -> npt.NDArray[Any] | None:
        """A level of a plane, from 1; None where it is not made (yet)."""
        found = self._made.get(plane.ctypes.data)
        if found is None or found[0].shape != plane.shape or found[0].dtype != plane.dtype:
            return None
        return found[1][number - 1]

    def want(self, plane: npt.NDArray[Any]) -> None:
        """Have a plane's levels made: now, or after those that are being made."""
        at = plane.ctypes.data
        if at in self._made:
            self._made[at] = self._made.pop(at)  # the last to go
        elif self._job is None:
            self._job = _Job(plane, self._levels, exact=self._exact)
        elif self._job.plane.ctypes.data != at:
            self._next = plane

    def keep_only(self, planes: Iterable[npt.NDArray[Any]]) -> None:
        """All others have other pixels now, or are gone."""
        same = {plane.ctypes.data for plane in planes}
        for at in self._made.keys() - same:
            del self._made[at]
        if self._next is not None and self._next.ctypes.data not in same:
            self._next = None
        if self._job is not None and self._job.plane.ctypes.data not in same:
            self._job.drop()
            self._job, waiting = None, self._next
            self._next = None
            if waiting is not None:
                self.want(waiting)

    def take_made(self) -> bool:
        """Take in what has been made since the last call; whether there was anything."""
        job = self._job
        if job is None or not job.is_done:
            return False
        self._job = None
        if self._next is not None:
            self._job, self._next = _Job(self._next, self._levels, exact=self._exact), None
        while len(self._made) >= MOST_PLANES:
            del self._made[next(iter(self._made))]
        self._made[job.plane.ctypes.data] = (job.plane, job.levels)
        return True

    @property
    def is_busy(self) -> bool:
        """Whether levels are being made, or wait to be taken in."""
        return self._job is not None

    def close(self) -> None:
        """Make no more, and let go of all."""
        if self._job is not None:
            self._job.drop()
        self._job = self._next = None
        self._made.clear()


class _Job:
    """One plane's levels, on a thread that ends with them."""

    def __init__(self, plane: npt.NDArray[Any], levels: int, *, exact: bool) -> None:
        self.plane = plane
        self.levels: list[npt.NDArray[Any]] = []
        self.is_done = False
        self._count = levels - 1
        # Four whole numbers of 8 bytes may have a sum that no type holds.
        self._exact = exact or plane.dtype.kind == "b" or plane.dtype.str[1:] in ("i8", "u8")
        self._is_dropped = False
        threading.Thread(target=self._run, name="pyramid", daemon=True).start()

    def drop(self) -> None:
        """Stop soon: nobody wants it."""
        self._is_dropped = True

    def _run(self) -> None:
        level = self.plane
        for _ in range(self._count):
            smaller = self._halve(level)
            if self._is_dropped:
                return
            self.levels.append(smaller)
            level = smaller
        self.is_done = True

    def _halve(self, level: npt.NDArray[Any]) -> npt.NDArray[Any]:
        height, width = ((length + 1) // 2 for length in level.shape[:2])
        smaller = np.empty((height, width, *level.shape[2:]), level.dtype)
        rows = max(1, _STEP_PX // max(1, 4 * width))
        for top in range(0, height, rows):
            if self._is_dropped:
                break
            piece = level[2 * top : 2 * (top + rows)]
            smaller[top : top + rows] = piece[::2, ::2] if self._exact else _mean_of_four(piece)
        return smaller


def _mean_of_four(piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Means of 2 x 2 pixels, (H, W) or (H, W, S); an odd last row or column goes with itself."""
    wide: Any = piece.dtype
    if wide.kind in "iu":
        wide = np.dtype(f"{wide.kind}{min(8, 2 * wide.itemsize)}")
    elif wide.itemsize < 4:
        wide = np.dtype(np.float32)
    above, below = piece[::2], piece[1::2]
    rows = np.add(above[: len(below)], below, dtype=wide)
    if len(below) < len(above):
        rows = np.concatenate([rows, np.multiply(above[-1:], 2, dtype=wide)])
    left, right = rows[:, ::2], rows[:, 1::2]
    total = left.copy()
    total[:, : right.shape[1]] += right
    if right.shape[1] < left.shape[1]:
        total[:, -1:] *= 2
    mean: npt.NDArray[Any] = total // 4 if piece.dtype.kind in "iu" else total / 4
    return mean.astype(piece.dtype, copy=False)
