"""The sender's side: slots, leases, loans, arenas."""

from __future__ import annotations

import errno
import gc
import os
import queue
import resource
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from openhcs_stream.errors import (
    ForkedStream,
    InvalidItem,
    OutOfSpace,
    StreamClosed,
    UsageError,
)
from openhcs_stream.messages import Part
from openhcs_stream.pixels import MAX_ARENA_NBYTES, MappedArenas, PixelPool, Slot, _memory, _pool
from openhcs_stream.pixels._arena import FREE, LEASED, slot_capacity, slot_capacity_within
from openhcs_stream.pixels._memory import PAGE_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.001)


def idle(pool: PixelPool) -> bool:
    """Whether the pool's thread has nothing to do."""
    return pool._filler is None


def take(pool: PixelPool, nbytes: int) -> Slot:
    slot = pool.acquire(nbytes)
    assert slot is not None
    return slot


def all_of(pool: PixelPool, nbytes: int) -> list[Slot]:
    """Take slots of one size until the quota is used up."""
    slots = []
    while (slot := pool.acquire(nbytes)) is not None:
        slots.append(slot)
        wait_until(lambda: idle(pool))  # what it is making would be missed else
    return slots


def lend(pool: PixelPool, shape: Any, dtype: Any = "u1") -> np.ndarray[Any, Any]:
    array = pool.allocate(shape, dtype)
    assert array is not None
    return array


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def pool(request: pytest.FixtureRequest) -> Iterator[PixelPool]:
    with PixelPool(quota_nbytes=32 * MIB, shared=request.param) as pool:
        yield pool


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 65536, 65537, 10**6, 8 * MIB, 2**28 + 1])
def test_slots_are_whole_pages_and_little_is_wasted(nbytes: int) -> None:
    capacity = slot_capacity(nbytes)
    assert capacity >= max(nbytes, 1)
    assert capacity % PAGE_NBYTES == 0
    assert capacity - nbytes <= max(nbytes / 8, PAGE_NBYTES)
    assert slot_capacity(capacity) == capacity == slot_capacity_within(capacity)
    assert slot_capacity_within(capacity + PAGE_NBYTES - 1) <= capacity + PAGE_NBYTES - 1


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 100_000, MIB, 5 * MIB, 8 * MIB])
def test_a_slot_of_any_size(pool: PixelPool, nbytes: int) -> None:
    slot = take(pool, nbytes)
    assert slot.nbytes == nbytes
    assert slot.memory.nbytes == slot.capacity >= nbytes
    assert slot.offset + slot.capacity <= slot.arena.nbytes <= MAX_ARENA_NBYTES
    assert slot.view.nbytes == nbytes
    slot.memory[:] = 9
    assert bytes(slot.view) == b"\x09" * nbytes
    assert "held" in repr(slot)
    pool.cancel(slot)
    assert "free" in repr(slot)


def test_larger_than_the_largest_chunk(pool: PixelPool) -> None:
    assert pool.chunk_limit == 8 * MIB
    take(pool, pool.chunk_limit)
    with pytest.raises(OutOfSpace, match=r"8388609 bytes .* the largest is 8388608"):
        pool.acquire(pool.chunk_limit + 1)
    with pytest.raises(OutOfSpace):
        pool.allocate((pool.chunk_limit + 1,), "u1")
    take(pool, 10)


@pytest.mark.parametrize(
    ("quota", "limit"), [(4 * PAGE_NBYTES, PAGE_NBYTES), (10**7, 2359296), (1 << 40, 256 * MIB)]
)
def test_the_chunk_limit_follows_the_quota(quota: int, limit: int) -> None:
    with PixelPool(quota_nbytes=quota) as pool:
        assert pool.chunk_limit == limit
        assert slot_capacity(limit) == limit


def test_the_default_quota_is_a_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with PixelPool() as pool:
        assert 0 < pool.quota_nbytes <= 1 << 30
        assert pool.shared
    monkeypatch.setattr(_pool, "memory_limit_nbytes", lambda: 400 * MIB)
    with PixelPool() as pool:
        assert pool.quota_nbytes == 100 * MIB


def test_a_quota_too_small() -> None:
    with pytest.raises(InvalidItem, match="a quota of 4096 bytes"):
        PixelPool(quota_nbytes=4096)


def test_a_system_that_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutOfSpace, match="Function not implemented"):
        PixelPool(shared=True)
    with PixelPool(quota_nbytes=MIB) as pool:
        assert not pool.shared
        assert take(pool, 10).arena.fd == -1


# ---- leases ----------------------------------------------------------------------------------


def test_a_slot_is_held_until_all_have_released_it(pool: PixelPool) -> None:
    slot = take(pool, 100)
    lease = pool.publish(slot, [1, 2])
    assert pool.stats().leases == 1
    assert pool.release(1, lease)
    assert slot.state == LEASED
    assert pool.release(2, lease)
    assert slot.state == FREE
    assert pool.stats().leases == 0


