"""What this process made that outlives a kill, written down where a sweeper finds it.

A socket file, a named segment of shared memory or a temporary file stays when its maker is
killed, and nothing about it tells whose it was. So each process that makes such things keeps one
ledger in the runtime folder, locked for as long as it lives: the kernel drops the lock at its
death, also by kill -9. Whoever gets the lock may remove what stands in the ledger, and nobody
else may. Four rules:

1. A thing is made under a random name that the ledger has already, and gets its final name when
   the ledger tells both that name and the thing's identity. So nothing is ever there that no
   ledger tells of, whenever its maker is killed.
2. An entry goes after the thing has gone.
3. Under a final name only the very thing that the entry identifies is removed: by then the name
   may be somebody else's.
4. A ledger without entries is removed, so that who has nothing outside leaves nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from openhcs_stream.runtime._entries import (
    Entry,
    HeldKind,
    Identity,
    identify,
    temporary_name,
    written,
)
from openhcs_stream.runtime._folder import runtime_folder
from openhcs_stream.runtime._lock import is_at, try_exclusive
from openhcs_stream.runtime._remove import remove_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LEDGER", "Held", "hold", "temporary_folder", "written_whole"]

_log = logging.getLogger(__name__)

#: Names of ledgers.
LEDGER = re.compile(r"^\.held-[0-9a-f]{16}\Z")
#: A ledger is written anew when it is this large and mostly tells of what has gone.
_COMPACT_NBYTES = 64 << 10
_LINE_NBYTES = 512


class Held:
    """One entry of this process's ledger; made by `hold`.

    Attributes
    ----------
    entry : Entry
    """

    def __init__(self, ledger: _Ledger, number: int, entry: Entry) -> None:
        self.entry = entry
        self._ledger = ledger
        self._number = number

    @property
    def temporary(self) -> Path:
        """The random name under which the thing is to be made."""
        before = self.entry.before
        assert before is not None, "it was there already"
        return before

    def made(self) -> None:
        """Give what was made under the random name its final one, which no file may have.

        Raises
        ------
        FileExistsError
            Something has the final name.
        OSError
            The thing was not made, or the ledger can't be written.
        """
        temporary = self.temporary
        identity = identify(temporary)
        if identity is None:
            raise FileNotFoundError(f"{temporary} was not made")
        self.entry = msgspec.structs.replace(self.entry, identity=identity)
        self._ledger.write(self._number, self.entry)
        os.link(temporary, self.entry.final, follow_symlinks=False)
        os.unlink(temporary)

    def remove(self) -> None:
        """Remove the thing under whichever name, then the entry. Idempotent.

        In a forked child it does nothing: the thing is the parent's.

        Raises
        ------
        OSError
            It can't be removed; the entry stays.
        """
        if self._ledger.has(self._number):
            remove_entry(self.entry)
            self.release()

    def abandon(self) -> None:
        """Remove what was made under the random name and got no other, then the entry.

        Raises
        ------
        OSError
            It can't be removed; the entry stays.
        """
        if self._ledger.has(self._number):
            remove_entry(msgspec.structs.replace(self.entry, identity=None))
            self.release()

    def release(self) -> None:
        """Drop the entry: the thing has gone, or is not ours any more. Idempotent."""
        self._ledger.drop(self._number)


def hold(kind: HeldKind, path: Path, *, identity: Identity | None = None) -> Held:
    """Enter a thing into this process's ledger, so that it goes when this process is killed.

    Parameters
    ----------
    kind : str
        "socket", "segment", "file" or "folder".
    path : Path
        Its final name, absolute.
    identity : Identity or None
        Of what is there already and is taken over. None: it is to be made at `Held.temporary`,
        and then to be given its name by `Held.made`.

    Raises
    ------
    OSError
        The ledger can't be written.
    UsageError
        The runtime folder can't be trusted.
    """
    temporary = b"" if identity is not None else os.fsencode(temporary_name())
    entry = Entry(kind, os.fsencode(path), temporary, identity, os.getpid())
    ledger = _own
    return Held(ledger, ledger.enter(entry), entry)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file that is there whole or not at all, also when its writer is killed.

    Parameters
    ----------
    path : Path
        Absolute; an older file of that name is replaced at the end of the block.

    Yields
    ------
    Path
        Where to write it: in the same folder, not there yet.

    Raises
    ------
    OSError
        It can't be moved to its place; nothing is left.
    """
    held = hold("file", path)
    try:
        yield held.temporary
        os.replace(held.temporary, path)
    finally:
        held.remove()


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that goes with the block, also when its process is killed."""
    held = hold("folder", parent / "unused")
    try:
        held.temporary.mkdir(0o700)
        yield held.temporary
    finally:
        held.remove()


class _Ledger:
    """This process's ledger; its file is there while it has entries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._path = Path()
        self._size = 0
        self._entries: dict[int, Entry] = {}
        self._next = 0

    def enter(self, entry: Entry) -> int:
        with self._lock:
            if self._fd < 0:
                self._fd, self._path = _new_file()
                self._size = 0
            elif not is_at(self._fd, self._path):
                self._rewrite()  # somebody has cleared the folder by hand
            number, self._next = self._next, self._next + 1
            try:
                self._append(number, entry)
                self._entries[number] = entry
            finally:
                self._remove_if_empty()
            return number

    def write(self, number: int, entry: Entry) -> None:
        with self._lock:
            if number not in self._entries:
                raise FileNotFoundError(f"{entry.final} is not in this process's ledger")
            self._append(number, entry)
            self._entries[number] = entry

    def drop(self, number: int) -> None:
        with self._lock:
            if self._entries.pop(number, None) is None:
                return
            if self._entries:
                try:
                    self._append(number, None)
                except OSError as error:
                    # The entry goes on telling of what has gone, which does no harm.
                    _log.warning("the ledger %s can't be written: %s", self._path, error)
            self._remove_if_empty()

    def has(self, number: int) -> bool:
        with self._lock:
            return number in self._entries

    def let_go(self) -> None:
        """In a forked child: the lock, and what is held, stay the parent's."""
        self._lock = threading.Lock()  # another thread may have held it at the fork
        self._entries.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, number: int, entry: Entry | None) -> None:
        if self._size > max(_COMPACT_NBYTES, 2 * _LINE_NBYTES * len(self._entries)):
            self._rewrite()
        line = written(number, entry)
        if os.write(self._fd, line) != len(line):
            os.ftruncate(self._fd, self._size)
            raise OSError(f"there is no room in the ledger {self._path}")
        self._size += len(line)

    def _rewrite(self) -> None:
        """Write what still stands into a new file; until the old one goes, both tell of it."""
        fd, path = _new_file()
        content = b"".join(written(number, entry) for number, entry in self._entries.items())
        if os.write(fd, content) != len(content):
            os.unlink(path)
            os.close(fd)
            raise OSError(f"there is no room for the ledger {path}")
        self._remove_file()
        self._fd, self._path, self._size = fd, path, len(content)

    def _remove_if_empty(self) -> None:
        if not self._entries and self._fd >= 0:
            self._remove_file()

    def _remove_file(self) -> None:
        fd, self._fd = self._fd, -1
        if is_at(fd, self._path):
            os.unlink(self._path)
        os.close(fd)


def _new_file() -> tuple[int, Path]:
    """A ledger that is locked and empty."""
    folder = runtime_folder()
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    while True:
        path = folder / f".held-{os.urandom(8).hex()}"
        fd = os.open(path, flags, 0o600)
        # Between its making and its lock it looked like a dead process's, to be removed.
        if try_exclusive(fd) and is_at(fd, path):
            return fd, path
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        time.sleep(0.001)


_own = _Ledger()


def _after_fork() -> None:
    global _own
    _own.let_go()
    _own = _Ledger()


os.register_at_fork(after_in_child=_after_fork)
