"""Names in the runtime folder, and how a locked file of a dead process is removed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from openhcs_stream.runtime import (
    is_at,
    locked_folder,
    open_to_lock,
    runtime_folder,
    try_exclusive,
    try_shared,
)

__all__ = [
    "ENDPOINT",
    "LAUNCH_LOCK",
    "LOG",
    "PATIENCE_S",
    "SOCKET",
    "UNPUBLISHED",
    "is_left",
    "names",
    "remove_if_left",
]

#: How long to wait for others who hold the folder, which they do for microseconds.
PATIENCE_S = 2.0
#: What a running viewer is found by: its kind and name.
ENDPOINT = re.compile(r"^[a-z][a-z0-9_]{0,31}-[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.json\Z")
#: An endpoint file that has not got its name yet.
UNPUBLISHED = re.compile(r"^\.new-[0-9a-f]{16}\Z")
#: Held by who starts a viewer of that kind.
LAUNCH_LOCK = re.compile(r"^\.launch-[A-Za-z0-9._-]{1,64}\.lock\Z")
#: What launched viewers of one kind say; held by each that writes there.
LOG = re.compile(r"^[A-Za-z0-9._-]{1,64}\.log\Z")
#: What a viewer listens at: its kind, its pid and some random letters.
SOCKET = re.compile(r"^[a-z][a-z0-9_]{0,31}-[0-9]+-[0-9a-f]{1,32}\.ipc\Z")


def names() -> list[Path]:
    """Everything in the runtime folder, sorted.

    Raises
    ------
    UsageError
        The runtime folder can't be trusted.
    """
    with os.scandir(runtime_folder()) as entries:
        return sorted(Path(entry.path) for entry in entries)


def is_left(path: Path, *, shared: bool = False) -> bool:
    """Whether nobody owns a locked file, and it is there. Looks only.

    Parameters
    ----------
    path : Path
        The file's name.
    shared : bool
        Its owners are several and hold the shared lock.

    Raises
    ------
    OSError
        It can't be opened.
    """
    fd = open_to_lock(path)
    if fd is None:
        return False
    try:
        is_free = try_exclusive(fd) if shared else try_shared(fd)
        return is_free and is_at(fd, path)
    finally:
        os.close(fd)


def remove_if_left(path: Path, *, shared: bool = False, patience_s: float = PATIENCE_S) -> bool:
    """Remove a locked file that nobody owns; whether it was removed now.

    It is one decision: while the lock is held nobody can become its owner, and while the folder
    is held nobody else removes it, after which its name could be another file's.

    Parameters
    ----------
    path : Path
        The file's name.
    shared : bool
        Its owners are several and hold the shared lock.
    patience_s : float
        How long to wait for others who hold the folder.

    Raises
    ------
    OSError
        It can't be opened, or others held the folder for all that time.
    """
    fd = open_to_lock(path)
    if fd is None:
        return False
    try:
        # Not exclusively where that is not needed: who looks meanwhile would see an owner.
        if not (try_exclusive(fd) if shared else try_shared(fd)):
            return False
        with locked_folder(path.parent, patience_s=patience_s):
            if not is_at(fd, path):
                return False
            path.unlink()
        return True
    finally:
        os.close(fd)