def test_late_double_and_unknown_releases_do_nothing(pool: PixelPool) -> None:
    slot = take(pool, 100)
    first = pool.publish(slot, [1])
    assert not pool.release(2, first)
    assert not pool.release(1, first + 1)
    assert pool.release(1, first)
    assert not pool.release(1, first)
    assert take(pool, 100) is slot
    second = pool.publish(slot, [1])
    assert second > first
    assert not pool.release(1, first)
    assert slot.state == LEASED


def test_the_slot_freed_last_is_taken_first(pool: PixelPool) -> None:
    slots = [take(pool, 5000) for _ in range(4)]
    wait_until(lambda: idle(pool))
    for slot in (slots[2], slots[0], slots[3]):
        pool.release(1, pool.publish(slot, [1]))
    assert [take(pool, 5000) for _ in range(3)] == [slots[3], slots[0], slots[2]]


def test_a_dead_peer_releases_all_that_it_had(pool: PixelPool) -> None:
    both, mine, yours = (take(pool, 100) for _ in range(3))
    pool.publish(both, [1, 2])
    pool.publish(mine, [1])
    pool.publish(yours, [2])
    pool.release_holder(1)
    assert (both.state, mine.state, yours.state) == (LEASED, FREE, LEASED)
    pool.release_holder(2)
    assert pool.stats().used_nbytes == 0


def test_published_to_nobody_is_free_at_once(pool: PixelPool) -> None:
    slot = take(pool, 100)
    lease = pool.publish(slot, [])
    assert slot.state == FREE
    assert not pool.release(1, lease)


def test_a_slot_is_published_or_cancelled_once(pool: PixelPool) -> None:
    slot = take(pool, 100)
    pool.publish(slot, [1])
    with pytest.raises(UsageError, match="leased> can't be published"):
        pool.publish(slot, [1])
    with pytest.raises(UsageError, match="leased> can't be cancelled"):
        pool.cancel(slot)
    other = take(pool, 100)
    pool.cancel(other)
    with pytest.raises(UsageError, match="free> can't be cancelled"):
        pool.cancel(other)


def test_the_stream_is_told_of_free_slots(pool: PixelPool) -> None:
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    slot, other, third = (take(pool, 100) for _ in range(3))
    wait_until(lambda: idle(pool))
    pool.on_free = lambda: told.put(None)
    lease = pool.publish(slot, [1, 2])
    pool.release(1, lease)
    pool.release(7, lease)
    assert told.qsize() == 0
    pool.release(2, lease)
    assert told.qsize() == 1
    pool.cancel(other)
    assert told.qsize() == 2
    pool.publish(third, [])
    assert told.qsize() == 3
    loan = lend(pool, 100)
    del loan
    assert told.qsize() == 4


# ---- loans -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "f8"), (7, "u2"), ([2, 3], ">i4"), ((0, 4), bool), ((2,) * 8, np.float16)],
    ids=str,
)
def test_an_allocated_array_is_an_array(pool: PixelPool, shape: Any, dtype: Any) -> None:
    array = lend(pool, shape, dtype)
    expected = np.empty(shape, np.dtype(dtype).newbyteorder("<"))
    assert type(array) is np.ndarray
    assert array.shape == expected.shape
    assert array.dtype == expected.dtype
    assert array.flags.writeable
    assert array.flags.c_contiguous
    array[...] = 1
    slot = pool.loan_of(array)
    assert slot is not None
    assert bytes(slot.view) == array.tobytes()


@pytest.mark.parametrize("shape", [(-1,), "abc", 2.5, (2, 1.5), None, (1,) * 70], ids=str)
def test_no_shape(pool: PixelPool, shape: Any) -> None:
    with pytest.raises(InvalidItem, match="is no shape"):
        pool.allocate(shape, "u1")
    gc.collect()
    assert pool.stats().used_nbytes == 0


def test_no_dtype(pool: PixelPool) -> None:
    with pytest.raises(InvalidItem, match="object"):
        pool.allocate((2, 2), object)


def test_an_array_dropped_unsent_gives_its_slot_back(pool: PixelPool) -> None:
    array = lend(pool, (100, 100))
    view = array[10:20, ::3]
    assert pool.stats().loans == 1
    del array
    assert pool.stats().loans == 1
    del view
    assert pool.stats().loans == 0
    assert pool.stats().used_nbytes == 0


def test_a_cancelled_loan_stays_with_its_owner(pool: PixelPool) -> None:
    array = lend(pool, 100)
    slot = pool.loan_of(array)
    assert slot is not None
    pool.cancel(slot)
    array[:] = 3
    assert pool.loan_of(array) is slot


