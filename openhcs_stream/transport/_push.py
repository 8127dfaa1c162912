"""One-way messages to a listener that may or may not be there: OpenHCS's acknowledgements."""

from __future__ import annotations

import logging

import zmq

from openhcs_stream.transport._zmq import _LINGER_MS, _context

__all__ = ["ZmqPusher"]

_log = logging.getLogger(__name__)

#: Messages that wait for a listener that is not there; later ones are let go.
_HIGH_WATER = 10_000


class ZmqPusher:
    """A PUSH socket that never waits; belongs to one thread.

    Parameters
    ----------
    address : str
        ``tcp://127.0.0.1:7555`` or ``ipc:///path``, bound or not.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._lost = 0
        self._socket = _context().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        self._socket.connect(address)

    def send(self, data: bytes) -> bool:
        """Send, now or never; False where too much waits already."""
        try:
            self._socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            self._lost += 1
            if self._lost == 1:
                _log.warning("nobody takes acknowledgements at %s; they are let go", self.address)
            return False
        return True

    def close(self) -> None:
        """Let go of the socket; what waits goes on for a moment where somebody listens."""
        self._socket.close()
