"""Remove what dead processes left, and only that.

Whether something is left, and its removal, are one decision: a file that its owner locks is
removed under that very lock, and a thing that can't be locked stands in a ledger that can. A
socket that no ledger tells of is removed where the system says that nobody listens, while its
folder is held; ours listen before they get their names. What can't be decided stays.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from openhcs_stream.discovery._files import (
    ENDPOINT,
    LAUNCH_LOCK,
    LOG,
    PATIENCE_S,
    SOCKET,
    UNPUBLISHED,
    is_left,
    names,
    remove_if_left,
)
from openhcs_stream.runtime import Found, Sweep, locked_folder, nobody_listens, sweep_ledgers

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LOG_KEPT_S", "sweep"]

_log = logging.getLogger(__name__)

#: Seconds that the log of a viewer which has ended is kept, for whoever asks why.
LOG_KEPT_S = 24 * 3600.0
_LOCKED = {
    ENDPOINT: ("endpoint file", "its viewer has ended"),
    UNPUBLISHED: ("endpoint file", "its viewer ended before it was published"),
    LAUNCH_LOCK: ("launch lock", "who started a viewer has ended"),
}


def sweep(*, dry_run: bool = False, logs: bool = False, patience_s: float = 1.0) -> Sweep:
    """Remove what dead viewers, launchers and workers of this user left on this machine.

    It may run at any time, beside any number of others and of starting and ending viewers.

    Parameters
    ----------
    dry_run : bool
        Look only; `Sweep.removed` is what would go.
    logs : bool
        Logs of ended viewers as well; else they go a day later.
    patience_s : float
        How long to wait for others who look at a dead process's ledger.

    Returns
    -------
    Sweep

    Raises
    ------
    UsageError
        The runtime folder can't be trusted.
    """
    # The names first: whatever a ledger tells of stood in it before it had a name.
    paths = names()
    swept = sweep_ledgers(dry_run=dry_run, patience_s=patience_s)
    for path in paths:
        for pattern, (kind, why) in _LOCKED.items():
            if pattern.match(path.name):
                _locked_file(path, kind, why, swept, dry_run=dry_run)
                break
        else:
            if LOG.match(path.name):
                _log_file(path, swept, dry_run=dry_run, always=logs)
            elif SOCKET.match(path.name):
                _socket(path, swept, dry_run=dry_run)
            elif path.name.startswith(".held-") or path in swept.living:
                pass
            elif os.path.lexists(path) and not _is_told(path, swept):
                swept.kept.append(Found("file", path, "no process of ours tells of it"))
    return swept


def _locked_file(path: Path, kind: str, why: str, swept: Sweep, *, dry_run: bool) -> None:
    nbytes = _nbytes(path)
    try:
        gone = is_left(path) if dry_run else remove_if_left(path)
    except OSError as error:
        swept.kept.append(Found(kind, path, _cannot(error)))
        return
    if gone:
        swept.removed.append(Found(kind, path, why, nbytes))
        if not dry_run:
            _log.info("removed the %s %s: %s", kind, path, why)


def _log_file(path: Path, swept: Sweep, *, dry_run: bool, always: bool) -> None:
    nbytes = _nbytes(path)
    why = "its viewer has ended"
    try:
        too_young = not always and time.time() - os.lstat(path).st_mtime < LOG_KEPT_S
        if dry_run or too_young:
            if not is_left(path, shared=True):
                return  # a living viewer writes there
        elif not remove_if_left(path, shared=True):
            return
    except FileNotFoundError:
        return
    except OSError as error:
        swept.kept.append(Found("log", path, _cannot(error)))
        return
    if too_young:
        why += f"; it goes {LOG_KEPT_S / 3600:g} hours later, or with --logs"
        swept.kept.append(Found("log", path, why, nbytes))
    else:
        swept.removed.append(Found("log", path, why, nbytes))


def _socket(path: Path, swept: Sweep, *, dry_run: bool) -> None:
    """One that no ledger tells of: somebody removed the ledger, or made the socket without."""
    if path in swept.living or _is_told(path, swept) or not nobody_listens(path):
        return
    nbytes = _nbytes(path)
    if not dry_run:
        try:
            # Ours bind and replace under this lock, and listen before they get their names.
            with locked_folder(path.parent, patience_s=PATIENCE_S):
                if not nobody_listens(path):
                    return
                path.unlink()
        except OSError as error:
            swept.kept.append(Found("socket", path, _cannot(error), nbytes))
            return
        _log.info("removed %s, at which nobody listens", path)
    swept.removed.append(Found("socket", path, "nobody listens there", nbytes))


def _cannot(error: OSError) -> str:
    return f"it can't be removed: {error.strerror or error}"


def _is_told(path: Path, swept: Sweep) -> bool:
    return any(found.path == path for found in (*swept.removed, *swept.kept))


def _nbytes(path: Path) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
