"""Acknowledgements of OpenHCS's viewers: one listener an address for all streams of this process.

Until generation 2 every sender of a user is acknowledged at one fixed port. Whoever has it gets
them all; a second process gets none, and must not take the port away, as ZeroMQ would.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING

from openhcs_stream.dialects import read_acknowledgement
from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.transport import Waker, ZmqCollector

if TYPE_CHECKING:
    from openhcs_stream.dialects import Acknowledgement

__all__ = ["AckInbox", "AckListener", "listen"]

logger = logging.getLogger(__name__)

#: Longest sleep of a listener's thread.
_LOOK_EVERY_S = 1.0


class AckInbox:
    """Where one stream finds the acknowledgements that came; other streams' are among them."""

    def __init__(self, waker: Waker) -> None:
        self._waiting: deque[Acknowledgement] = deque()
        self._waker = waker

    def put(self, ack: Acknowledgement) -> None:
        """From the listener's thread."""
        self._waiting.append(ack)
        self._waker.set()

    def take(self) -> Acknowledgement | None:
        """The next one; None where none waits."""
        return self._waiting.popleft() if self._waiting else None


class AckListener:
    """Listens at one address and gives what comes to every inbox. Made by `listen`.

    Attributes
    ----------
    address : str
        What viewers connect to.
    """

    def __init__(self, wanted: str) -> None:
        self._collector = ZmqCollector(wanted)
        self.address = self._collector.address
        self._wanted = wanted
        self._inboxes: list[AckInbox] = []
        self._waker = Waker()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="openhcs-acks", daemon=True)

    def leave(self, inbox: AckInbox) -> None:
        """An inbox wants no more; the last one closes the listener, and the address is free."""
        with _lock:
            if inbox in self._inboxes:
                self._inboxes.remove(inbox)
            if self._inboxes or self._stopping:
                return
            self._stopping = True
            _listeners.pop(self._wanted, None)
        self._waker.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5.0)
        self._waker.close()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        poller.register(self._collector.fileno(), select.POLLIN)
        try:
            while not self._stopping:
                while (frame := self._collector.receive()) is not None:
                    self._hand_out(frame)
                if not self._collector.has_input():
                    poller.poll(_LOOK_EVERY_S * 1000)
        finally:
            self._collector.close()

    def _hand_out(self, frame: bytes) -> None:
        try:
            ack = read_acknowledgement(frame)
        except ProtocolViolation as error:
            logger.warning("%s", error)
            return
        with _lock:
            inboxes = tuple(self._inboxes)
        for inbox in inboxes:
            inbox.put(ack)

    def _begin(self) -> None:
        self._thread.start()


_lock = threading.Lock()
_listeners: dict[str, AckListener] = {}


def listen(address: str, inbox: AckInbox) -> AckListener | None:
    """Have acknowledgements that come to an address put into an inbox.

    Returns
    -------
    AckListener or None
        None: another program listens there already.

    Raises
    ------
    OSError
        The address can't be bound for another reason.
    """
    with _lock:
        listener = _listeners.get(address)
        if listener is None:
            try:
                listener = AckListener(address)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EAGAIN):
                    return None
                raise
            _listeners[address] = listener
            listener._begin()  # noqa: SLF001 - the same module's
        listener._inboxes.append(inbox)  # noqa: SLF001
        return listener


def _after_fork() -> None:
    """In a forked child: the listeners, and the lock that a thread may hold, are the parent's."""
    global _lock
    _inherited.extend(_listeners.values())
    _listeners.clear()
    _lock = threading.Lock()


#: Never used in a forked child, and never collected there: that would disturb the parent.
_inherited: list[AckListener] = []

os.register_at_fork(after_in_child=_after_fork)
