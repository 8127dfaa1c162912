"""The queue tracker: what is sent, received, displayed, failed, dropped, by stream and viewer.

Every stream keeps one `QueueTracker` for each of its viewers, and the process has one
`registry()` of them all. Everything may be called from any thread.

The counts obey, at each moment::

    sent == waiting + displayed + failed
    received <= sent                       (an item is received before it is displayed)

A viewer of another project may be unable to tell what it displays; what it received then waits no
more, and is only counted there. Items that a back-pressure policy dropped were never sent and are
counted apart.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "DropReason",
    "ItemState",
    "QueueEvent",
    "QueueState",
    "QueueStatus",
    "QueueTracker",
    "TrackerRegistry",
    "registry",
    "snapshot",
]

logger = logging.getLogger(__name__)

ItemState: TypeAlias = Literal["sent", "received", "displayed", "failed", "dropped"]
#: What may happen to a queue as a whole: its viewer is gone, is back; it is three quarters full, is
#: full.
QueueState: TypeAlias = Literal["lost", "back", "nearly full", "full"]
#: Why an item was dropped: there was no room; a newer one of its place came; only every n-th is
#: sent; its viewer was gone, and others got it.
DropReason: TypeAlias = Literal["full", "replaced", "sampled", "absent"]

#: Seconds over which the rate is averaged.
RATE_WINDOW_S = 5.0
#: Seconds after which a waiting item is named as stuck.
STUCK_AFTER_S = 30.0
#: Finished streams whose counts the registry remembers.
REMEMBERED = 256


class QueueStatus(NamedTuple):
    """One queue at one moment."""

    stream: str
    viewer: str
    sent: int
    received: int
    displayed: int
    failed: int
    dropped: int
    dropped_by: dict[DropReason, int]  #: the same by reason
    nearly_full: int  #: how often it became three quarters full
    full: int  #: how often it became full
    lost: str  #: why the viewer is gone; empty while it is there
    waiting: int  #: sent, and neither displayed nor failed yet
    oldest_age_s: float  #: of the item that waits longest; 0 when none waits
    rate_per_s: float  #: items displayed per second, over the last few seconds
    stuck: tuple[str, ...]  #: names of items that wait for longer than half a minute
    closed: bool


class QueueEvent(NamedTuple):
    """Items of one queue that changed to `state` together; or the queue as a whole did."""

    stream: str
    viewer: str
    state: ItemState | QueueState
    names: tuple[str, ...]  #: of the items; none where the state is the queue's
    #: one per name where state is "failed"; one for all where it is "dropped" or "lost"
    reasons: tuple[str, ...] = ()


class QueueTracker:
    """Counts the items of one stream on their way to one viewer.

    Parameters
    ----------
    stream, viewer : str
        What a person calls them.
    clock : callable, optional
        Seconds, monotonic.
    """

    def __init__(
        self,
        stream: str,
        viewer: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        listeners: Sequence[Callable[[QueueEvent], None]] = (),
    ) -> None:
        self.stream = stream
        self.viewer = viewer
        self.closed = False
        self._clock = clock
        self._listeners = listeners
        self._lock = threading.Lock()
        # In the order of sending, so that the first is the oldest.
        self._waiting: dict[int, tuple[float, object]] = {}
        self._sent = self._received = self._displayed = self._failed = 0
        self._dropped: Counter[DropReason] = Counter()
        self._nearly_full = self._full = 0
        self._lost = ""
        self._recent: deque[tuple[float, int]] = deque()

    def sent(self, items: Sequence[tuple[int, object]]) -> None:
        """Register items before they go out.

        Parameters
        ----------
        items : sequence of (key, name)
            A number that is unique in this queue, and anything whose `str` names the item.
        """
        now = self._clock()
        with self._lock:
            for key, name in items:
                self._waiting[key] = (now, name)
            self._sent += len(items)
        if self._listeners:
            self._tell("sent", [str(name) for _, name in items])

    def received(self, keys: Sequence[int]) -> None:
        """Their pixels are the viewer's."""
        with self._lock:
            self._received += len(keys)
            names = self._names(keys) if self._listeners else []
        if names:
            self._tell("received", names)

    def displayed(self, keys: Sequence[int]) -> None:
        """They are on the screen."""
        now = self._clock()
        with self._lock:
            names = self._names(keys) if self._listeners else []
            for key in keys:
                self._waiting.pop(key, None)
            self._displayed += len(keys)
            recent = self._recent
            recent.append((now, len(keys)))
            while recent[0][0] < now - RATE_WINDOW_S:
                recent.popleft()
        if names:
            self._tell("displayed", names)

    def told(self, keys: Sequence[int]) -> None:
        """Nothing more will be told of them: this viewer can't say what it displays."""
        with self._lock:
            for key in keys:
                self._waiting.pop(key, None)

    def failed(self, failures: Sequence[tuple[int, str]]) -> None:
        """They will not be shown; (key, reason) of each."""
        with self._lock:
            names = self._names([key for key, _ in failures])
            for key, _ in failures:
                self._waiting.pop(key, None)
            self._failed += len(failures)
        by_reason: dict[str, list[str]] = {}
        for name, (_, reason) in zip(names, failures, strict=True):
            by_reason.setdefault(reason, []).append(name)
        for reason, same in by_reason.items():  # a viewer that is gone fails them by the hundred
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            logger.warning("%s could not show %s%s: %s", self.viewer, same[0], more, reason)
        if self._listeners:
            self._tell("failed", names, [reason for _, reason in failures])

    def dropped(self, names: Sequence[object], why: DropReason = "full") -> None:
        """A policy let them go; they were never sent."""
        with self._lock:
            self._dropped[why] += len(names)
        if self._listeners and names:
            self._tell("dropped", [str(name) for name in names], [why])

    def filled(self, *, full: bool) -> None:
        """It became full, or nearly so."""
        with self._lock:
            self._full += full
            self._nearly_full += not full
        if self._listeners:
            self._tell("full" if full else "nearly full", [])

    def lost(self, why: str) -> None:
        """The viewer is gone, and may come back."""
        self._lost = why
        if self._listeners:
            self._tell("lost", [], [why])

    def back(self, viewer: str) -> None:
        """The viewer is back, perhaps by another name."""
        self.viewer, self._lost = viewer, ""
        if self._listeners:
            self._tell("back", [])

    @property
    def dropped_count(self) -> int:
        """How many a policy let go until now."""
        return self._dropped.total()

    def close(self) -> None:
        """The stream is closed; the counts stay."""
        self.closed = True

    def status(self) -> QueueStatus:
        """This queue now."""
        now = self._clock()
        with self._lock:
            oldest = next(iter(self._waiting.values()), None)
            recent = [n for at, n in self._recent if at >= now - RATE_WINDOW_S]
            stuck = []
            for at, name in self._waiting.values():
                if now - at < STUCK_AFTER_S:
                    break
                stuck.append(str(name))
            return QueueStatus(
                stream=self.stream,
                viewer=self.viewer,
                sent=self._sent,
                received=self._received,
                displayed=self._displayed,
                failed=self._failed,
                dropped=self._dropped.total(),
                dropped_by=dict(self._dropped),
                nearly_full=self._nearly_full,
                full=self._full,
                lost=self._lost,
                waiting=len(self._waiting),
                oldest_age_s=now - oldest[0] if oldest else 0.0,
                rate_per_s=sum(recent) / RATE_WINDOW_S,
                stuck=tuple(stuck),
                closed=self.closed,
            )

    def _names(self, keys: Iterable[int]) -> list[str]:
        waiting = self._waiting
        return [str(waiting[key][1]) if key in waiting else f"item {key}" for key in keys]

    def _tell(
        self, state: ItemState | QueueState, names: Sequence[str], reasons: Sequence[str] = ()
    ) -> None:
        event = QueueEvent(self.stream, self.viewer, state, tuple(names), tuple(reasons))
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                # A listener's fault must not stop the stream, whose thread calls it.
                logger.exception("a queue listener raised on %s", event)


