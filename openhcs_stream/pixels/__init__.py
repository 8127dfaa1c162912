"""Pixels: arenas, slots, leases and mappings; the only place that knows shared memory.

The sender owns *arenas*, pieces of anonymous shared memory that are faulted in once and used
again and again. An arena is cut into *slots* of one size; `PixelPool` hands them out. A published
slot is held by the viewers that were told of it, under a *lease* number that is never used again,
until each has released it. The viewer maps an arena once, read-only (`MappedArenas`).

All bookkeeping is the sender's private memory, so no peer can hurt it by dying at the wrong moment;
and an arena has no name, so nothing is left when everybody who has it open is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.later import import_later
from openhcs_stream.pixels._arena import HELD, MAX_ARENA_NBYTES, Arena, Slot
from openhcs_stream.pixels._copier import HELPED_NBYTES, Copier
from openhcs_stream.pixels._dtypes import numpy_dtype, wire_dtype
from openhcs_stream.pixels._limits import memory_left_nbytes, memory_limit_nbytes
from openhcs_stream.pixels._loan import form_of
from openhcs_stream.pixels._memory import give_back_free_memory
from openhcs_stream.pixels._pool import PixelPool, PoolStats

if TYPE_CHECKING:
    from openhcs_stream.pixels._mapping import MappedArenas
    from openhcs_stream.pixels._named import NamedBlock, NamedBlocks

__all__ = [
    "HELD",
    "HELPED_NBYTES",
    "MAX_ARENA_NBYTES",
    "Arena",
    "Copier",
    "MappedArenas",
    "NamedBlock",
    "NamedBlocks",
    "PixelPool",
    "PoolStats",
    "Slot",
    "form_of",
    "give_back_free_memory",
    "memory_left_nbytes",
    "memory_limit_nbytes",
    "numpy_dtype",
    "wire_dtype",
]

# What no worker needs for a viewer of ours.
import_later(
    __name__,
    {
        "_mapping": ("MappedArenas",),
        "_named": ("NamedBlock", "NamedBlocks"),
    },
)
