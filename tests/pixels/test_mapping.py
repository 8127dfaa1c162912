"""The viewer's side: nothing that a peer says is taken on trust."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream.errors import OutOfSpace, ProtocolViolation
from openhcs_stream.messages import DTYPES, Part
from openhcs_stream.pixels import MAX_ARENA_NBYTES, MappedArenas, PixelPool, Slot, _mapping
from openhcs_stream.pixels._memory import PAGE_NBYTES, SIZE_SEALS, create_shared_file

if TYPE_CHECKING:
    from collections.abc import Iterator

# From <linux/fcntl.h>.
_F_ADD_SEALS = 1033
_F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE = 0x02, 0x04, 0x08


def is_open(fd: int) -> bool:
    """Whether a number is an open descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def slot() -> Iterator[Slot]:
    with PixelPool(quota_nbytes=64 << 20) as pool:
        slot = pool.acquire(5 * PAGE_NBYTES)
        assert slot is not None
        yield slot


@pytest.fixture
def arenas(slot: Slot) -> MappedArenas:
    arenas = MappedArenas()
    arenas.add(slot.arena.id, slot.arena.nbytes, os.dup(slot.arena.fd))
    return arenas


def part_of(slot: Slot, nbytes: int, offset: int = 0) -> Part:
    return Part(arena=slot.arena.id, offset=slot.offset + offset, nbytes=nbytes, lease=1)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_was_written_is_read(slot: Slot, arenas: MappedArenas, dtype: str) -> None:
    pixels = (np.arange(3 * 4 * 5) % 100).astype(dtype).reshape(3, 4, 5)
    np.copyto(slot.array(pixels.shape, dtype), pixels)
    seen = arenas.array(part_of(slot, pixels.nbytes), [3, 4, 5], dtype)
    np.testing.assert_array_equal(seen, pixels, strict=True)
    assert not seen.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        seen.flags.writeable = True
    assert bytes(arenas.view(part_of(slot, pixels.nbytes))) == pixels.tobytes()


def test_the_caller_copies_any_strides_and_byte_order(slot: Slot, arenas: MappedArenas) -> None:
    pixels = np.arange(60, dtype=">u2").reshape(5, 12)[::-1, ::2].T
    np.copyto(slot.array(pixels.shape, "<u2"), pixels)
    seen = arenas.array(part_of(slot, pixels.size * 2), pixels.shape, "<u2")
    np.testing.assert_array_equal(seen, pixels)
    assert seen.flags.c_contiguous


@pytest.mark.parametrize("shape", [(), (0,), (0, 2**53), (1,) * 8], ids=str)
def test_odd_shapes(slot: Slot, arenas: MappedArenas, shape: tuple[int, ...]) -> None:
    nbytes = 0 if 0 in shape else 1
    assert arenas.array(part_of(slot, nbytes), shape, "|u1").shape == shape


def test_an_empty_part_at_the_very_end(slot: Slot, arenas: MappedArenas) -> None:
    end = Part(arena=slot.arena.id, offset=slot.arena.nbytes, nbytes=0, lease=1)
    assert arenas.view(end).size == 0
    assert arenas.array(end, (3, 0), "<f8").size == 0


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, 2**53), (2**53, 1), (-1, 1), (1, -1), (2**53, 2**53)],
)
def test_parts_must_lie_in_their_arena(
    slot: Slot, arenas: MappedArenas, offset: int, nbytes: int
) -> None:
    part = Part(arena=slot.arena.id, offset=offset, nbytes=nbytes, lease=1)
    with pytest.raises(ProtocolViolation, match="outside of arena"):
        arenas.view(part)
    with pytest.raises(ProtocolViolation, match="outside of arena"):
        arenas.array(part, (nbytes,), "|u1")


@pytest.mark.parametrize("offset", [0, 1, 4095])
def test_the_last_byte_and_not_one_more(slot: Slot, arenas: MappedArenas, offset: int) -> None:
    rest = slot.arena.nbytes - offset
    whole = Part(arena=slot.arena.id, offset=offset, nbytes=rest, lease=1)
    assert arenas.view(whole).nbytes == rest
    more = Part(arena=slot.arena.id, offset=offset, nbytes=rest + 1, lease=1)
    with pytest.raises(ProtocolViolation, match="outside of arena"):
        arenas.view(more)


