"""How a stream fares, as its viewer counts it: queues, ages and rates, also after its end."""

from __future__ import annotations

import functools
import mmap
import time
from collections import deque
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CLOSED_BY_WORKER",
    "ENDED_KEPT",
    "ENDED_KEPT_S",
    "RATE_WINDOW_S",
    "Counts",
    "EndedStreams",
    "package_version",
    "resident_nbytes",
]

#: How a stream ends that nothing is wrong with.
CLOSED_BY_WORKER: Final = "closed by the worker"

#: Seconds over which rates are averaged.
RATE_WINDOW_S: Final = 5.0
#: Streams that ended are listed for this long, and so many of them.
ENDED_KEPT_S: Final = 600.0
ENDED_KEPT: Final = 64
#: How exactly ages and rates are known, seconds: one mark for all that came within it.
_MARK_EVERY_S: Final = 0.25
_MOST_MARKS: Final = 1024


class Counts:
    """The items of one stream at one viewer.

    One thread counts; any other may read.

    Attributes
    ----------
    received, displayed, failed : int
        Items whose pixels were copied; of these, those that are on the screen; and those that
        failed, be it before or after they were received.
    dropped : int
        Items that its sender let go by its policy and never sent, as it says now and then.
    waiting : int
        Received, and neither displayed nor failed yet.
    nbytes : int
        Of the items that were received.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.received = self.displayed = self.failed = self.dropped = self.waiting = 0
        self.nbytes = 0
        self.started = clock()
        self._clock = clock
        # One thread writes them: (when, received, nbytes) at the first item of a while.
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=_MOST_MARKS)
        self._next_mark = 0.0

    def took(self, nbytes: int) -> None:
        """One item was received."""
        now = self._clock()
        if now >= self._next_mark:
            self._marks.append((now, self.received, self.nbytes))
            self._next_mark = now + _MARK_EVERY_S
        self.received += 1
        self.waiting += 1
        self.nbytes += nbytes

    def shown(self) -> None:
        """One that was received is displayed."""
        self.waiting -= 1
        self.displayed += 1

    def lost(self, *, was_received: bool) -> None:
        """One failed."""
        self.waiting -= was_received
        self.failed += 1

    @property
    def age_s(self) -> float:
        """Seconds since the stream began."""
        return self._clock() - self.started

    def totals(self) -> dict[str, int]:
        """For the log."""
        return {"received": self.received, "displayed": self.displayed, "failed": self.failed}

    def describe(self) -> dict[str, Any]:
        """All of it, JSON-able; the rates are of what was received in the last seconds."""
        now, marks = self._clock(), tuple(self._marks)
        items, nbytes, waiting = self.received, self.nbytes, self.waiting
        recent = next((mark for mark in marks if mark[0] > now - RATE_WINDOW_S), None)
        items_before, nbytes_before = recent[1:] if recent else (items, nbytes)
        span_s = max(min(now - self.started, RATE_WINDOW_S), _MARK_EVERY_S)
        oldest_s = 0.0
        if waiting:
            # Nearly all are shown in the order in which they came.
            settled = items - waiting
            since = [at for at, count, _ in marks if count <= settled] or [marks[0][0]]
            oldest_s = now - since[-1]
        return {
            "received": items,
            "displayed": self.displayed,
            "failed": self.failed,
            "waiting": waiting,
            "dropped": self.dropped,
            "nbytes": nbytes,
            "oldest_age_s": round(oldest_s, 3),
            "items_per_s": round((items - items_before) / span_s, 3),
            "bytes_per_s": round((nbytes - nbytes_before) / span_s),
        }


class EndedStreams:
    """Streams that have ended, for a while: what became of them, and how they ended.

    One thread enters them; any other may read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: deque[_Ended] = deque(maxlen=ENDED_KEPT)

    def add(
        self, key: object, facts: dict[str, Any], counts: Counts, how: str, session: str = ""
    ) -> None:
        """A stream ended.

        Parameters
        ----------
        key : object
            What it may be known by later: its connection's identity.
        facts : dict
            Its name and process.
        counts : Counts
            They may still change: what was received is shown.
        how : str
            "closed by the worker", "the worker died", ...
        session : str
            Random name of its session, by which it may come back.
        """
        self._rows.append(_Ended(key, facts, counts, how, self._clock(), session))

    def take_back(self, session: str) -> Counts | None:
        """The counts of a stream that goes on: it had only lost its connection."""
        for row in self._rows:
            if session and row.session == session:
                self._rows.remove(row)
                return row.counts
        return None

    def correct(self, key: object, how: str) -> None:
        """It is known better now how the stream of that key ended.

        The end of a worker's side lane may be seen before its good-bye, which takes another way.
        """
        for row in self._rows:
            if row.key == key:
                row.how = how

    def describe(self) -> list[dict[str, Any]]:
        """The last first; JSON-able."""
        now = self._clock()
        return [
            {
                **row.facts,
                **row.counts.describe(),
                "ended": row.how,
                "ended_s_ago": round(now - row.at, 3),
            }
            for row in reversed(tuple(self._rows))
            if now - row.at <= ENDED_KEPT_S
        ]


@functools.cache
def package_version() -> str:
    """Of this package as it is installed; empty where it is not."""
    try:
        return version("openhcs-stream")
    except PackageNotFoundError:
        return ""


def resident_nbytes() -> int:
    """Memory that this process has in the machine now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


class _Ended:
    __slots__ = ("at", "counts", "facts", "how", "key", "session")

    def __init__(
        self,
        key: object,
        facts: dict[str, Any],
        counts: Counts,
        how: str,
        at: float,
        session: str,
    ) -> None:
        self.key = key
        self.facts = facts
        self.counts = counts
        self.how = how
        self.at = at
        self.session = session
