"""Lanes inside one process, for tests without sockets: same promises, nothing to set up.

Examples
--------
>>> with InProcessListener("doc-example") as listener:
...     sender = connect_inprocess("inproc://doc-example")
...     viewer = listener.accept()
...     sender.send(b"hello")
...     viewer.receive()
...     sender.close()
...     viewer.close()
True
Frame(data=b'hello', fds=(), blobs=())
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, ClassVar

from openhcs_stream.errors import InvalidItem, ViewerUnreachable
from openhcs_stream.transport._addresses import parse_address
from openhcs_stream.transport._lane import (
    Frame,
    Lane,
    Listener,
    check_blobs,
    check_fds,
    closed_here,
    peer_gone,
    refuse_length,
)
from openhcs_stream.transport._wake import Waker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["InProcessLane", "InProcessListener", "connect_inprocess"]

_MAX_FRAME = 64 << 20

_listeners: dict[str, InProcessListener] = {}
_registry_lock = threading.Lock()


class _End:
    """What one end of a lane knows; the other end writes into it, under the lock of both."""

    def __init__(self) -> None:
        self.inbox: deque[Frame] = deque()
        self.waker = Waker()
        self.closed = False
        self.starved = False  # a send from here gave False; the next receive over there wakes us


class InProcessLane(Lane):
    """One end of a lane between two parts of this process.

    It keeps what `Lane` promises as a unix lane does: file descriptors are duplicated, a full lane
    gives False, frames sent before a close are still received. Blobs are passed by reference. Any
    thread may call any method at any time. Make them with `InProcessLane.pair`, or through an
    `InProcessListener`.
    """

    carries_fds: ClassVar[bool] = True
    carries_blobs: ClassVar[bool] = True
    polls_out: ClassVar[bool] = False
    max_frame = _MAX_FRAME

    def __init__(self, here: _End, there: _End, lock: threading.RLock, capacity: int) -> None:
        """Use `pair` or `connect_inprocess`: a single end is of no use."""
        self._here = here
        self._there = there
        self._lock = lock
        self._capacity = capacity

    @classmethod
    def pair(cls, capacity: int = 1024) -> tuple[Self, Self]:
        """Make two lanes that are connected to each other.

        Parameters
        ----------
        capacity : int
            Frames that may wait in one direction before `send` gives False.
        """
        if capacity < 1:
            raise InvalidItem(f"a lane of {capacity} frames holds nothing.", cure="Give 1 or more.")
        # Reentrant: the garbage collector may close the one end inside a call on the other.
        lock = threading.RLock()
        first, second = _End(), _End()
        return cls(first, second, lock, capacity), cls(second, first, lock, capacity)

    def send(
        self, data: bytes, *, fds: Sequence[int] = (), blobs: Sequence[memoryview] = ()
    ) -> bool:
        if not 0 < len(data) <= self.max_frame:
            raise refuse_length(len(data), self.max_frame)
        check_fds(fds)
        check_blobs(blobs, self.max_frame)
        with self._lock:
            if self._here.closed:
                raise closed_here("an in-process lane")
            if self._there.closed:
                raise peer_gone("an in-process lane")
            if len(self._there.inbox) >= self._capacity:
                self._here.starved = True
                return False
            self._there.inbox.append(
                Frame(bytes(data), _duplicate(fds), tuple(blob.toreadonly() for blob in blobs))
            )
            self._there.waker.set()
            return True

    def receive(self) -> Frame | None:
        with self._lock:
            if self._here.closed:
                raise closed_here("an in-process lane")
            frame = self._here.inbox.popleft() if self._here.inbox else None
            if self._there.closed:  # the end of file stays readable
                if frame is None:
                    raise peer_gone("an in-process lane")
                return frame
            if not self._here.inbox:
                self._here.waker.clear()
            if self._there.starved and frame is not None:
                self._there.starved = False
                self._there.waker.set()
            return frame

    def fileno(self) -> int:
        return self._here.waker.fileno()

    def close(self) -> None:
        with self._lock:
            if self._here.closed:
                return
            self._here.closed = True
            for frame in self._here.inbox:
                for fd in frame.fds:
                    os.close(fd)
            self._here.inbox.clear()
            self._here.waker.close()
            self._there.waker.set()

    def __del__(self) -> None:
        # As a socket does: an end that was dropped unclosed must not leave its peer waiting.
        self.close()


class InProcessListener(Listener):
    """Accepts lanes from `connect_inprocess` under a name that this process knows."""

    def __init__(self, name: str | None = None, *, capacity: int = 1024, backlog: int = 64) -> None:
        """Listen.

        Parameters
        ----------
        name : str, optional
            By default a random one.
        capacity : int
            Frames that may wait in one direction of a lane before `send` gives False.
        backlog : int
            Lanes that may wait to be accepted.

        Raises
        ------
        InvalidItem
            The name is taken.
        """
        if name is None:
            name = os.urandom(8).hex()
        address = parse_address(f"inproc://{name}")
        self.address = str(address)
        self._name = address.name
        self._capacity = capacity
        self._backlog = backlog
        self._lock = threading.Lock()
        self._waiting: deque[InProcessLane] = deque()
        self._closed = False
        with _registry_lock:
            if self._name in _listeners:
                raise InvalidItem(
                    f"the name {self.address} is taken in this process.",
                    cure="Close the other listener first, or choose another name.",
                )
            self._waker = Waker()
            _listeners[self._name] = self

    def accept(self) -> InProcessLane | None:
        with self._lock:
            if self._closed:
                raise closed_here(f"the listener {self.address}")
            if not self._waiting:
                return None
            lane = self._waiting.popleft()
            if not self._waiting:
                self._waker.clear()
            return lane

    def fileno(self) -> int:
        return self._waker.fileno()

    def close(self) -> None:
        with _registry_lock, self._lock:
            if self._closed:
                return
            self._closed = True
            del _listeners[self._name]
            waiting = list(self._waiting)
            self._waiting.clear()
            self._waker.close()
        for lane in waiting:
            lane.close()

    def connect(self) -> InProcessLane | None:
        """Give the peer's end of a new lane; None where too many wait, or once closed."""
        with self._lock:
            if self._closed or len(self._waiting) >= self._backlog:
                return None
            theirs, ours = InProcessLane.pair(self._capacity)
            self._waiting.append(ours)
            self._waker.set()
            return theirs