@pytest.mark.parametrize("dropped_first", [True, False])
def test_a_sent_loan_is_free_when_dropped_and_released(
    pool: PixelPool, dropped_first: bool
) -> None:
    array = lend(pool, 100)
    slot = pool.loan_of(array)
    assert slot is not None
    lease = pool.publish(slot, [1])
    if dropped_first:
        del array
        assert pool.stats().loans == 0
        assert slot.state == LEASED
        pool.release(1, lease)
    else:
        pool.release(1, lease)
        assert "spent" in repr(slot)
        assert take(pool, 100) is not slot
        del array
    assert pool.stats().free_slots >= 1
    assert slot.state == FREE


def test_a_release_finds_the_loan_that_was_dropped_before(pool: PixelPool) -> None:
    array = lend(pool, 100)
    slot = pool.loan_of(array)
    assert slot is not None
    lease = pool.publish(slot, [1])
    del array
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    pool.on_free = lambda: told.put(None)
    pool.release(1, lease)
    assert slot.state == FREE
    assert told.qsize() >= 1


def test_a_loan_published_to_nobody(pool: PixelPool) -> None:
    array = lend(pool, 100)
    slot = pool.loan_of(array)
    assert slot is not None
    pool.publish(slot, ())
    assert slot.state != FREE
    del array
    assert take(pool, 100) is slot


def test_a_sent_loan_can_neither_be_written_nor_sent_again(pool: PixelPool) -> None:
    array = lend(pool, (4, 5), "u2")
    array[...] = 1
    slot = pool.loan_of(array)
    assert slot is not None
    pool.publish(slot, [1])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(InvalidItem, match=r"\(4, 5\) was sent already"):
        pool.loan_of(array)
    with pytest.raises(InvalidItem, match="sent already"):
        pool.loan_of(array.reshape(20))
    assert pool.loan_of(array[1:]) is None


def test_a_loan_that_died_before_it_was_published(pool: PixelPool) -> None:
    array = lend(pool, 100)
    slot = pool.loan_of(array)
    assert slot is not None
    del array
    lease = pool.publish(slot, [1])
    assert pool.release(1, lease)
    assert slot.state == FREE


def test_what_is_a_whole_loan_and_what_is_not(pool: PixelPool) -> None:
    assert pool.loan_of(np.zeros(4)) is None
    assert pool.loan_of(np.zeros(4)[1:]) is None
    array = lend(pool, (4, 8), "u2")
    slot = pool.loan_of(array)
    assert slot is not None
    assert pool.loan_of(array.reshape(8, 4)) is slot
    assert pool.loan_of(array.ravel()) is slot
    assert pool.loan_of(array.view("i2")) is slot
    assert pool.loan_of(array.view(np.matrix)) is slot
    for part in (array[:2], array[1:], array[::2], array.T, array[:, ::-1], array[:0]):
        assert pool.loan_of(part) is None
    assert pool.loan_of(array.copy()) is None
    assert pool.loan_of(array.view(">u2")) is None
    assert pool.loan_of(array.view("c8")) is None
    assert pool.loan_of(np.zeros((4, 6), "u2")[:]) is None
    with PixelPool(quota_nbytes=MIB) as other:
        theirs = lend(other, (4, 6), "u2")
        assert pool.loan_of(theirs) is None


def test_pixels_never_tear(pool: PixelPool) -> None:
    """A loan that is kept is not overwritten, however often slots go round."""
    kept = lend(pool, 1000)
    kept[:] = 7
    slot = pool.loan_of(kept)
    assert slot is not None
    pool.release(1, pool.publish(slot, [1]))
    for _ in range(50):
        other = lend(pool, 1000)
        other[:] = 8
        its = pool.loan_of(other)
        assert its is not None
        pool.release(1, pool.publish(its, [1]))
        del other
    assert (kept == 7).all()


def test_a_loan_in_a_cycle_is_collected_anywhere(pool: PixelPool) -> None:
    """A finalizer may run while the pool's lock is held."""
    cycle: list[Any] = [lend(pool, 100)]
    cycle.append(cycle)
    del cycle
    with pool._lock:
        gc.collect()
    assert pool.stats().loans == 0


# ---- arenas and the quota --------------------------------------------------------------------


def test_nothing_free_and_the_quota_used_up(pool: PixelPool) -> None:
    slots = all_of(pool, 4 * MIB)
    assert len(slots) == 8
    stats = pool.stats()
    assert stats.reserved_nbytes == stats.used_nbytes == stats.quota_nbytes == 32 * MIB
    assert pool.allocate(4 * MIB, "u1") is None
    assert pool.acquire(1) is None
    pool.cancel(slots[0])
    assert pool.acquire(4 * MIB) is slots[0]


def test_the_first_arena_is_small_and_later_ones_double(pool: PixelPool) -> None:
    slots = [take(pool, MIB)]
    assert [arena.nbytes for arena in pool.arenas()] == [4 * MIB]
    while len(slots) < 16:
        slots.append(take(pool, MIB))
        wait_until(lambda: idle(pool))
    sizes = [arena.nbytes for arena in pool.arenas()]
    assert sizes[0] == 4 * MIB
    assert sizes == sorted(sizes)
    assert [arena.id for arena in pool.arenas()] == list(range(len(sizes)))
    assert len({(slot.arena.id, slot.offset) for slot in slots}) == 16


