"""Copies of large arrays, with a second thread's help where a processor idles."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.pixels._helper import Helper

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["HELPED_NBYTES", "Copier"]

#: From here on help is worth it: to wake a thread takes about a tenth of a millisecond, and two
#: threads take turns with the interpreter. Memory that was never written to has to be made first,
#: page by page, which takes many times as long as the copy.
HELPED_NBYTES: Final = 32 << 20
HELPED_FRESH_NBYTES: Final = 4 << 20
#: In how many parts an array is copied. Whoever is free takes the next: a helper that comes late
#: has done less, and nobody has waited for it.
_PARTS: Final = 4
#: With fewer processors each has something to do: the worker, the viewer, and who asks them.
_MIN_PROCESSORS: Final = 4


class Copier:
    """Copies arrays as `numpy.copyto` does; any thread may use it.

    Its thread is started apart, for who starts one waits until that runs. Until then, and whenever
    that is busy, the caller copies all by itself.
    """

    def __init__(self) -> None:
        self._helper: Helper | None = None
        self._is_wanted = False
        self._may_help = _processors() >= _MIN_PROCESSORS

    def copy(
        self, out: npt.NDArray[Any], source: npt.NDArray[Any], *, is_fresh: bool = False
    ) -> None:
        """Copy an array into another. An interrupt in the middle must be held off.

        Parameters
        ----------
        out : ndarray
            Where it goes.
        source : ndarray
            Of the same shape.
        is_fresh : bool
            The memory of `out` was never written to.

        Raises
        ------
        Exception
            Whatever `numpy.copyto` raises.
        """
        if out.nbytes < (HELPED_FRESH_NBYTES if is_fresh else HELPED_NBYTES):
            np.copyto(out, source)
            return
        self._is_wanted = True
        helper = self._helper
        axis = next((n for n, length in enumerate(out.shape) if length >= _PARTS), -1)
        if helper is None or axis < 0:
            np.copyto(out, source)
            return
        job = _Job(out, source, axis)
        helper.give(job.help)
        try:
            job.work()
        finally:
            job.finish()

    def start_if_wanted(self) -> None:
        """Start the thread if a large array was copied."""
        if self._is_wanted:
            self.start()

    def start(self) -> None:
        """Start the thread, where there are processors for it; it ends with `end`, or its owner."""
        if self._helper is None and self._may_help:
            try:
                self._helper = Helper(self, "openhcs-stream-copies")
            except RuntimeError:  # no more threads, or the interpreter is going down
                self._may_help = False

    def end(self) -> None:
        """End the thread; idempotent. Copies go on, without help."""
        self._may_help = False
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()


class _Job:
    """One array, of which its caller and the helper take parts in turn."""

    __slots__ = ("_ended", "_error", "_out", "_parts", "_source", "_taken")

    def __init__(self, out: npt.NDArray[Any], source: npt.NDArray[Any], axis: int) -> None:
        self._out, self._source = out, source
        length = out.shape[axis]
        step = -(-length // _PARTS)
        before = (slice(None),) * axis
        self._parts = deque((*before, slice(at, at + step)) for at in range(0, length, step))
        self._taken = threading.Lock()
        self._ended = threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None

    def work(self) -> None:
        """Copy parts until there are none left to take."""
        while True:
            try:
                part = self._parts.popleft()
            except IndexError:
                return
            np.copyto(self._out[part], self._source[part])

    def help(self) -> None:
        """Take part, unless the caller is ready already."""
        if not self._taken.acquire(blocking=False):
            return
        try:
            self.work()
        except BaseException as error:
            self._error = error
        finally:
            self._ended.release()

    def finish(self) -> None:
        """When the caller has no part left: wait for the helper's last, if it takes part."""
        if not self._taken.acquire(blocking=False):
            self._ended.acquire()
            if self._error is not None:
                raise self._error


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
