"""The viewer's side: nothing that a peer says is taken on trust."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from openhcs_stream.errors import OutOfSpace, ProtocolViolation
from openhcs_stream.messages import DTYPES, Part
from openhcs_stream.pixels import MAX_ARENA_NBYTES, MappedArenas, PixelPool, Slot, _mapping
from openhcs_stream.pixels._memory import PAGE_NBYTES, create_shared_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
