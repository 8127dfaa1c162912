"""Shared memory with a name, for viewers that can only attach by name: written again and again.

A peer of ours gets a file descriptor, and what it describes is gone with its last user. Other
people's viewers are told a name in /dev/shm instead, which nobody removes when we are killed. So
each block stands in this process's ledger, whose lock tells that it died, and a janitor, a process
of a few megabytes that only waits for our end, removes the names at once.

A block is faulted in once and used for one image after the other, as a slot of an arena is. A
viewer that removes what it has read is given a second name of the same memory.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.errors import InvalidItem, OutOfSpace, StreamError
from openhcs_stream.pixels._memory import PAGE_NBYTES, Mapping, close_in_child
from openhcs_stream.runtime import hold, identify, name_aside

if TYPE_CHECKING:
    import subprocess

    import numpy.typing as npt

    from openhcs_stream.runtime import Held, Identity

__all__ = ["NamedBlock", "NamedBlocks"]

logger = logging.getLogger(__name__)

#: Where glibc and musl keep POSIX shared memory.
SHM_FOLDER = Path("/dev/shm")

#: Unused memory that is kept for the next image.
KEPT_NBYTES = 256 << 20


class NamedBlock:
    """Memory that another process can attach by name. Made by `NamedBlocks.take`.

    Attributes
    ----------
    octets : (N,) uint8
        The memory, writable; N may be more than was asked for.
    name : str
        What the viewer is told: a plain name, without a slash.
    """

    def __init__(self, nbytes: int) -> None:
        path = SHM_FOLDER / f"openhcs-stream-{os.urandom(8).hex()}"
        self._held: Held = hold("segment", path)
        self._alias: Held | None = None
        self._fd = -1
        try:
            _janitor.watch(None, self._held.temporary)
            self._fd = os.open(
                self._held.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            # In time: a full /dev/shm would otherwise be a SIGBUS at the first write.
            os.posix_fallocate(self._fd, 0, nbytes)
            self.octets: npt.NDArray[np.uint8] = np.asarray(
                Mapping(self._fd, nbytes, writable=True)
            )
            _janitor.watch(identify(self._held.temporary), path)
            self._held.made()
        except OSError as error:
            self.close()
            raise OutOfSpace(
                f"there is no shared memory of {nbytes} bytes in {SHM_FOLDER}: {error.strerror}.",
                cure="Send smaller images, or give /dev/shm more room (docker run --shm-size).",
            ) from error
        except BaseException:
            self.close()
            raise
        self._path = path

    @property
    def name(self) -> str:
        held = self._alias or self._held
        return held.entry.final.name

    @property
    def is_read(self) -> bool:
        """Whether the viewer has removed the name that `lend` gave it."""
        return self._alias is not None and os.fstat(self._fd).st_nlink < 2

    @property
    def is_whole(self) -> bool:
        """Whether the block still has its own name: a viewer may have removed that one too."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink > 0

    def lend(self) -> str:
        """Give it another name, which is the viewer's to remove; `name` from now on."""
        self.end_loan()
        path = SHM_FOLDER / f"openhcs-stream-{os.urandom(8).hex()}"
        held = hold("segment", path)
        try:
            # First, so that there is no moment in which we could be killed and it knew nothing.
            _janitor.watch(identify(self._path), held.temporary, path)
            os.link(self._path, held.temporary)
            held.made()
        except BaseException:
            held.remove()
            raise
        self._alias = held
        return path.name

    def end_loan(self) -> None:
        """Remove the name that `lend` gave, if the viewer has not."""
        held, self._alias = self._alias, None
        if held is not None:
            _remove(held)

    def close(self) -> None:
        """Remove the names; the memory goes when the last viewer has let go of it."""
        self.end_loan()
        _remove(self._held)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class NamedBlocks:
    """The blocks of one sender. Used by one thread.

    Raises
    ------
    InvalidItem
        This system has no named memory that could be looked after.
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux") or not SHM_FOLDER.is_dir():
            raise InvalidItem(
                f"pixels go to such a viewer by files in {SHM_FOLDER}, which is not here.",
                cure="Use a viewer of openhcs-stream, or Linux.",
            )
        self._free: dict[int, list[NamedBlock]] = {}
        self._all: set[NamedBlock] = set()
        self._kept_nbytes = 0
        self._pid = os.getpid()
        _live.add(self)

    def take(self, nbytes: int) -> NamedBlock:
        """A block of at least that size, used before if there is one.

        Raises
        ------
        OutOfSpace
            /dev/shm is full.
        """
        size = _size_class(nbytes)
        free = self._free.get(size, [])
        while free:
            block = free.pop()
            self._kept_nbytes -= size
            if block.is_whole:
                return block
            self._drop(block)
        block = NamedBlock(size)
        self._all.add(block)
        return block

    def give(self, block: NamedBlock) -> None:
        """It is not needed any more; its memory may be written again at once."""
        block.end_loan()
        size = block.octets.nbytes
        if self._kept_nbytes + size > KEPT_NBYTES or not block.is_whole:
            self._drop(block)
            return
        self._kept_nbytes += size
        self._free.setdefault(size, []).append(block)

    def close(self) -> None:
        """Remove all names. Idempotent; does nothing in a forked child."""
        self._free.clear()
        self._kept_nbytes = 0
        _live.discard(self)
        if os.getpid() == self._pid:
            for block in list(self._all):
                self._drop(block)
            if not _live:
                _janitor.close()

    def _drop(self, block: NamedBlock) -> None:
        self._all.discard(block)
        block.close()


_live: weakref.WeakSet[NamedBlocks] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for blocks in list(_live):
        blocks.close()
    _janitor.close()


def _remove(held: Held) -> None:
    try:
        held.remove()
    except OSError as error:
        logger.warning("shared memory %s could not be removed: %s", held.entry.final, error)


def _size_class(nbytes: int) -> int:
    """Whole pages in steps of an eighth, so that a free block fits images of nearly its size."""
    pages = max(1, -(-nbytes // PAGE_NBYTES))
    step = 1 << max(0, pages.bit_length() - 4)
    return -(-pages // step) * step * PAGE_NBYTES


# --- the janitor ----------------------------------------------------------------------------------

#: What the janitor runs: no package of ours, so that it starts in a hundredth of a second. It is
#: told of each file the names that it will have, before it has them, and when its standard input
#: ends, we have: whichever of the names is that file goes. File 0 of device 0 is whatever has such
#: a name: nobody else makes any. Unlike multiprocessing's resource tracker it knows of nothing
#: that this process did not make itself.
_JANITOR = """
import os, sys
held = {}
for line in sys.stdin.buffer:
    device, inode, *paths = line.rstrip(b"\\n").split(b"\\0")
    held[tuple(paths)] = (int(device), int(inode))
    if len(held) > 512:
        # The last of them may not be there yet.
        gone = [each for each in list(held)[:-64] if not any(map(os.path.lexists, each))]
        for each in gone:
            del held[each]
