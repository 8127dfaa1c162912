"""What kind of ZeroMQ socket listens at an address: it says so itself, its program may be busy."""

from __future__ import annotations

import time
from typing import Final

from openhcs_stream.transport._dial import dial
from openhcs_stream.transport._sorter import ready, socket_type

__all__ = ["kind_at"]

#: The greeting of ZMTP 3.0, without security.
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\0" + b"NULL".ljust(20, b"\0") + bytes(32)


def kind_at(address: str, *, connect_s: float, say_s: float) -> bytes:
    """Greet whoever listens at an ipc or tcp address as a REQ socket does.

    Parameters
    ----------
    address : str
        Of a ROUTER or REP, or of anything else.
    connect_s, say_s : float
        How long to wait for a connection, and for what is said then.

    Returns
    -------
    bytes
        As `socket_type`; empty as well where nobody listens, or nothing is said in time.
    """
    said = b""
    try:
        with dial(address, connect_s) as sock:
            deadline = time.monotonic() + say_s
            sock.sendall(_GREETING + ready(b"REQ"))
            while (kind := socket_type(said)) is None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                more = sock.recv(1024)
                if not more:
                    return b""
                said += more
    except OSError:
        return b""
    return kind
