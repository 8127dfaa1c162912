"""Memory from the kernel: anonymous shared files, their seals and their mappings.

mmap(2) is called through ctypes, for `mmap.mmap` keeps a duplicate of the file descriptor which a
forked child inherits; the memory would then outlive its owner (``trackfd=False`` came with 3.13).
`multiprocessing.shared_memory` is out as well: on 3.11 and 3.12 a reader's resource tracker
destroys the writer's segment when the reader dies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from openhcs_stream.errors import OutOfSpace
from openhcs_stream.pixels._limits import has_memory_for

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "OWNER_SEALS",
    "PAGE_NBYTES",
    "SIZE_SEALS",
    "Mapping",
    "close_in_child",
    "create_shared_file",
    "fault_in",
    "give_back_free_memory",
    "private_memory",
    "seal",
    "seals_of",
]

PAGE_NBYTES: Final = mmap.PAGESIZE

# From <linux/fcntl.h> and <linux/memfd.h>; Python 3.11 has no names for most of them.
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_F_SEAL_SEAL: Final = 0x01
_F_SEAL_SHRINK: Final = 0x02
_F_SEAL_GROW: Final = 0x04
_F_SEAL_FUTURE_WRITE: Final = 0x10  # Linux 5.1
_MFD_NOEXEC_SEAL: Final = 0x08  # Linux 6.3; vm.memfd_noexec=2 refuses a memfd without it
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14
_PROT_NONE: Final = 0
_MAP_NORESERVE: Final = 0x4000
_MAP_FIXED_NOREPLACE: Final = 0x100000  # Linux 4.17
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

#: A file with these can't be cut short under a reader, which would die of SIGBUS.
SIZE_SEALS: Final = _F_SEAL_SHRINK | _F_SEAL_GROW
#: What the owner sets after its own mapping: nobody else can ever map it writable, nor punch holes.
OWNER_SEALS: Final = SIZE_SEALS | _F_SEAL_FUTURE_WRITE | _F_SEAL_SEAL


class _Forkable(Protocol):
    """Something that must not work in a forked child."""

    def after_fork_in_child(self) -> None:
        """Let go of what belongs to the parent. No other thread runs; no lock may be taken."""


_forkables: weakref.WeakSet[_Forkable] = weakref.WeakSet()


def close_in_child(thing: _Forkable) -> None:
    """Have ``thing.after_fork_in_child()`` called in every child, while the thing lives."""
    _forkables.add(thing)


def _after_fork_in_child() -> None:
    for thing in list(_forkables):
        thing.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


@functools.cache
def _libc() -> Any:  # ctypes has no type for a library's functions
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
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


class Mapping:
    """A shared file in this process's memory, as one array of bytes.

    ``numpy.asarray(mapping)`` is an array of uint8 that keeps the mapping alive, as every view of
    it does; when the last is gone, the memory is unmapped. Nothing is unmapped at the
    interpreter's exit, for a thread may still be reading.

    Parameters
    ----------
    fd : int
        The file; it may be closed afterwards.
    nbytes : int
    writable : bool

    Raises
    ------
    OSError
        The kernel refused.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_address", "_munmap", "_nbytes", "_pid")

    def __init__(self, fd: int, nbytes: int, *, writable: bool) -> None:
        self._pid = 0
        libc = _libc()
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = libc.mmap(None, nbytes, protection, mmap.MAP_SHARED, fd, 0)
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        # A child that keeps the pages would keep the memory when its parent is killed.
        libc.madvise(address, nbytes, mmap.MADV_DONTFORK)
        self._address = address
        self._nbytes = nbytes
        self._munmap = libc.munmap
        self._pid = os.getpid()
        self.__array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, not writable),
        }
        close_in_child(self)

    def after_fork_in_child(self) -> None:
        """Fence the hole that MADV_DONTFORK left: no later mapping may land under old views."""
        _libc().mmap(
            self._address,
            self._nbytes,
            _PROT_NONE,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE,
            -1,
            0,
        )

    def __del__(self, getpid=os.getpid) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        # In a forked child the addresses are not ours to unmap.
        if self._pid == getpid():
            self._munmap(self._address, self._nbytes)


def create_shared_file(nbytes: int) -> int:
    """Make a shared file without a name, of a fixed size and without memory yet.

    Returns
    -------
    int
        Its descriptor, closed on exec.

    Raises
    ------
    OutOfSpace
        The machine refused: too many open files, a limit on file sizes, no memfd.
    """
    if not hasattr(os, "memfd_create"):
        raise OutOfSpace(
            f"{sys.platform} has no shared memory without a name.",
            cure="Pass shared=False; pixels then go through sockets.",
        )
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    fd = -1
    try:
        try:
            fd = os.memfd_create("openhcs-stream", flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create("openhcs-stream", flags)  # an older kernel
        os.ftruncate(fd, nbytes)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise OutOfSpace(
            f"the system gave no shared memory of {nbytes} bytes: {error.strerror}.",
            cure="Raise the limit on open files (ulimit -n) or on file sizes (ulimit -f), "
            "or send fewer and smaller items at once.",
        ) from error
    return fd


def seal(fd: int) -> None:
    """Set `OWNER_SEALS`, or what of them the kernel knows, after the owner's own mapping."""
    try:
        fcntl.fcntl(fd, _F_ADD_SEALS, OWNER_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(fd, _F_ADD_SEALS, OWNER_SEALS & ~_F_SEAL_FUTURE_WRITE)


def seals_of(fd: int) -> int:
    """Return the seals of a file; 0 where it can't have any."""
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        return 0


def fault_in(memory: npt.NDArray[np.uint8], fd: int, offset: int) -> None:
    """Give pages to a piece of memory, so that writing to it costs no faults and can't fail.

    Parameters
    ----------
    memory : (N,) uint8
        The piece, page-aligned, mapped writable.
    fd, offset : int
        The file that it is a mapping of and where it begins there; -1 for private memory.

    Raises
    ------
    OutOfSpace
        The machine has no memory for it. (Without this call the first write would be a SIGBUS.)
    """
    if fd >= 0:
        # A control group that is full kills, where the machine itself would refuse.
        if not has_memory_for(memory.nbytes):
            raise OutOfSpace(
                f"this process may use too little more memory for {memory.nbytes} bytes of pixels.",
                cure="Free some memory, raise the container's limit, or lower quota_nbytes.",
            )
        try:
            os.posix_fallocate(fd, offset, memory.nbytes)
        except OSError as error:
            raise OutOfSpace(
                f"the machine has no {memory.nbytes} bytes of memory for pixels: {error.strerror}.",
                cure="Free some memory, raise the container's limit, or lower quota_nbytes.",
            ) from error
        address = memory.__array_interface__["data"][0]
        if _libc().madvise(address, memory.nbytes, _MADV_POPULATE_WRITE) == 0:
            return
    memory[::PAGE_NBYTES] = 0


def give_back_free_memory() -> None:
    """Give memory back to the system that was freed; where nothing knows how, it is kept.

    glibc keeps what is freed between what is in use: after many messages of some size, for ever.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def private_memory(nbytes: int) -> npt.NDArray[np.uint8]:
    """Return page-aligned memory that isn't shared, for systems without memfd.

    Raises
    ------
    OutOfSpace
        The machine refused.
    """
    try:
        memory = np.empty(nbytes + PAGE_NBYTES, np.uint8)
    except MemoryError as error:
        raise OutOfSpace(
            f"the machine has no {nbytes} bytes of memory for pixels.",
            cure="Free some memory or lower quota_nbytes.",
        ) from error
    start = -int(memory.__array_interface__["data"][0]) % PAGE_NBYTES
    return memory[start : start + nbytes]