def test_an_idle_arena_of_another_size_makes_room(pool: PixelPool) -> None:
    large = all_of(pool, 4 * MIB)
    arenas = pool.arenas()
    assert pool.retired() == ()
    assert pool.acquire(MIB) is None
    for slot in large:
        pool.release(1, pool.publish(slot, [1]))
    small = take(pool, MIB)
    assert small.capacity == MIB
    retired = pool.retired()
    assert retired
    assert pool.retired() == ()
    left = {arena.id for arena in pool.arenas()}
    assert not left & set(retired)
    assert small.arena.id in left
    assert pool.stats().reserved_nbytes <= pool.quota_nbytes
    assert all(arena.fd == -1 for arena in arenas if arena.id in retired)
    # The size that lost an arena still works, and the freed slots of dropped arenas are gone.
    assert take(pool, 4 * MIB).arena.id in left


def test_the_least_recently_used_arena_goes_first() -> None:
    with PixelPool(quota_nbytes=16 * MIB) as pool:
        pool._filler = threading.current_thread()  # keeps the real one away
        recent = [take(pool, 2 * MIB) for _ in range(2)]
        long_ago = [take(pool, MIB) for _ in range(2)]
        for slot in [*long_ago, *recent]:
            pool.release(1, pool.publish(slot, [1]))
        held = [take(pool, 4 * MIB) for _ in range(3)]
        assert pool.retired() == (long_ago[0].arena.id,)
        assert {slot.capacity for slot in held} == {4 * MIB}
        assert pool.stats().reserved_nbytes == pool.quota_nbytes


def test_cold_slots_of_other_sizes_make_room_first() -> None:
    with PixelPool(quota_nbytes=64 * MIB) as pool:
        pool._filler = threading.current_thread()  # keeps the real one away
        slot = take(pool, MIB)
        before = pool.stats()
        assert before.reserved_nbytes >= 4 * before.used_nbytes
        held = []
        while (large := pool.acquire(8 * MIB)) is not None:
            held.append(large)
        assert len(held) == 7
        assert pool.retired() == ()
        assert slot.arena.charged_nbytes < slot.arena.nbytes
        assert pool.stats().reserved_nbytes <= pool.quota_nbytes
        pool.cancel(slot)
        assert pool.acquire(MIB) is slot


def test_a_busy_arena_is_never_retired(pool: PixelPool) -> None:
    slots = all_of(pool, 8 * MIB)
    assert len(slots) == 4
    pool.cancel(slots[0])
    assert pool.acquire(MIB) is slots[0]  # a larger one, for want of room
    assert pool.retired() == ()


def test_where_the_quota_is_used_up_a_larger_slot_serves(pool: PixelPool) -> None:
    slots = all_of(pool, 4 * MIB)
    assert len(slots) == 8
    pool.cancel(slots[5])
    near = take(pool, 3 * MIB)
    assert near is slots[5]
    assert near.nbytes == 3 * MIB
    pool.cancel(near)
    far = take(pool, 10)
    assert far is slots[5]
    assert far.view.nbytes == 10
    pool.cancel(far)
    assert take(pool, 4 * MIB) is slots[5]


def test_spare_slots_are_made_in_a_thread(pool: PixelPool) -> None:
    take(pool, MIB)
    wait_until(lambda: idle(pool) and pool.stats().free_slots >= 2)
    # It rests, and is woken the next time: to start one takes long on a busy machine.
    (thread,) = [t for t in threading.enumerate() if t.name == "openhcs-stream-pixels"]
    all_of(pool, MIB)
    wait_until(lambda: idle(pool))
    assert thread.is_alive()
    assert [t for t in threading.enumerate() if t.name == "openhcs-stream-pixels"] == [thread]
    pool.close()
    assert not thread.is_alive()


def test_the_thread_ends_with_a_pool_that_is_forgotten() -> None:
    pool = PixelPool(quota_nbytes=16 * MIB)
    take(pool, MIB)
    wait_until(partial(idle, pool))
    del pool
    gc.collect()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "openhcs-stream-pixels"])


def test_the_first_slots_of_a_size_are_made_ahead(pool: PixelPool) -> None:
    assert pool.made(MIB) == 0
    assert pool.make_first(MIB, now=2, soon=7, make_room=False)
    assert pool.made(MIB) >= 2
    wait_until(lambda: idle(pool))
    assert pool.made(MIB) >= 7
    assert pool.stats().free_slots == pool.made(MIB)
    assert not pool.make_first(MIB, now=20, soon=20, make_room=True)
    assert pool.made(MIB) < 20


