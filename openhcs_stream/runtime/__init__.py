"""The runtime folder: whose locks tell the living from the dead, and what the dead left."""

from __future__ import annotations

from openhcs_stream.runtime._entries import Entry, Identity, identify
from openhcs_stream.runtime._folder import RUNTIME_VARIABLE, runtime_folder
from openhcs_stream.runtime._ledger import Held, hold, temporary_folder, written_whole
from openhcs_stream.runtime._lock import is_at, locked_folder, try_exclusive, try_shared, unlock
from openhcs_stream.runtime._remove import name_aside
from openhcs_stream.runtime._sockets import nobody_listens
from openhcs_stream.runtime._sweep import (
    Found,
    Sweep,
    open_to_lock,
    sweep_ledgers,
    take_from_the_dead,
)

__all__ = [
    "RUNTIME_VARIABLE",
    "Entry",
    "Found",
    "Held",
    "Identity",
    "Sweep",
    "hold",
    "identify",
    "is_at",
    "locked_folder",
    "name_aside",
    "nobody_listens",
    "open_to_lock",
    "runtime_folder",
    "sweep_ledgers",
    "take_from_the_dead",
    "temporary_folder",
    "try_exclusive",
    "try_shared",
    "unlock",
    "written_whole",
]
