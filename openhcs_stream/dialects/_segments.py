"""Named shared memory of other people's senders: attached, read, and removed with care.

This is the one place that touches named segments. It never uses ``multiprocessing.shared_memory``:
on Python 3.11 and 3.12 attaching registers the name with this process's resource tracker, which
destroys a live sender's segment when the tracker's process goes, and keeps every name for life.
Here nothing is registered anywhere.

A name comes from whoever can reach the socket, and what is done with it ends in an unlink. So a
name is only ever a plain file name directly in /dev/shm, opened without following links, of a
regular file that belongs to the user who runs the viewer; and what is unlinked is that very file,
not whatever carries its name by then.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import re
import stat
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.errors import InvalidItem, UsageError
from openhcs_stream.runtime import Identity, hold

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from openhcs_stream.runtime import Held

__all__ = ["Segment", "discard"]

logger = logging.getLogger(__name__)

#: Where glibc and musl keep POSIX shared memory.
SHM_FOLDER = "/dev/shm"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOT_LINUX = (
    "only Linux keeps named shared memory as files whose owner can be checked; elsewhere it would"
    " have to be opened blindly, through _posixshmem.shm_open"
)
_CURE = "Pass the name of a shared-memory block that the sending process created and filled."


class Segment:
    """One named block of shared memory that a sender of the same user filled.

    Attributes
    ----------
    name : str
    octets : (N,) uint8, read-only
        The bytes that were asked for. The mapping lives until the last view of them is gone, so
        that nothing that still refers to it can crash the process.
    """

    def __init__(self, name: str, octets: npt.NDArray[np.uint8], identity: tuple[int, int]) -> None:
        self.name = name
        self.octets = octets
        self._identity = identity
        self._held: Held | None = None

    @classmethod
    def attach(cls, name: str, nbytes: int) -> Segment:
        """Map a block read-only, for reading `nbytes` from its beginning.

        No descriptor stays open: a batch may name thousands of blocks.

        Raises
        ------
        InvalidItem
            The name is none, or what it names is not ours, not a plain file or too small.
        """
        if _NAME.fullmatch(name) is None or name in (".", ".."):
            raise InvalidItem(f"{_short(name)} is no name of shared memory.", cure=_CURE)
        if not sys.platform.startswith("linux"):
            raise InvalidItem(f"{name!r} can't be read: {_NOT_LINUX}.", cure="Send inline `data`.")
        with _opened(name) as fd:
            status = os.fstat(fd)
            problem = _problem(status, nbytes)
            if problem:
                raise InvalidItem(f"shared memory {name!r} {problem}.", cure=_CURE)
            octets = _map(fd, nbytes, name)
        return cls(name, octets, (status.st_dev, status.st_ino))

    def take_over(self) -> None:
        """Be the one who removes the name: with `unlink`, or by a sweeper where this is killed."""
        try:
            identity = Identity(*self._identity)
            self._held = hold("segment", Path(SHM_FOLDER, self.name), identity=identity)
        except (OSError, UsageError) as error:
            logger.warning(
                "shared memory %r would stay if this process were killed: %s", self.name, error
            )

    def unlink(self) -> None:
        """Remove the name, unless another file has it by now; gone already is fine."""
        path = os.path.join(SHM_FOLDER, self.name)
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("shared memory %r could not be removed: %s", self.name, error)
            return
        if self._held is not None:
            self._held.release()


def discard(name: str) -> None:
    """Remove a block that was handed over and that nobody can use; only a file of this user's."""
    if _NAME.fullmatch(name) is None or not sys.platform.startswith("linux"):
        return
    path = os.path.join(SHM_FOLDER, name)
    try:
        status = os.lstat(path)
        if not _problem(status, 0):
            os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("shared memory %r could not be removed: %s", name, error)


class _Mapping:
    """Gives numpy an address, and is kept alive by every array over it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),  # read-only
            "shape": (nbytes,),
            "typestr": "|u1",
        }
        weakref.finalize(self, _unmap, address, nbytes).atexit = False


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int]:
    # O_NONBLOCK: a fifo of that name must not hang the viewer before it is found to be one.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(os.path.join(SHM_FOLDER, name), flags)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InvalidItem(f"shared memory {name!r}: {reason}.", cure=_CURE) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _problem(status: os.stat_result, nbytes: int) -> str:
    """Why a file is not what a sender of this user left for us; empty: it is."""
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    if status.st_uid != os.getuid():
        return f"belongs to the user {status.st_uid}, not to {os.getuid()}"
    if status.st_size < nbytes:
        return f"holds {status.st_size} bytes, fewer than the {nbytes} of the image"
    return ""


def _map(fd: int, nbytes: int, name: str) -> npt.NDArray[np.uint8]:
    # mmap.mmap would keep a duplicate of the descriptor (until Python 3.13).
    address = _libc().mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        reason = os.strerror(ctypes.get_errno())
        raise InvalidItem(
            f"shared memory {name!r} of {nbytes} bytes can't be mapped: {reason}.",
            cure="Send fewer or smaller images in a batch.",
        )
    return np.asarray(_Mapping(int(address), nbytes))


def _unmap(address: int, nbytes: int) -> None:
    _libc().munmap(address, nbytes)


_MAP_FAILED = ctypes.c_void_p(-1).value
_loaded: list[ctypes.CDLL] = []


def _libc() -> ctypes.CDLL:
    if not _loaded:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_long,
        ]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        _loaded.append(libc)
    return _loaded[0]


def _short(text: str, limit: int = 80) -> str:
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