def test_first_slots_and_the_quota() -> None:
    with PixelPool(quota_nbytes=16 * MIB) as pool:
        slots = all_of(pool, MIB)
        assert not pool.make_first(4 * MIB, now=1, soon=2, make_room=True)
        for slot in slots:
            pool.cancel(slot)
        assert not pool.make_first(4 * MIB, now=1, soon=2, make_room=False)
        assert pool.make_first(4 * MIB, now=1, soon=2, make_room=True)
        assert pool.stats().reserved_nbytes <= 16 * MIB


def test_no_memory_for_the_first_slots(pool: PixelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if not pool.shared:
        pytest.skip("private memory is not asked for")
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OutOfSpace):
        pool.make_first(MIB, now=2, soon=2, make_room=True)
    monkeypatch.undo()
    assert pool.make_first(MIB, now=2, soon=2, make_room=True)


def test_the_thread_stops_where_nothing_more_fits() -> None:
    with PixelPool(quota_nbytes=16 * MIB) as pool:
        first = all_of(pool, MIB)
        pool.cancel(first[0])
        sizes = pool._classes[MIB]
        sizes.low = 16  # as it was before another size took the rest
        take(pool, MIB)
        wait_until(lambda: idle(pool))
        assert sizes.low == 0


def test_no_thread_is_not_the_end(pool: PixelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    slots = [take(pool, MIB) for _ in range(20)]
    assert len({slot.address for slot in slots}) == 20


@pytest.mark.parametrize("where", ["fallocate", "create"])
def test_a_machine_without_memory(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = True
    real_allocate, real_create = os.posix_fallocate, os.memfd_create

    def allocate(fd: int, offset: int, nbytes: int) -> None:
        if refusing and where == "fallocate":
            raise OSError(errno.ENOSPC, "No space left on device")
        real_allocate(fd, offset, nbytes)

    def create(name: str, flags: int) -> int:
        if refusing and where == "create":
            raise OSError(errno.EMFILE, "Too many open files")
        return real_create(name, flags)

    with PixelPool(quota_nbytes=64 * MIB) as pool:
        monkeypatch.setattr(os, "posix_fallocate", allocate)
        monkeypatch.setattr(os, "memfd_create", create)
        for _ in range(3):
            with pytest.raises(OutOfSpace, match=r"No space left|Too many open files"):
                pool.acquire(MIB)
        assert pool.stats().reserved_nbytes == 0
        refusing = False
        slots = [take(pool, MIB)]
        wait_until(lambda: idle(pool))
        refusing = True
        while (slot := pool.acquire(MIB)) is not None:  # what there is; then: wait for a release
            slots.append(slot)
            wait_until(lambda: idle(pool))
        assert pool.acquire(MIB) is None
        pool.cancel(slots[0])
        assert pool.acquire(MIB) is slots[0]
        refusing = False
        assert take(pool, MIB).capacity == MIB


def test_no_memory_for_the_last_slots_of_an_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with PixelPool(quota_nbytes=64 * MIB) as pool:
        pool._filler = threading.current_thread()  # keeps the real one away
        slots = [take(pool, MIB) for _ in range(3)]
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        assert pool.acquire(MIB) is None
        assert pool.stats().reserved_nbytes == 3 * MIB
        pool.cancel(slots[0])
        assert pool.acquire(MIB) is slots[0]


def test_an_interrupt_while_faulting_in(pool: PixelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    from openhcs_stream.pixels import _arena

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_arena, "fault_in", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire(MIB)
    assert pool.stats().reserved_nbytes == 0
    take(pool, MIB)


def test_a_refused_mapping_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    from openhcs_stream.pixels import _arena

    def refuse(fd: int, nbytes: int, *, writable: bool) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with PixelPool(quota_nbytes=MIB) as pool:
        monkeypatch.setattr(_arena, "Mapping", refuse)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OutOfSpace, match="would not map"):
            pool.acquire(10)
        assert len(os.listdir("/proc/self/fd")) == before


# ---- the end ---------------------------------------------------------------------------------


def test_after_closing(pool: PixelPool) -> None:
    slot, other = take(pool, 100), take(pool, 100)
    lease = pool.publish(other, [1])
    arrays = [lend(pool, 100)]
    arrays[0][:] = 5
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    pool.on_free = lambda: told.put(None)
    pool.close()
    pool.close()
    assert told.qsize() == 1  # who waits is to see that it is over
    for call in (
        lambda: pool.acquire(1),
        lambda: pool.allocate(1, "u1"),
        lambda: pool.publish(slot, [1]),
        lambda: pool.loan_of(arrays[0]),
        pool.stats,
        pool.arenas,
        pool.retired,
    ):
        with pytest.raises(StreamClosed):
            call()
    assert pool.release(1, lease) is False
    pool.release_holder(1)
    pool.cancel(slot)
    assert (arrays[0] == 5).all()
    arrays[0][:] = 6
    arrays.clear()
    slot.memory[:] = 1


def test_the_thread_itself_may_close_the_pool() -> None:
    pool = PixelPool(quota_nbytes=16 * MIB)
    closed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def close() -> None:
        if threading.current_thread().name == "openhcs-stream-pixels":
            pool.close()
            closed.put("by the thread")

    pool.on_free = close
    take(pool, MIB)
    assert closed.get(timeout=20) == "by the thread"


def test_descriptors_and_memory_are_given_back() -> None:
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    for close in (True, False):
        pool = PixelPool(quota_nbytes=16 * MIB)
        slots = [take(pool, MIB) for _ in range(6)]
        wait_until(lambda pool=pool: idle(pool))  # type: ignore[misc]
        assert len(os.listdir("/proc/self/fd")) > fds
        if close:
            pool.close()
        del pool, slots
        gc.collect()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) == fds)
        with open("/proc/self/maps") as maps:
            assert "openhcs-stream" not in maps.read()


