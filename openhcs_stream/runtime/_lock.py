"""Advisory locks on open files: the kernel drops them when their owner dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["is_at", "locked_folder", "try_exclusive", "try_shared", "unlock"]

_LOOK_EVERY_S = 0.002


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


@contextlib.contextmanager
def locked_folder(folder: Path, *, patience_s: float) -> Iterator[None]:
    """Hold a folder, so that no two of us give and take its names at one time.

    The lock is on the folder itself: it leaves no file.

    Raises
    ------
    OSError
        The folder is not there, or others held it for `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not try_exclusive(fd):
            if time.monotonic() >= deadline:
                raise OSError(errno.EAGAIN, f"the folder {folder} stays locked by others")
            time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        os.close(fd)


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
