"""Ledgers of the dead: what stands in them is removed, and then they are."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.runtime._entries import read_entries
from openhcs_stream.runtime._folder import runtime_folder
from openhcs_stream.runtime._ledger import LEDGER
from openhcs_stream.runtime._lock import is_at, try_exclusive, try_shared, unlock
from openhcs_stream.runtime._remove import is_there, remove_entry

if TYPE_CHECKING:
    from openhcs_stream.runtime._entries import Entry

__all__ = ["Found", "Sweep", "open_to_lock", "sweep_ledgers", "take_from_the_dead"]

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.002


@dataclass(frozen=True)
class Found:
    """One thing that a sweep came upon.

    Attributes
    ----------
    kind : str
        "endpoint file", "socket", "segment", ...
    path : Path
    why : str
        Why it was removed, or why it stays.
    nbytes : int
        That it takes, or took.
    """

    kind: str
    path: Path
    why: str
    nbytes: int = 0


@dataclass
class Sweep:
    """What a sweep did, or would do.

    Attributes
    ----------
    removed : list of Found
        What the dead left; of a sweep that only looks, what would go.
    kept : list of Found
        What may be a leftover, and about which nothing can be decided. What the living use is in
        neither list.
    living : set of Path
        What stands in ledgers of the living.
    """

    removed: list[Found] = field(default_factory=list)
    kept: list[Found] = field(default_factory=list)
    living: set[Path] = field(default_factory=set)


def open_to_lock(path: Path) -> int | None:
    """A descriptor to lock a file by; None where it has gone.

    Raises
    ------
    OSError
        It can't be opened: a link, a socket, another user's.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None


def take_from_the_dead(fd: int, path: Path, *, look: bool, patience_s: float = 0.0) -> bool:
    """Whether the owner of an open file is dead, and the file still is at `path`.

    It decides once and for all: with the exclusive lock, which is kept until `fd` is closed,
    nobody else can own the file, remove it or replace it.

    Parameters
    ----------
    fd, path : int, Path
        The open file and its name.
    look : bool
        Take the shared lock, for who only wants to know and removes nothing.
    patience_s : float
        How long to wait for others who only look.
    """
    if look:
        return try_shared(fd) and is_at(fd, path)
    deadline = time.monotonic() + patience_s
    while not try_exclusive(fd):
        # A living owner, and a sweeper that is at it, have it exclusively: neither is waited for.
        if not try_shared(fd) or time.monotonic() >= deadline:
            return False
        unlock(fd)
        time.sleep(_LOOK_EVERY_S)
    return is_at(fd, path)


def sweep_ledgers(*, dry_run: bool = False, patience_s: float = 0.0) -> Sweep:
    """Remove what dead processes held, and their ledgers.

    Parameters
    ----------
    dry_run : bool
        Look only.
    patience_s : float
        As in `take_from_the_dead`.

    Raises
    ------
    UsageError
        The runtime folder can't be trusted.
    """
    sweep = Sweep()
    with os.scandir(runtime_folder()) as listed:
        paths = sorted(Path(each.path) for each in listed if LEDGER.match(each.name))
    for path in paths:
        try:
            fd = open_to_lock(path)
        except OSError as error:
            sweep.kept.append(Found("ledger", path, f"it can't be opened: {error.strerror}"))
            continue
        if fd is None:
            continue
        try:
            _sweep_ledger(fd, path, sweep, dry_run=dry_run, patience_s=patience_s)
        finally:
            os.close(fd)
    return sweep


def _sweep_ledger(fd: int, path: Path, sweep: Sweep, *, dry_run: bool, patience_s: float) -> None:
    is_dead = take_from_the_dead(fd, path, look=dry_run, patience_s=patience_s)
    try:
        entries = read_entries(fd)
    except ValueError as error:
        if is_dead:
            why = f"its process is dead, and what it held can't be told: {error}"
            sweep.kept.append(Found("ledger", path, why))
        return
    if not is_dead:
        for entry in entries:
            sweep.living.update(each for each in (entry.final, entry.before) if each is not None)
        return
    gone = [_sweep_entry(entry, sweep, dry_run=dry_run) for entry in entries]
    if all(gone) and not dry_run:
        # Gone already: its owner had not locked it yet, and makes another one.
        path.unlink(missing_ok=True)
        _log.info("removed the ledger %s of a dead process", path)


def _sweep_entry(entry: Entry, sweep: Sweep, *, dry_run: bool) -> bool:
    """Remove one thing; False where it can't be, so that its ledger must stay."""
    try:
        where = is_there(entry)
    except OSError as error:  # in a folder that can't be entered any more, or on a lost server
        why = f"whether it is there can't be told: {error.strerror or error}"
        sweep.kept.append(Found(entry.kind, entry.final, why))
        return False
    if where is None:
        return True
    found = Found(entry.kind, where, f"the process that made it ({entry.pid}) is dead",
                  _nbytes(where))  # fmt: skip
    if not dry_run:
        try:
            remove_entry(entry)
        except OSError as error:
            why = f"it can't be removed: {error.strerror or error}"
            sweep.kept.append(Found(entry.kind, where, why, found.nbytes))
            return False
        _log.info("removed %s %s, whose process %d is dead", entry.kind, where, entry.pid)
    sweep.removed.append(found)
    return True


def _nbytes(path: Path) -> int:
    """What it takes on its file system; of a folder all that is in it."""
    try:
        total = os.lstat(path).st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            total += sum(os.lstat(each).st_blocks * 512 for each in path.rglob("*"))
    except OSError:  # somebody else removed it meanwhile
        return 0
    return total
