"""Advisory locks on open files: the kernel drops them when their owner dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_at", "try_exclusive", "try_shared", "unlock"]


def try_exclusive(fd: int) -> bool:
    """Take the lock for this open file alone; False where another open file has it."""
    return _try(fd, fcntl.LOCK_EX)


def try_shared(fd: int) -> bool:
    """Take the lock beside other readers; False where an owner has it exclusively."""
    return _try(fd, fcntl.LOCK_SH)


def unlock(fd: int) -> None:
    """Drop the lock now, also where a forked child has the same open file."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_at(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file `fd`."""
    try:
        at_path = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(at_path, os.fstat(fd))


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