class TrackerRegistry:
    """All queues of this process; get it with `registry()`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trackers: list[QueueTracker] = []
        self._listeners: list[Callable[[QueueEvent], None]] = []

    def add(self, stream: str, viewer: str) -> QueueTracker:
        """Make and remember the tracker of one stream and viewer."""
        tracker = QueueTracker(stream, viewer, listeners=self._listeners)
        with self._lock:
            self._trackers.append(tracker)
            closed = [each for each in self._trackers if each.closed]
            for old in closed[:-REMEMBERED]:
                self._trackers.remove(old)
        return tracker

    def trackers(self) -> tuple[QueueTracker, ...]:
        """Every remembered tracker, oldest first."""
        with self._lock:
            return tuple(self._trackers)

    def status(self) -> tuple[QueueStatus, ...]:
        """Every remembered queue now."""
        return tuple(tracker.status() for tracker in self.trackers())

    def subscribe(self, listener: Callable[[QueueEvent], None]) -> Callable[[], None]:
        """Call `listener` with each change, on the thread where it happens; returns the undo.

        The listener should return at once: hand the event to a queue or a GUI signal.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def after_fork_in_child(self) -> None:
        """Begin anew: the queues are the parent's, and a thread of its may hold the lock."""
        self._lock = threading.Lock()
        self._trackers = []
        self._listeners = []

    def forget(self) -> None:
        """Drop the queues of closed streams."""
        with self._lock:
            self._trackers = [each for each in self._trackers if not each.closed]


_registry = TrackerRegistry()

os.register_at_fork(after_in_child=_registry.after_fork_in_child)


def snapshot() -> dict[str, Any]:
    """This process's view of all its streams: JSON-able.

    Returns
    -------
    dict
        ``pid``, ``program``, ``time_s`` (since 1970), and ``queues``: for each stream and viewer
        what `QueueStatus` has.

    Examples
    --------
    >>> import json
    >>> from openhcs_stream import tracker
    >>> print(json.dumps(tracker.snapshot()))  # doctest: +SKIP
    """
    return {
        "pid": os.getpid(),
        "program": os.path.basename(sys.argv[0] or "python"),
        "time_s": time.time(),
        "queues": [each._asdict() | {"stuck": list(each.stuck)} for each in _registry.status()],
    }


def registry() -> TrackerRegistry:
    """The registry of this process."""
    return _registry
