"""TCP ports for programs that run side by side: no two processes are ever given the same one.

That a port is free says little: a viewer that was killed and starts again has left its port for a
moment, in which somebody else finds it free. So each process claims a block of ports for as long
as it lives, by holding the block's first port, and gives out the others in turn.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket

__all__ = ["free_port"]

# Below the ports that the system gives out by itself (from 32768 on). OpenHCS's control port is
# 1000 more than that of the data, so every second thousand is left to those.
_THOUSANDS = range(20_000, 30_000, 2000)
_CONTROL = 1000
_SIZE = 40
_BLOCKS = [
    range(thousand + first, thousand + first + _SIZE)
    for thousand in _THOUSANDS
    for first in range(0, _CONTROL, _SIZE)
]


def _claim() -> tuple[socket.socket, range]:
    """The socket that holds a block, and the block."""
    start = os.getpid() % len(_BLOCKS)
    for block in _BLOCKS[start:] + _BLOCKS[:start]:
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", block[0]))
        except OSError:
            held.close()
            continue
        return held, block
    raise RuntimeError("no block of ports is free: too many processes hold one")


# At the import, not at the first use: tests count descriptors.
_held, _block = _claim()
atexit.register(_held.close)
_turns = itertools.cycle(_block[1:])


def free_port() -> int:
    """A port that is free now, with OpenHCS's control port, and that nobody else is given."""
    for port in itertools.islice(_turns, len(_block)):
        with contextlib.suppress(OSError), socket.socket() as data, socket.socket() as control:
            data.bind(("127.0.0.1", port))
            control.bind(("127.0.0.1", port + _CONTROL))
            return port
    raise RuntimeError(f"no port of {_block[1]} to {_block[-1]} is free")
