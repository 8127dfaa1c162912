"""Messages of publishers that may come and go: OpenHCS's first generation to napari."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys

import zmq

from openhcs_stream.transport._zmq import (
    ZMQ_MAX_FRAME,
    _context,
    _has_frames,
    sending_address,
    sending_process,
)

__all__ = ["PublishedMessage", "ZmqSubscriber"]

_log = logging.getLogger(__name__)

#: Messages that may wait to be received; then publishers wait, and drop at their own limit.
_HIGH_WATER = 16


class PublishedMessage:
    """One message that came in at a `ZmqSubscriber`."""

    __slots__ = ("data", "peer_address", "process")

    def __init__(self, frame: zmq.Frame) -> None:
        self.data = frame.buffer.toreadonly()  #: not copied
        self.process = sending_process(frame)  #: of the publisher; 0: nobody tells
        self.peer_address = sending_address(frame)  #: of a tcp publisher; else ""


class ZmqSubscriber:
    """A SUB socket that takes everything, behind a `ZmqSorter`; belongs to one thread.

    It listens at an address of its own, which nobody needs to know but the sorter.

    Attributes
    ----------
    address : str
        Where it listens.
    """

    def __init__(self, *, max_frame: int = ZMQ_MAX_FRAME) -> None:
        import tempfile

        name = f"openhcs-stream-{os.getpid()}-{os.urandom(8).hex()}"
        # Without a file, where the system has such addresses.
        linux = sys.platform.startswith("linux")
        self._path = "" if linux else os.path.join(tempfile.gettempdir(), name)
        self.address = f"ipc://{self._path or '@' + name}"
        self._socket = _context().socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_frame)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        if hasattr(socket, "SO_PEERCRED"):
            self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        self._socket.bind(self.address)

    def receive(self) -> PublishedMessage | None:
        """Take the next message; None where none waits now. Of several parts only the first."""
        try:
            first = self._socket.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        frame = first
        while frame.more:
            frame = self._socket.recv(zmq.DONTWAIT, copy=False)
        if frame is not first:
            _log.warning("a published message has more than one part; the others are ignored")
        return PublishedMessage(first)

    def has_input(self) -> bool:
        """Whether `receive` would give a message; ask this before waiting for `fileno`."""
        return not self._socket.closed and _has_frames(self._socket)

    def fileno(self) -> int:
        """Give the descriptor to wait for, edge-triggered; -1 once closed."""
        return -1 if self._socket.closed else self._socket.fileno()

    def close(self) -> None:
        """Stop listening; again if you like."""
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._socket.close()
