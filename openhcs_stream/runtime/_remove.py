"""Remove exactly what an entry tells of, and nothing that has its name by now."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from openhcs_stream.runtime._entries import identify, is_temporary_name
from openhcs_stream.runtime._lock import locked_folder

if TYPE_CHECKING:
    from pathlib import Path

    from openhcs_stream.runtime._entries import Entry, Identity

__all__ = ["is_there", "name_aside", "remove_entry"]

_PATIENCE_S = 2.0


def is_there(entry: Entry) -> Path | None:
    """Where an entry's thing is; None where it has gone. Looks only."""
    before = entry.before
    if before is not None and is_temporary_name(before.name) and os.path.lexists(before):
        return before
    if entry.identity is not None:
        for path in (name_aside(entry.final, entry.identity), entry.final):
            if identify(path) == entry.identity:
                return path
    return None


def remove_entry(entry: Entry) -> bool:
    """Remove an entry's thing; for its owner, and for who holds a dead owner's ledger.

    Returns
    -------
    bool
        False: it had gone already.

    Raises
    ------
    OSError
        It can't be removed.
    """
    removed = False
    before = entry.before
    if before is not None and is_temporary_name(before.name):
        removed = _remove_temporary(before)
    if entry.identity is None:
        return removed
    if entry.kind != "socket":
        return _remove_exactly(entry.final, entry.identity) or removed
    # Others of us bind at the same name, and hold its folder while they do.
    with contextlib.suppress(FileNotFoundError):  # the folder has gone, and all in it
        with locked_folder(entry.final.parent, patience_s=_PATIENCE_S):
            removed = _remove_exactly(entry.final, entry.identity) or removed
    return removed


def _remove_temporary(path: Path) -> bool:
    """Nobody else makes anything under that name."""
    try:
        if path.is_dir() and not path.is_symlink():
            import shutil

            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def _remove_exactly(path: Path, identity: Identity) -> bool:
    """There is no call that unlinks a file by what it is, so it is moved aside and looked at.

    One that another process put there between the look and the move gets its name back. The name
    aside follows from the identity: whoever goes on after a kill in between finds it.
    """
    aside = name_aside(path, identity)
    removed = False
    while True:
        if identify(path) == identity:
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, aside)
        found = identify(aside)
        if found is None:
            return removed
        if found != identity:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path, follow_symlinks=False)
        os.unlink(aside)
        removed = removed or found == identity
        # A file of two names is not moved where the one aside is one of them.
        if identify(path) != identity:
            return removed


def name_aside(path: Path, identity: Identity) -> Path:
    """The name that a file has for a moment while it is removed from `path`."""
    import hashlib

    told = f"{identity.device}:{identity.inode}:{identity.made_ns}".encode()
    return path.with_name(f".openhcs-stream-{hashlib.sha256(told).hexdigest()[:16]}")