def connect_inprocess(address: str) -> InProcessLane:
    """Open a lane to an `InProcessListener` of this process.

    Parameters
    ----------
    address : str
        ``inproc://NAME``, or the name alone.

    Raises
    ------
    ViewerUnreachable
        Nobody listens under that name, or its backlog is full.
    InvalidItem
        The address is of another kind.
    """
    where = parse_address(address if ":" in address else f"inproc://{address}")
    if where.scheme != "inproc":
        raise InvalidItem(f"{address!r} is no in-process address.", cure="Write inproc://name.")
    with _registry_lock:
        listener = _listeners.get(where.name)
    lane = None if listener is None else listener.connect()
    if lane is None:
        raise ViewerUnreachable(
            f"nobody accepts lanes at {where} in this process.",
            cure="Make an InProcessListener of that name first, and let it accept.",
        )
    return lane


def _duplicate(fds: Sequence[int]) -> tuple[int, ...]:
    duplicates: list[int] = []
    try:
        for fd in fds:
            os.fstat(fd)  # all of them first: a duplicate may take the number of a closed one
        for fd in fds:
            duplicates.append(os.dup(fd))  # noqa: PERF401  what was made is closed on failure
    except OSError as error:
        for fd in duplicates:
            os.close(fd)
        raise InvalidItem(
            f"the file descriptors {list(fds)} can't be passed on: {error.strerror}.",
            cure="Keep them open until send() has returned True, and raise the limit (ulimit -n) "
            "where too many are.",
        ) from error
    return tuple(duplicates)
