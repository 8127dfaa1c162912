"""Plain connections to where ZeroMQ listens, without a socket of the library."""

from __future__ import annotations

import os
import socket

from openhcs_stream.transport._addresses import parse_address

__all__ = ["dial"]


def dial(address: str, timeout_s: float) -> socket.socket:
    """Connect to whoever listens at an ipc or tcp address, within some seconds.

    Raises
    ------
    OSError
        Nobody does, or not in time.
    """
    where = parse_address(address)
    target: str | bytes | tuple[str, int]
    if where.scheme == "ipc":
        name = where.name
        family = socket.AF_UNIX
        target = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else name
    else:
        family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
        target = (where.host, where.port)
    sock = socket.socket(family)
    try:
        sock.settimeout(timeout_s)
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock
