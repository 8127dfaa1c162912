"""Shared files, seals and mappings."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openhcs_stream.errors import OutOfSpace
from openhcs_stream.pixels import _memory
from openhcs_stream.pixels._memory import (
    OWNER_SEALS,
    PAGE_NBYTES,
    SIZE_SEALS,
    Mapping,
    create_shared_file,
    fault_in,
    private_memory,
    seal,
    seals_of,
)


def mapped(address: int) -> bool:
    """Whether an address of this process is mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(side, 16) for side in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False


@pytest.fixture
def fd() -> Any:
    fd = create_shared_file(4 * PAGE_NBYTES)
    yield fd
    os.close(fd)


def test_a_mapping_lives_as_long_as_its_last_view(fd: int) -> None:
    whole = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=True))
    address = whole.__array_interface__["data"][0]
    view = whole[PAGE_NBYTES:].view(np.uint16).reshape(-1, 8)[::2].T
    del whole
    gc.collect()
    view[:] = 7
    assert mapped(address)
    memory = view[0].data
    del view
    gc.collect()
    assert mapped(address)
    assert memory[0] == 7
    del memory
    gc.collect()
    assert not mapped(address)


def test_the_fork_hook_calls_all_that_live(fd: int) -> None:
    mapping = Mapping(fd, PAGE_NBYTES, writable=True)
    whole = np.asarray(mapping)
    whole[:] = 3
    # Here the memory is still mapped, so that the fence does not go up (in a child it does).
    mapping.after_fork_in_child()
    assert (whole == 3).all()
    called: list[str] = []

    class Thing:
        def after_fork_in_child(self) -> None:
            called.append("it")

    thing = Thing()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_memory, "_forkables", weakref.WeakSet())
        _memory.close_in_child(thing)
        _memory._after_fork_in_child()
        del thing
        gc.collect()
        _memory._after_fork_in_child()
    assert called == ["it"]


def test_writing_is_seen_by_a_reader_who_cannot_write(fd: int) -> None:
    ours = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=True))
    theirs = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=False))
    ours[5] = 42
    assert theirs[5] == 42
    with pytest.raises(ValueError, match="read-only"):
        theirs[5] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        theirs.flags.writeable = True


def test_a_mapping_that_the_kernel_refuses() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        Mapping(-1, PAGE_NBYTES, writable=False)


def test_the_seals_keep_size_and_pixels(fd: int) -> None:
    ours = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=True))
    seal(fd)
    assert seals_of(fd) & OWNER_SEALS == OWNER_SEALS
    peer = os.dup(fd)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(peer, PAGE_NBYTES)
        with pytest.raises(PermissionError):
            os.ftruncate(peer, 8 * PAGE_NBYTES)
        with pytest.raises(PermissionError):
            os.pwrite(peer, b"x", 0)
        with pytest.raises(PermissionError):
            Mapping(peer, PAGE_NBYTES, writable=True)
        with pytest.raises(PermissionError):
            mmap.mmap(peer, PAGE_NBYTES, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(peer, 1033, 0x08)
    finally:
        os.close(peer)
    fault_in(ours[:PAGE_NBYTES], fd, 0)  # memory may still be given to it
    ours[:] = 1


def test_an_older_kernel_has_no_future_write_seal(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def older(fd: int, command: int, argument: int = 0) -> int:
        if command == 1033 and argument & 0x10:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", older)
    seal(fd)
    assert seals_of(fd) & SIZE_SEALS == SIZE_SEALS


def test_other_troubles_with_seals_are_not_hidden(fd: int) -> None:
    seal(fd)
    with pytest.raises(PermissionError):
        seal(fd)


def test_a_plain_file_has_no_seals(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert seals_of(file.fileno()) & SIZE_SEALS == 0
    read, write = os.pipe()
    assert seals_of(read) == 0
    os.close(read)
    os.close(write)


def test_an_older_kernel_has_no_noexec_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & 0x08:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    fd = create_shared_file(PAGE_NBYTES)
    assert os.fstat(fd).st_size == PAGE_NBYTES
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutOfSpace, match=r"Too many open files.*ulimit"):
        create_shared_file(PAGE_NBYTES)


def test_a_limit_on_file_sizes_closes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def refuse(fd: int, nbytes: int) -> None:
        opened.append(fd)
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OutOfSpace, match="File too large"):
        create_shared_file(PAGE_NBYTES)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(opened[0])


def test_a_system_without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OutOfSpace, match="no shared memory without a name"):
        create_shared_file(PAGE_NBYTES)


def test_lack_of_memory_is_an_error_and_no_signal(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=True))

    def refuse(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutOfSpace, match=r"has no \d+ bytes.*No space left"):
        fault_in(memory, fd, 0)


def test_a_kernel_that_cannot_populate(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.asarray(Mapping(fd, 4 * PAGE_NBYTES, writable=True))
    monkeypatch.setattr(_memory, "_MADV_POPULATE_WRITE", 9999)
    fault_in(memory, fd, 0)
    assert os.fstat(fd).st_blocks * 512 == 4 * PAGE_NBYTES


def test_private_memory_is_page_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = private_memory(3 * PAGE_NBYTES)
    assert memory.nbytes == 3 * PAGE_NBYTES
    assert memory.__array_interface__["data"][0] % PAGE_NBYTES == 0
    fault_in(memory, -1, 0)
    with pytest.raises(OutOfSpace, match="has no"):
        private_memory(1 << 60)