for paths, identity in held.items():
    for path in paths:
        try:
            status = os.lstat(path)
            if identity in ((0, 0), (status.st_dev, status.st_ino)):
                os.unlink(path)
        except OSError:
            pass
"""


class _Janitor:
    """A process that removes names when this one has ended without doing so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._write = -1
        self._process: subprocess.Popen[bytes] | None = None
        close_in_child(self)

    def watch(self, identity: Identity | None, *paths: Path) -> None:
        """Tell it of a file and its names to be; starts it if need be. None: by its name alone."""
        names = [os.fsencode(path) for path in paths]
        device, inode = (0, 0) if identity is None else (identity.device, identity.inode)
        if identity is not None:
            names += [os.fsencode(name_aside(path, identity)) for path in paths[-1:]]
        line = b"\0".join([b"%d" % device, b"%d" % inode, *names]) + b"\n"
        with self._lock:
            if self._write < 0:
                self._start()
            try:
                os.write(self._write, line)
            except OSError:
                # It was killed: the ledger still tells of everything that it knew.
                self._start()
                with contextlib.suppress(OSError):
                    os.write(self._write, line)

    def close(self) -> None:
        """There is nothing to watch any more; the next `watch` starts another."""
        with self._lock:
            if self._write >= 0:
                os.close(self._write)
                self._write = -1
            if self._process is not None:
                import subprocess

                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
                self._process = None

    def after_fork_in_child(self) -> None:
        """The child's copy would keep the janitor waiting after the parent's death."""
        self._lock = threading.Lock()
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
        if self._process is not None:
            self._process.returncode = 0  # it is not the child's to wait for
            self._process = None

    def _start(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
        import subprocess

        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _JANITOR],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # what ends the whole group must not end it
            )
        except OSError as error:
            os.close(write)
            raise StreamError(
                f"the janitor of shared memory could not be started: {error}.",
                cure="Allow one more process (ulimit -u).",
            ) from error
        finally:
            os.close(read)
        self._write = write


_janitor = _Janitor()
