"""Sockets of a client of somebody else's viewer: questions, publications, acknowledgements.

None of their calls waits. Each belongs to one thread. Their descriptors are edge-triggered: wait
for `fileno` only where `has_input` is false.
"""

from __future__ import annotations

import errno
import os

import zmq

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport._addresses import parse_address
from openhcs_stream.transport._socket_files import SocketFile
from openhcs_stream.transport._zmq import _context, _has_frames

__all__ = ["ZmqAsker", "ZmqCollector", "ZmqPublisher"]

#: Bytes of the largest answer; a peer that sends more is disconnected.
_MAX_ANSWER = 1 << 20
_HIGH_WATER = 10_000


class ZmqAsker:
    """A REQ socket: one question, one answer; a question without an answer can be given up.

    Attributes
    ----------
    is_waiting : bool
        A question is out.
    """

    def __init__(self, address: str) -> None:
        self.address = parse_address(address).endpoint
        self.is_waiting = False
        self._socket = self._connected()

    def ask(self, frame: bytes) -> None:
        """Send a question; nothing may be out."""
        self._socket.send(frame)
        self.is_waiting = True

    def answer(self) -> bytes | None:
        """Take the answer; None where it has not come."""
        try:
            frame = self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None
        self.is_waiting = False
        return frame

    def give_up(self) -> None:
        """Forget the question; its late answer goes nowhere."""
        self._socket.close()
        self._socket = self._connected()
        self.is_waiting = False

    def has_input(self) -> bool:
        """Whether `answer` would give something."""
        return self.is_waiting and _has_frames(self._socket)

    def fileno(self) -> int:
        """Give the descriptor to wait for; another after `give_up`; -1 once closed."""
        return -1 if self._socket.closed else self._socket.fileno()

    def close(self) -> None:
        """Let go of the socket; again if you like."""
        self._socket.close()

    def _connected(self) -> zmq.Socket[bytes]:
        made = _context().socket(zmq.REQ)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER)
        made.connect(self.address)
        return made


class ZmqPublisher:
    """A PUB socket that knows whether its subscriber is there, and drops nothing."""

    def __init__(self, address: str) -> None:
        self.address = parse_address(address).endpoint
        self._subscribers = 0
        self._socket = _context().socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.connect(self.address)

    @property
    def has_subscriber(self) -> bool:
        """Whether somebody takes what is sent; else it would be thrown away."""
        while True:
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return self._subscribers > 0
            self._subscribers += 1 if frame[:1] == b"\1" else -1

    def send(self, frame: bytes) -> bool:
        """Send; False where too much waits already."""
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def has_input(self) -> bool:
        """Whether `has_subscriber` may have changed."""
        return not self._socket.closed and _has_frames(self._socket)

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 once closed."""
        return -1 if self._socket.closed else self._socket.fileno()

    def close(self) -> None:
        """Let go of the socket; again if you like."""
        self._socket.close()


class ZmqCollector:
    """A PULL socket, bound where nobody else listens.

    Attributes
    ----------
    address : str
        What others connect to.

    Raises
    ------
    OSError
        EADDRINUSE: somebody listens there. ZeroMQ itself would take an ipc address away from
        whoever has it.
    """

    def __init__(self, address: str) -> None:
        where = parse_address(address)
        self._file: SocketFile | None = None
        self._socket = _context().socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER)
        try:
            match where.scheme:
                case "ipc" if not where.name.startswith("@"):
                    self.address = self._bind_file(where.name)
                case "ipc" | "tcp":
                    self.address = self._bind(where.endpoint)
                case _:
                    raise InvalidItem(f"{address!r} can't be bound here.", cure="Use ipc or tcp.")
        except BaseException:
            self.close()
            raise

    def receive(self) -> bytes | None:
        """Take the next message; None where none waits."""
        try:
            return self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def has_input(self) -> bool:
        """Whether `receive` would give something."""
        return not self._socket.closed and _has_frames(self._socket)

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 once closed."""
        return -1 if self._socket.closed else self._socket.fileno()

    def close(self) -> None:
        """Stop listening; again if you like."""
        if self._file is not None:
            self._file.remove()
        self._socket.close()

    def _bind_file(self, path: str) -> str:
        self._file = SocketFile.bind(path)
        listening = self._file.listening
        try:
            self._socket.setsockopt(zmq.USE_FD, listening.fileno())
            self._socket.bind(f"ipc://{path}")
            listening.detach()  # ZeroMQ closes it
        finally:
            listening.close()
        return f"ipc://{path}"  # ZeroMQ itself tells of the name under which it was made

    def _bind(self, address: str) -> str:
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            code = error.errno if error.errno is not None else errno.EADDRINUSE
            raise OSError(code, os.strerror(code)) from error
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