@pytest.mark.parametrize(
    ("shape", "dtype", "match"),
    [
        ((7,), "<u2", "makes 14 bytes, the part has 16"),
        ((2**32, 2**32, 4), "<u4", "makes"),
        ((2**62, 4), "<u2", "makes"),
        ((-2, -4), "<u2", "is no array"),
        ((1,) * 70 + (8,), "<u2", "is no array"),
        ((8,), ">u2", "is no dtype"),
        ((2,), "|O8", "is no dtype"),
    ],
    ids=str,
)
def test_shape_and_dtype_must_make_the_bytes(
    slot: Slot, arenas: MappedArenas, shape: tuple[int, ...], dtype: str, match: str
) -> None:
    with pytest.raises(ProtocolViolation, match=match):
        arenas.array(part_of(slot, 16), shape, dtype)


def test_a_shape_that_numpy_cannot_have(slot: Slot, arenas: MappedArenas) -> None:
    with pytest.raises(ProtocolViolation, match="is no array"):
        arenas.array(part_of(slot, 0), (2**53, 2**53, 0), "<u8")


@pytest.mark.parametrize("arena", [-1, 99])
def test_unknown_arenas(arenas: MappedArenas, arena: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"named arena {arena}"):
        arenas.view(Part(arena=arena, offset=0, nbytes=0, lease=1))


def test_the_descriptor_is_closed_in_every_case(slot: Slot) -> None:
    arenas = MappedArenas()
    good = os.dup(slot.arena.fd)
    arenas.add(3, slot.arena.nbytes, good)
    assert not is_open(good)
    assert len(arenas) == 1
    twice = os.dup(slot.arena.fd)
    with pytest.raises(ProtocolViolation, match="offered arena 3 twice"):
        arenas.add(3, slot.arena.nbytes, twice)
    assert not is_open(twice)


@pytest.mark.parametrize("nbytes", [0, -1, MAX_ARENA_NBYTES + 1])
def test_impossible_sizes(slot: Slot, nbytes: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"an arena of {nbytes} bytes"):
        MappedArenas().add(0, nbytes, os.dup(slot.arena.fd))


def test_an_arena_smaller_than_it_says(slot: Slot) -> None:
    with pytest.raises(ProtocolViolation, match=f"which has {slot.arena.nbytes}"):
        MappedArenas().add(0, slot.arena.nbytes + 1, os.dup(slot.arena.fd))


def test_an_arena_that_could_shrink_under_the_reader(tmp_path: Path) -> None:
    with pytest.raises(ProtocolViolation, match="without the seals"):
        MappedArenas().add(0, PAGE_NBYTES, create_shared_file(PAGE_NBYTES))
    path = tmp_path / "plain"
    path.write_bytes(bytes(PAGE_NBYTES))
    with pytest.raises(ProtocolViolation, match="without the seals"):
        MappedArenas().add(0, PAGE_NBYTES, os.open(path, os.O_RDONLY))


def test_nothing_but_memory_is_mapped(tmp_path: Path) -> None:
    """A descriptor of any other kind is refused, and closed: no message reads a file."""
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(PAGE_NBYTES))
    socket_end, other_end = socket.socketpair()
    pipe_end, pipe_other = os.pipe()
    kinds = {
        "a file": os.open(plain, os.O_RDWR),
        "a file without a name": os.open(tmp_path, os.O_RDWR | os.O_TMPFILE),
        "shared memory with a name": os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE),
        "a folder": os.open(tmp_path, os.O_RDONLY),
        "a path": os.open(plain, os.O_PATH),
        "a socket": socket_end.detach(),
        "a pipe": pipe_end,
        "zeros": os.open("/dev/zero", os.O_RDWR),
        "nothing": os.open("/dev/null", os.O_RDWR),
        "a terminal": os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
        "this process's memory": os.open("/proc/self/mem", os.O_RDWR),
        "events": os.eventfd(0),
        "a process": os.pidfd_open(os.getpid()),
        "memory without seals": os.memfd_create("test"),
    }
    try:
        for kind, fd in kinds.items():
            with pytest.raises(ProtocolViolation, match="without the seals"):
                MappedArenas().add(0, PAGE_NBYTES, fd)
            assert not is_open(fd), kind
    finally:
        other_end.close()
        os.close(pipe_other)


def test_memory_that_is_sealed_against_half_of_it_is_not_mapped() -> None:
    for seals in (0, _F_SEAL_SHRINK, _F_SEAL_GROW, _F_SEAL_WRITE):
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, PAGE_NBYTES)
        fcntl.fcntl(fd, _F_ADD_SEALS, seals)
        with pytest.raises(ProtocolViolation, match="without the seals"):
            MappedArenas().add(0, PAGE_NBYTES, fd)
        assert not is_open(fd)