@pytest.mark.parametrize("fails", [False, True])
def test_closing_waits_for_who_faults_in(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from openhcs_stream.pixels import _arena

    entered, leave = threading.Event(), threading.Event()
    real = _memory.fault_in

    def slow(memory: Any, fd: int, offset: int) -> None:
        entered.set()
        assert leave.wait(20)
        os.fstat(fd)  # still open, and still ours
        if fails:
            raise OutOfSpace("no memory.")
        real(memory, fd, offset)

    pool = PixelPool(quota_nbytes=16 * MIB)
    monkeypatch.setattr(_arena, "fault_in", slow)
    raised: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def worker() -> None:
        try:
            pool.acquire(MIB)
        except StreamClosed as error:
            raised.put(error)

    thread = threading.Thread(target=worker)
    thread.start()
    assert entered.wait(20)
    (arena,) = pool.arenas()
    pool.close()
    assert arena.fd >= 0
    leave.set()
    thread.join(20)
    assert isinstance(raised.get(timeout=20), StreamClosed)
    assert arena.fd == -1


def test_the_last_who_faults_in_closes_the_arena() -> None:
    pool = PixelPool(quota_nbytes=64 * MIB)
    pool._filler = threading.current_thread()  # keeps the real one away
    take(pool, MIB)
    (arena,) = pool.arenas()
    sizes = pool._classes[MIB]
    runs = [arena.take(MIB), arena.take(MIB)]
    pool.close()
    assert arena.fd >= 0
    slots = [arena.fault_in(run) for run in runs]
    assert not pool._filled(sizes, arena, slots[0])
    assert arena.fd >= 0
    assert not pool._filled(sizes, arena, slots[1])
    assert arena.fd == -1


def test_what_happens_after_a_fork() -> None:
    """The hook itself, in this process; the tests below do it in a child."""
    pool = PixelPool(quota_nbytes=16 * MIB)
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    array = lend(pool, 100)
    wait_until(lambda: idle(pool))
    pool.on_free = lambda: told.put(None)
    arenas = pool.arenas()
    lock = pool._lock
    lock.acquire()
    pool.after_fork_in_child()
    for arena in arenas:
        arena.after_fork_in_child()
        arena.after_fork_in_child()
        assert arena.fd == -1
    for call in (
        pool.stats,
        lambda: pool.acquire(1),
        lambda: pool.release(1, 1),
        lambda: pool.release_holder(1),
    ):
        with pytest.raises(ForkedStream):
            call()
    pool.close()
    del array
    assert told.qsize() == 0
    lock.release()


def in_child(check: Callable[[], None]) -> int:
    """Run something in a forked child; 0 if it raised nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:  # the child must not go on as a second test run
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_is_inert() -> None:
    pool = PixelPool(quota_nbytes=16 * MIB)
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    slot, arrays = take(pool, 100), [lend(pool, 100)]
    wait_until(lambda: idle(pool))
    pool.on_free = lambda: told.put(None)
    fds = [arena.fd for arena in pool.arenas()]
    inodes = {os.fstat(fd).st_ino for fd in fds}
    address = slot.address
    mapped = MappedArenas()
    mapped.add(0, slot.arena.nbytes, os.dup(slot.arena.fd))

    def check() -> None:
        for call in (
            lambda: pool.acquire(1),
            lambda: pool.allocate(1, "u1"),
            lambda: pool.publish(slot, [1]),
            lambda: pool.loan_of(arrays[0]),
            lambda: pool.release(1, 1),
            lambda: pool.release_holder(1),
            lambda: pool.cancel(slot),
            pool.stats,
            pool.arenas,
            pool.retired,
        ):
            with pytest.raises(ForkedStream, match="parent of this forked process"):
                call()
        pool.close()
        arrays.clear()
        assert told.qsize() == 0
        assert slot.arena.fd == -1
        for name in os.listdir("/proc/self/fd"):
            try:
                assert os.fstat(int(name)).st_ino not in inodes
            except OSError:
                continue  # the folder's own
        fenced = False
        with open("/proc/self/maps") as maps:
            for line in maps:
                assert "openhcs-stream" not in line
                start, end = (int(side, 16) for side in line.split()[0].split("-"))
                fenced |= start <= address < end and line.split()[1] == "---p"
        assert fenced
        gc.collect()

    # Another thread has the lock at the fork; the child must not wait for it.
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._lock:
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(20)
    try:
        assert in_child(check) == 0
    finally:
        leave.set()
        thread.join(20)
    arrays[0][:] = 1
    take(pool, 100).memory[:] = 2
    mapped.close()
    pool.close()


def test_a_child_does_not_keep_its_dead_parents_memory() -> None:
    """The memory of a killed process goes with it, though a child that it forked lives on."""
    with PixelPool(quota_nbytes=16 * MIB) as pool:
        slot = take(pool, MIB)
        inode = os.fstat(slot.arena.fd).st_ino
        ready_read, ready_write = os.pipe()
        go_read, go_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            os.write(ready_write, b"x")
            os.read(go_read, 1)
            os._exit(0)
        try:
            os.read(ready_read, 1)
            holders = [
                name
                for name in os.listdir(f"/proc/{pid}/fd")
                if os.stat(f"/proc/{pid}/fd/{name}").st_ino == inode
            ]
            with open(f"/proc/{pid}/maps") as maps:
                mapped = [line for line in maps if "openhcs-stream" in line]
            assert (holders, mapped) == ([], [])
        finally:
            os.close(go_write)
            os.waitpid(pid, 0)
            for fd in (ready_read, ready_write, go_read):
                os.close(fd)


# ---- threads, faults, anything ---------------------------------------------------------------


def test_many_threads() -> None:
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
    with PixelPool(quota_nbytes=4 * MIB) as pool:
        pool.on_free = lambda: told.put(None)
        leases: queue.SimpleQueue[tuple[int, Slot, int] | None] = queue.SimpleQueue()

        def produce(seed: int) -> None:
            try:
                rng = np.random.default_rng(seed)
                for _ in range(300):
                    nbytes = int(rng.choice([500, 5000, 70_000, 300_000]))
                    if rng.random() < 0.5:
                        while (slot := pool.acquire(nbytes)) is None:
                            told.get(timeout=20)
                        slot.memory[:nbytes] = seed
                    else:
                        while (array := pool.allocate(nbytes, "u1")) is None:
                            told.get(timeout=20)
                        array[:] = seed
                        loan = pool.loan_of(array)
                        assert loan is not None
                        slot = loan
                        if rng.random() < 0.2:
                            continue
                    leases.put((pool.publish(slot, [1, 2]), slot, seed))
            except BaseException as error:
                failures.put(error)
            finally:
                leases.put(None)

        def consume(running: int) -> None:
            try:
                while running:
                    entry = leases.get(timeout=20)
                    if entry is None:
                        running -= 1
                        continue
                    lease, slot, seed = entry
                    assert slot.view.obj is not None
                    assert set(bytes(slot.view)) == {seed}
                    assert pool.release(1, lease)
                    assert pool.release(2, lease)
                    assert not pool.release(2, lease)
            except BaseException as error:
                failures.put(error)

        threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(1, 5)]
        threads.append(threading.Thread(target=consume, args=(4,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert failures.empty(), failures.get()
        wait_until(lambda: idle(pool))
        stats = pool.stats()
        assert stats.leases == stats.loans == stats.used_nbytes == 0
        assert stats.reserved_nbytes <= stats.quota_nbytes


def test_steady_state_costs_no_page_faults() -> None:
    image = np.ones((2048, 2048), np.uint16)
    with PixelPool(quota_nbytes=128 * MIB) as pool:

        def cycle() -> None:
            slot = take(pool, image.nbytes)
            np.copyto(slot.array(image.shape, image.dtype), image)
            pool.release(1, pool.publish(slot, [1]))

        for _ in range(10):
            cycle()
        wait_until(lambda: idle(pool))
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(100):
            cycle()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert faults < 100


def test_a_first_write_costs_no_page_faults() -> None:
    """Slots are faulted in before they are handed out, in this process's own page table too."""
    with PixelPool(quota_nbytes=128 * MIB) as pool:
        slot = take(pool, 8 * MIB)
        wait_until(lambda: idle(pool))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        slot.memory[:] = 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100


class PoolMachine(RuleBasedStateMachine):
    """Whatever is done with a pool, in whatever order, its books are right and pixels stay."""

    slots = Bundle("slots")
    loans = Bundle("loans")
    leased = Bundle("leased")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PixelPool(quota_nbytes=MIB)
        self.viewer = MappedArenas()
        self.offered: set[int] = set()
        self.held: set[Slot] = set()
        self.leases: dict[int, tuple[Slot, set[int], bytes]] = {}
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.last_lease = 0

    sizes = st.sampled_from([0, 1, 4096, 5000, 40_000, 100_000, 262_144])

    @rule(target=slots, nbytes=sizes)
    def acquire(self, nbytes: int) -> Slot | None:
        slot = self.pool.acquire(nbytes)
        if slot is not None:
            assert slot not in self.held
            assert all(slot is not other for other, _, _ in self.leases.values())
            assert slot.capacity >= nbytes
            self.held.add(slot)
        return slot

    @rule(slot=consumes(slots))
    def cancel(self, slot: Slot | None) -> None:
        if slot is not None:
            self.held.remove(slot)
            self.pool.cancel(slot)

    @rule(target=loans, nbytes=sizes)
    def allocate(self, nbytes: int) -> int | None:
        array = self.pool.allocate(nbytes, "u1")
        if array is None:
            return None
        self.arrays.append(array)
        return len(self.arrays) - 1

    @rule(loan=consumes(loans))
    def drop(self, loan: int | None) -> None:
        if loan is not None:
            self.arrays[loan] = np.empty(0)

    def publish(self, slot: Slot, holders: set[int]) -> int:
        content = (b"%d," % self.last_lease * slot.nbytes)[: slot.nbytes]
        slot.view[:] = content
        lease = self.pool.publish(slot, holders)
        assert lease > self.last_lease
        self.last_lease = lease
        if slot.arena.id not in self.offered:
            self.offered.add(slot.arena.id)
            self.viewer.add(slot.arena.id, slot.arena.nbytes, os.dup(slot.arena.fd))
        if holders:
            self.leases[lease] = (slot, set(holders), content)
        return lease

    some_holders = st.sets(st.integers(1, 3))

    @rule(target=leased, slot=consumes(slots), holders=some_holders)
    def publish_slot(self, slot: Slot | None, holders: set[int]) -> int | None:
        if slot is None:
            return None
        self.held.remove(slot)
        return self.publish(slot, holders)

    @rule(target=leased, loan=loans, holders=some_holders)
    def publish_loan(self, loan: int | None, holders: set[int]) -> int | None:
        if loan is None:
            return None
        array = self.arrays[loan]
        if not array.flags.writeable:
            with pytest.raises(InvalidItem):
                self.pool.loan_of(array)
            return None
        slot = self.pool.loan_of(array)
        return None if slot is None else self.publish(slot, holders)

    @rule(lease=leased, holder=st.integers(1, 3))
    def release(self, lease: int | None, holder: int) -> None:
        if lease is None:
            return
        _, holders, _ = self.leases.get(lease, (None, set(), b""))
        assert self.pool.release(holder, lease) == (holder in holders)
        holders.discard(holder)
        if not holders:
            self.leases.pop(lease, None)

    @rule(holder=st.integers(1, 3))
    def die(self, holder: int) -> None:
        self.pool.release_holder(holder)
        for lease, (_, holders, _) in list(self.leases.items()):
            holders.discard(holder)
            if not holders:
                del self.leases[lease]

    @rule()
    def tell_of_retired(self) -> None:
        for arena in self.pool.retired():
            assert all(slot.arena.id != arena for slot, _, _ in self.leases.values())
            self.viewer.retire(arena)

    @invariant()
    def books_are_right(self) -> None:
        stats = self.pool.stats()
        with self.pool._lock:
            free = [slot for sizes in self.pool._classes.values() for slot in sizes.free]
            ready = sum(arena.ready for arena in self.pool._arenas.values())
            arenas = list(self.pool._arenas.values())
            reserved = self.pool._reserved_nbytes
        assert len(free) == len(set(free))
        assert all(slot.state == FREE and slot.loan is None for slot in free)
        leased = {slot for slot, _, _ in self.leases.values()}
        assert not leased & set(free)
        assert not self.held & set(free)
        assert reserved == sum(arena.charged_nbytes for arena in arenas) <= stats.quota_nbytes
        lent = set(self.pool._loans.values())
        assert not lent & set(free)
        assert ready - len(free) == len(self.held | leased | lent)
        assert stats.leases == len(self.leases)

    @invariant()
    def pixels_stay(self) -> None:
        for lease, (slot, _, content) in self.leases.items():
            part = Part(arena=slot.arena.id, offset=slot.offset, nbytes=len(content), lease=lease)
            assert bytes(self.viewer.view(part)) == content

    def teardown(self) -> None:
        self.arrays.clear()
        self.pool.close()
        self.viewer.close()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_slot_that_its_taker_lost_is_free_again() -> None:
    """Ctrl-C may come between taking a slot and noting it down, as often as it likes."""
    with PixelPool(quota_nbytes=1 << 20) as pool:
        for _ in range(3):
            slots = [pool.acquire(4096) for _ in range(4)]
            assert None not in slots
            del slots
            stats = pool.stats()
            assert stats.slots == stats.free_slots
        slot = pool.acquire(4096)
        assert slot is not None
        pool.publish(slot, [1])
        del slot
        assert pool.stats().leases == 1