def test_huge_pages_are_not_mapped() -> None:
    """The kernel takes them back from under a reader, who dies of it, whatever the seals say."""
    try:
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"this system has no huge pages: {error}")
    os.ftruncate(fd, 2 << 20)
    fcntl.fcntl(fd, _F_ADD_SEALS, SIZE_SEALS)
    with pytest.raises(ProtocolViolation, match="in pages of"):
        MappedArenas().add(0, PAGE_NBYTES, fd)
    assert not is_open(fd)


#: A reader, and an owner who makes the memory smaller under it. With seals the owner can't.
SHRINKING = """
import fcntl, os, sys
import numpy as np
from openhcs_stream.pixels._memory import Mapping, PAGE_NBYTES, SIZE_SEALS
fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
os.ftruncate(fd, PAGE_NBYTES)
if sys.argv[1] == "sealed":
    fcntl.fcntl(fd, 1033, SIZE_SEALS)
reader = np.asarray(Mapping(fd, PAGE_NBYTES, writable=False))
try:
    os.ftruncate(fd, 0)
except PermissionError:
    print("refused")
print(reader.sum())
"""


@pytest.mark.parametrize(
    ("how", "status"), [("open", -signal.SIGBUS), ("sealed", 0)], ids=["open", "sealed"]
)
def test_what_the_seals_are_for(how: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHRINKING, how],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.split() == ([] if status else ["refused", "0"])


_SIZES = st.integers(-2, 40) | st.integers(0, 1 << 20) | st.sampled_from(
    [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64]
)  # fmt: skip


@settings(max_examples=400)
@given(
    offset=_SIZES,
    nbytes=_SIZES,
    shape=st.lists(_SIZES, max_size=9),
    dtype=st.sampled_from([*sorted(DTYPES), ">u2", "O", "", "|O8", "<u2 "]),
    exact=st.booleans(),
)
def test_whatever_is_named_lies_in_the_arena_or_is_refused(
    offset: int, nbytes: int, shape: list[int], dtype: str, exact: bool
) -> None:
    with PixelPool(quota_nbytes=1 << 20) as pool:
        slot = pool.acquire(3 * PAGE_NBYTES)
        assert slot is not None
        arenas = MappedArenas()
        size = slot.arena.nbytes
        arenas.add(1, size, os.dup(slot.arena.fd))
        base = arenas.view(Part(1, 0, size, 1)).__array_interface__["data"][0]
        if exact and dtype in DTYPES:  # such that sizes match, as by chance they rarely do
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        part = Part(1, offset, nbytes, 1)
        for look in (lambda: arenas.view(part), lambda: arenas.array(part, shape, dtype)):
            try:
                seen = look()
            except ProtocolViolation:
                continue
            assert seen.nbytes == nbytes
            assert not seen.flags.writeable
            if nbytes:
                begin = seen.__array_interface__["data"][0]
                assert base <= begin == base + offset
                assert begin + seen.nbytes <= base + size
                seen.copy()  # every byte can be read


def test_how_much_is_mapped_is_known(slot: Slot) -> None:
    arenas = MappedArenas()
    for number in range(3):
        arenas.add(number, slot.arena.nbytes, os.dup(slot.arena.fd))
    assert arenas.nbytes == 3 * slot.arena.nbytes
    arenas.retire(1)
    arenas.retire(1)
    assert arenas.nbytes == 2 * slot.arena.nbytes
    arenas.close()
    assert arenas.nbytes == 0


def test_a_system_that_will_not_map(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, nbytes: int, *, writable: bool) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(_mapping, "Mapping", refuse)
    with pytest.raises(OutOfSpace, match="Cannot allocate memory"):
        MappedArenas().add(0, slot.arena.nbytes, os.dup(slot.arena.fd))


def test_not_more_arenas_than_anybody_needs(
    slot: Slot, arenas: MappedArenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mapping, "_MAX_ARENAS", 1)
    with pytest.raises(ProtocolViolation, match="more than 1 arenas"):
        arenas.add(99, slot.arena.nbytes, os.dup(slot.arena.fd))


def test_views_outlive_the_retirement_of_their_arena(slot: Slot, arenas: MappedArenas) -> None:
    slot.memory[:4] = [1, 2, 3, 4]
    seen = arenas.view(part_of(slot, 4))
    arenas.retire(slot.arena.id)
    arenas.retire(slot.arena.id)
    assert seen.tolist() == [1, 2, 3, 4]
    with pytest.raises(ProtocolViolation, match="has retired"):
        arenas.view(part_of(slot, 4))
    arenas.add(slot.arena.id + 1, slot.arena.nbytes, os.dup(slot.arena.fd))
    arenas.close()
    arenas.close()
    assert len(arenas) == 0
    assert seen.tolist() == [1, 2, 3, 4]
