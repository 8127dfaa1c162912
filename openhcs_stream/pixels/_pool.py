"""The sender's side: who has which slot, and where the next one comes from."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from openhcs_stream.errors import (
    ForkedStream,
    InvalidItem,
    OutOfSpace,
    StreamClosed,
    StreamError,
    UsageError,
)
from openhcs_stream.messages import DTYPES
from openhcs_stream.pixels._arena import (
    FREE,
    HELD,
    LEASED,
    MAX_ARENA_NBYTES,
    SPENT,
    Arena,
    Slot,
    slot_capacity,
    slot_capacity_within,
)
from openhcs_stream.pixels._helper import Helper
from openhcs_stream.pixels._limits import memory_limit_nbytes
from openhcs_stream.pixels._loan import Loan, form_of, no_shape
from openhcs_stream.pixels._memory import PAGE_NBYTES, close_in_child
from openhcs_stream.pixels._size_class import SizeClass, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from types import TracebackType

    import numpy.typing as npt

    from openhcs_stream.pixels._loan import Form

__all__ = ["PixelPool", "PoolStats"]

_log = logging.getLogger(__name__)

_MIB: Final = 1 << 20
#: Their bytes can be sent as they are; looking a dtype up is cheap, asking for its name is not.
_LITTLE_ENDIAN: Final = frozenset(map(np.dtype, DTYPES))
#: An item that is larger goes in several chunks.
_MAX_CHUNK_NBYTES: Final = 256 * _MIB
_MAX_DEFAULT_QUOTA_NBYTES: Final = 1 << 30
#: The first arena of a size has 4 slots or this much, whatever is more, ...
_FIRST_ARENA_NBYTES: Final = _MIB
#: ... but not more than this, unless for two slots; later arenas double what there is.
_FIRST_ARENA_MAX_NBYTES: Final = 64 * _MIB
#: ... and not more than this part of the quota, so that other sizes find room.
_FIRST_ARENA_SHARE: Final = 8
#: What a caller faults in at once, where the slot that it needs isn't larger; a fault costs about
#: 2 us.
_CALLER_RUN_NBYTES: Final = 256 << 10
#: What the thread faults in between two looks at the pool's state.
_FILLER_RUN_NBYTES: Final = 4 * _MIB


class PoolStats(NamedTuple):
    """How full a pool is.

    Attributes
    ----------
    quota_nbytes, reserved_nbytes : int
        What the arenas may have, and what they have, together.
    used_nbytes : int
        Capacity of the slots that are not free.
    arenas : int
    slots, free_slots : int
        Slots that are faulted in, and those of them that are free.
    leases : int
        Publications that some holder has not released.
    loans : int
        Arrays from `PixelPool.allocate` that are alive.
    """

    quota_nbytes: int
    reserved_nbytes: int
    used_nbytes: int
    arenas: int
    slots: int
    free_slots: int
    leases: int
    loans: int


class PixelPool:
    """Slots for pixels, used again and again.

    Thread-safe. In a forked child it is inert: its descriptors are closed, its memory is not
    mapped (touching an array from `allocate` there is a segmentation fault), and all methods but
    `close` raise ForkedStream.

    Parameters
    ----------
    quota_nbytes : int, optional
        What all arenas may have together. Default: 1 GiB, or a quarter of the memory that this
        process may use if that is less.
    shared : bool, optional
        Whether viewers on this machine can map the arenas. Default: if the system can.

    Attributes
    ----------
    quota_nbytes : int
    chunk_limit : int
        Bytes of the largest slot, at most 256 MiB or a quarter of the quota. Larger items are sent
        in chunks.
    shared : bool
    on_free : callable without arguments, or None
        Called after a slot may have become free; sometimes in vain, never too seldom. The call
        comes from any thread, also from a finalizer in the middle of any code: it must not block,
        call the pool, or take a lock that its own thread may hold. `queue.SimpleQueue.put`, an
        eventfd or a pipe are right, an Event or a Condition is not.

    Raises
    ------
    InvalidItem
        The quota is too small for four slots of a page.
    OutOfSpace
        ``shared=True``, and the system has no shared memory without a name.
    """

    def __init__(self, *, quota_nbytes: int | None = None, shared: bool | None = None) -> None:
        if quota_nbytes is None:
            quota_nbytes = min(_MAX_DEFAULT_QUOTA_NBYTES, memory_limit_nbytes() // 4)
        if quota_nbytes < 4 * PAGE_NBYTES:
            raise InvalidItem(
                f"a quota of {quota_nbytes} bytes is too small for pixels.",
                cure=f"Give a few images' worth, at least {4 * PAGE_NBYTES}.",
            )
        self.quota_nbytes = quota_nbytes
        self.chunk_limit = slot_capacity_within(min(_MAX_CHUNK_NBYTES, quota_nbytes // 4))
        self.shared = shared is not False and _can_share(insist=shared is True)
        self.on_free: Callable[[], object] | None = None
        self._lock = threading.Lock()
        self._unusable: Callable[[], StreamError] | None = None
        self._classes: dict[int, SizeClass] = {}
        self._arenas: dict[int, Arena] = {}
        self._arenas_made = 0
        self._reserved_nbytes = 0
        self._retired: list[int] = []
        self._leases: dict[int, Slot] = {}
        self._last_lease = 0
        #: Loans that are alive, by address.
        self._loans: dict[int, Slot] = {}
        #: Slots whose loan was dropped. A finalizer may run inside our own critical section, so
        #: it only leaves the slot here (atomic, no lock) for the next call to find.
        self._dropped: deque[Slot] = deque()
        #: Makes spare slots; None: there was no need yet.
        self._helper: Helper | None = None
        #: Its thread, while it works.
        self._filler: threading.Thread | None = None
        close_in_child(self)

    # ---- slots -----------------------------------------------------------------------------

    def acquire(self, nbytes: int, *, grow: bool = True) -> Slot | None:
        """Take a free slot; its bytes are whatever was there before.

        Parameters
        ----------
        nbytes : int
            How many bytes it must have; 0 is allowed.
        grow : bool
            Whether memory may be made for it at once, which takes a while. Else that is left to
            the thread, and only what is there is taken.

        Returns
        -------
        Slot or None
            None: the quota is used up and nothing is free now; try again after `on_free`.

        Raises
        ------
        OutOfSpace
            More than `chunk_limit`, or the machine refuses memory and there is no slot to wait for.
        StreamClosed, ForkedStream
        """
        if self._unusable is not None:
            raise self._unusable()
        capacity = slot_capacity(nbytes)
        with self._lock:
            if self._dropped:
                self._collect_dropped()
            sizes = self._classes.get(capacity)
            if sizes is not None and sizes.free:
                slot = sizes.free[-1]
                slot.state = HELD  # before it is taken out: an interruption between loses it not
                del sizes.free[-1]
                slot.nbytes = nbytes
                if len(sizes.free) < sizes.low and self._filler is None:
                    self._start_filler()
                return slot
        if not grow and nbytes <= self.chunk_limit:
            return self._acquire_ready(nbytes, capacity)
        return self._acquire_slowly(nbytes, capacity)

    def made(self, nbytes: int) -> int:
        """Return how many slots there are of the size for so many bytes, free or not."""
        sizes = self._classes.get(slot_capacity(nbytes))
        return 0 if sizes is None else sizes.ready

    def spare(self, nbytes: int) -> int:
        """Return how many slots of the size for so many bytes are free."""
        sizes = self._classes.get(slot_capacity(nbytes))
        return 0 if sizes is None else len(sizes.free)

    def make_first(self, nbytes: int, *, now: int, soon: int, make_room: bool) -> bool:
        """Make slots of a size of which there is none yet; nothing where there is one.

        Parameters
        ----------
        nbytes : int
            What they are for; at most `chunk_limit`.
        now : int
            So many are made at once, which takes the caller a while.
        soon : int
            So many in all are made in the thread.
        make_room : bool
            Whether other sizes give up what is idle where the quota is used up.

        Returns
        -------
        bool
            Whether some were made.

        Raises
        ------
        OutOfSpace
            The machine refuses.
        StreamClosed, ForkedStream
        """
        capacity = slot_capacity(nbytes)
        with self._usable():
            sizes = self._classes.setdefault(capacity, SizeClass(capacity))
            if sizes.ready:
                return False
        if not self._make_first(sizes, max(now, 1), make_room=make_room):
            return False
        with self._usable():
            if sizes.ready < soon:
                sizes.wanted = soon
                if self._filler is None:
                    self._start_filler()
        return True

    def publish(self, slot: Slot, holders: Collection[int]) -> int:
        """Give a slot to those who are told of it; its bytes stay as they are until all release it.

        If the slot is a loan, its array can't be written through any more. Without holders the slot
        is free at once (a loan's: when its array is dropped).

        Parameters
        ----------
        slot : Slot
            From `acquire` or `loan_of`, not published before.
        holders : collection of int
            Sessions that will each release it.

        Returns
        -------
        int
            The lease: a number that is never used again.

        Raises
        ------
        UsageError
            The slot was published or cancelled before.
        StreamClosed, ForkedStream
        """
        if self._unusable is not None:
            raise self._unusable()
        freed = False
        with self._lock:
            if slot.state != HELD:
                raise _not_held(slot, "published")
            slot.protect()
            self._last_lease = lease = self._last_lease + 1
            slot.lease = lease
            if holders:
                slot.holders = set(holders)
                slot.state = LEASED
                self._leases[lease] = slot
            else:
                freed = self._settle(slot)
        if freed:
            self._notify()
        return lease

    def release(self, holder: int, lease: int) -> bool:
        """Take note that a holder is done with a lease.

        Returns
        -------
        bool
            False: the lease is unknown or over, or not this holder's; nothing happened. A peer
            may well be late or say it twice.

        Raises
        ------
        ForkedStream
        """
        return self.release_all(holder, (lease,)) == 1

    def release_all(self, holder: int, leases: Iterable[int]) -> int:
        """As `release`, of many.

        Returns
        -------
        int
            How many of them were this holder's.

        Raises
        ------
        ForkedStream
        """
        if self._unusable is not None:
            self._refuse_in_child()
            return 0
        known, freed = 0, False
        with self._lock:
            if self._dropped:
                self._collect_dropped()
            for lease in leases:
                slot = self._leases.get(lease)
                if slot is None or holder not in slot.holders:
                    continue
                known += 1
                slot.holders.discard(holder)
                if not slot.holders:
                    del self._leases[lease]
                    freed = self._settle(slot) or freed
        if freed:
            self._notify()
        return known

    def release_holder(self, holder: int) -> None:
        """Release all that a holder has: it died, or its session is over.

        Raises
        ------
        ForkedStream
        """
        if self._unusable is not None:
            self._refuse_in_child()
            return
        with self._lock:
            held = [lease for lease, slot in self._leases.items() if holder in slot.holders]
        self.release_all(holder, held)

    def cancel(self, slot: Slot) -> None:
        """Give back a slot that was never published.

        A loan's slot stays with its array, which is unsent as before.

        Raises
        ------
        UsageError
            The slot was published or cancelled before.
        ForkedStream
        """
        if self._unusable is not None:
            self._refuse_in_child()
            return
        with self._lock:
            if slot.state != HELD:
                raise _not_held(slot, "cancelled")
            if slot.loan is not None:
                return
            self._settle(slot)
        self._notify()

    # ---- loans -----------------------------------------------------------------------------

    def allocate(
        self, shape: int | tuple[int, ...] | list[int], dtype: npt.DTypeLike = np.uint8
    ) -> npt.NDArray[Any] | None:
        """Lend an array that lies in a slot, so that sending it copies nothing.

        Dropped unsent, it gives its slot back. Once sent, its slot is not used again before
        the last view of it is gone and all holders have released it.

        Parameters
        ----------
        shape : int, or tuple or list of int
            Lengths of the axes.
        dtype : dtype-like
            A big-endian one gives a little-endian array.

        Returns
        -------
        ndarray or None
            Uninitialised, writable, in C order. None as in `acquire`.

        Raises
        ------
        InvalidItem
            No such shape, or a dtype that can't be sent.
        OutOfSpace
            As in `acquire`; an array of more than `chunk_limit` bytes can't be lent.
        StreamClosed, ForkedStream
        """
        return self.lend(form_of(shape, dtype))

    def lend(self, form: Form) -> npt.NDArray[Any] | None:
        """As `allocate`, of a form that was checked already."""
        slot = self.acquire(form.nbytes)
        if slot is None:
            return None
        owner = Loan(slot, self._drop_loan, form.shape, form.wire)
        try:
            array = np.asarray(owner)
        except (TypeError, ValueError) as error:
            raise no_shape(form.shape) from error
        slot.loan = weakref.ref(array)
        self._loans[slot.address] = slot
        return array

    def loan_of(self, array: npt.NDArray[Any]) -> Slot | None:
        """Return the slot of an array that can be sent without a copy.

        Returns
        -------
        Slot or None
            The slot if the array is all of an unsent loan, in C order, whatever its shape and
            dtype are now. None: copy it.

        Raises
        ------
        InvalidItem
            It is a loan that was sent already.
        StreamClosed, ForkedStream
        """
        if self._unusable is not None:
            raise self._unusable()
        if array.base is None or not self._loans:
            return None
        owner: object = array.base
        if isinstance(owner, Loan):
            address = owner.slot.address  # the usual case, and much cheaper
        else:
            address = array.__array_interface__["data"][0]
        slot = self._loans.get(address)
        if (
            slot is None
            or array.nbytes != slot.nbytes
            or not array.flags.c_contiguous
            or array.dtype not in _LITTLE_ENDIAN
        ):
            return None
        if slot.state != HELD:
            raise InvalidItem(
                f"this allocated array of shape {array.shape} was sent already.",
                cure="Allocate a new array for each image; the viewer may still read this one.",
            )
        return slot

    # ---- arenas ----------------------------------------------------------------------------

    def arenas(self) -> tuple[Arena, ...]:
        """Return the arenas that there are now, oldest first."""
        with self._usable():
            return tuple(self._arenas.values())

    def retired(self) -> tuple[int, ...]:
        """Return the numbers of the arenas that were retired since the last call."""
        if not self._retired and self._unusable is None:  # asked for each message, rarely the case
            return ()
        with self._usable():
            retired = tuple(self._retired)
            self._retired.clear()
            return retired

    def stats(self) -> PoolStats:
        """Return how full the pool is."""
        with self._usable():
            self._collect_dropped()
            slots = sum(sizes.ready for sizes in self._classes.values())
            free = sum(len(sizes.free) for sizes in self._classes.values())
            used = sum(
                (sizes.ready - len(sizes.free)) * sizes.capacity for sizes in self._classes.values()
            )
            return PoolStats(
                quota_nbytes=self.quota_nbytes,
                reserved_nbytes=self._reserved_nbytes,
                used_nbytes=used,
                arenas=len(self._arenas),
                slots=slots,
                free_slots=free,
                leases=len(self._leases),
                loans=len(self._loans),
            )

    def close(self) -> None:
        """Let go of all arenas; idempotent.

        Viewers keep what they have mapped, and arrays that were lent stay valid; all of it is
        freed with the last who has it.
        """
        if self._unusable is not None:
            return
        with self._lock:
            self._unusable = _closed
            helper = self._helper
            for arena in self._arenas.values():
                # Who still faults slots in closes the arena afterwards: a number of a closed
                # descriptor may already be another file's.
                if not arena.filling:
                    arena.close()
            self._arenas.clear()
            for sizes in self._classes.values():
                # Each free slot knows this list: without this the memory waits for the collector.
                sizes.free.clear()
            self._classes.clear()
            self._leases.clear()
            self._reserved_nbytes = 0
        # It may be the thread itself that closes, from `on_free`.
        if helper is not None:
            helper.end()
        self._notify()

    def __enter__(self) -> PixelPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def after_fork_in_child(self) -> None:
        """Become inert."""
        self._unusable = _forked
        self.on_free = None  # its wake-up would reach the parent
        # Another thread of the parent may have held it, and does not exist here.
        self._lock = threading.Lock()

    # ---- bookkeeping, in the lock ----------------------------------------------------------

    def _settle(self, slot: Slot) -> bool:
        """Free a slot that nobody holds, unless its loan is alive; say whether it is free."""
        if slot.loan is not None:
            slot.state = SPENT
            return False
        slot.state = FREE
        slot.home.append(slot)
        return True

    def _collect_dropped(self) -> None:
        """Take back the slots of dropped loans. Nobody need be told: the finalizer has done so."""
        while self._dropped:
            slot = self._dropped.popleft()
            slot.loan = None
            self._loans.pop(slot.address, None)
            if slot.state != LEASED:
                self._settle(slot)

    def _next_run(self, sizes: SizeClass, nbytes: int) -> tuple[Arena, range] | None:
        """Choose slots to be faulted in, out of the lock."""
        if not sizes.cold:
            return None
        arena = sizes.cold[0]
        run = arena.take(nbytes)
        if not arena.cold:
            del sizes.cold[0]
        return arena, run

    def _grow(self, sizes: SizeClass) -> bool:
        """Add an arena, if the quota has room for one slot at least.

        Raises
        ------
        OutOfSpace
            The machine refuses.
        """
        capacity = sizes.capacity
        first = max(4, _FIRST_ARENA_NBYTES // capacity)
        most = min(_FIRST_ARENA_MAX_NBYTES, self.quota_nbytes // _FIRST_ARENA_SHARE)
        first = max(2, min(first, most // capacity))
        count = min(
            max(first, sizes.ready),
            MAX_ARENA_NBYTES // capacity,
            (self.quota_nbytes - self._reserved_nbytes) // capacity,
        )
        if count < 1:
            return False
        arena = Arena(self._arenas_made, capacity=capacity, count=count, shared=self.shared)
        self._arenas_made += 1
        self._arenas[arena.id] = arena
        self._reserved_nbytes += arena.nbytes
        sizes.cold.append(arena)
        return True

    def _make_room(self, sizes: SizeClass) -> bool:
        """Give up room of other sizes until one slot fits in.

        First slots that have no memory yet, then idle arenas, least recently used first.
        """
        wanted = self._reserved_nbytes + sizes.capacity - self.quota_nbytes
        for other in self._classes.values():
            while wanted > 0 and other is not sizes and other.cold:
                nbytes = other.cold.pop().give_up()
                wanted -= nbytes
                self._reserved_nbytes -= nbytes
        free = Counter(slot.arena.id for other in self._classes.values() for slot in other.free)
        idle = [
            arena
            for arena in self._arenas.values()
            if arena.capacity != sizes.capacity
            and not arena.filling
            and free[arena.id] == arena.ready
        ]
        enough = sum(arena.charged_nbytes for arena in idle) >= wanted
        last_use: Counter[int] = Counter()
        for other in self._classes.values():
            for slot in other.free:
                last_use[slot.arena.id] = max(last_use[slot.arena.id], slot.lease)
        idle.sort(key=lambda arena: last_use[arena.id])
        for arena in idle:
            if enough and wanted > 0:
                wanted -= arena.charged_nbytes
                self._retire(arena)
        for other in self._classes.values():
            self._tune(other)
        return enough

    def _retire(self, arena: Arena) -> None:
        """Drop an arena whose slots are all free; cold ones it has given up."""
        sizes = self._classes[arena.capacity]
        sizes.free[:] = [slot for slot in sizes.free if slot.arena is not arena]
        sizes.ready -= arena.ready
        del self._arenas[arena.id]
        self._reserved_nbytes -= arena.charged_nbytes
        self._retired.append(arena.id)
        arena.close()

    def _borrow(self, capacity: int, most: int) -> Slot | None:
        """Take a free slot of a larger size."""
        for larger in sorted(size for size in self._classes if capacity < size <= most):
            if self._classes[larger].free:
                return taken(self._classes[larger].free)
        return None

    def _tune(self, sizes: SizeClass) -> None:
        """Set when the thread is woken: not at all if it could do nothing."""
        room = self._reserved_nbytes + sizes.capacity <= self.quota_nbytes
        sizes.low = max(sizes.ready // 4, 1) if sizes.cold or room else 0

    def _filled(self, sizes: SizeClass, arena: Arena, slots: list[Slot]) -> bool:
        """Take over what was faulted in out of the lock; False: the pool was closed meanwhile."""
        arena.filling -= 1
        if self._unusable is not None:
            if not arena.filling:
                arena.close()
            return False
        arena.ready += len(slots)
        sizes.ready += len(slots)
        if sizes.ready >= sizes.wanted:
            sizes.wanted = 0
        for slot in slots:
            slot.home = sizes.free
        # Below those that were in use: they may still be in the cache.
        sizes.free[:0] = reversed(slots)
        self._tune(sizes)
        return True

    def _refused(self, sizes: SizeClass, arena: Arena, run: range) -> None:
        """Give up those of an arena's slots that the machine has no memory for."""
        if not self._filled(sizes, arena, []):
            return
        if arena.cold:
            sizes.cold.remove(arena)
        self._reserved_nbytes -= arena.give_up(taken=len(run))
        if not arena.ready and not arena.filling:
            self._retire(arena)
        sizes.low = 0

    # ---- growing, out of the lock ----------------------------------------------------------

    def _acquire_slowly(self, nbytes: int, capacity: int) -> Slot | None:
        """Find or make a slot when none of the right size is free."""
        if nbytes > self.chunk_limit:
            raise OutOfSpace(
                f"{nbytes} bytes can't lie in one piece: the largest is {self.chunk_limit} with a "
                f"quota of {self.quota_nbytes}.",
                cure="Send it in chunks, or raise quota_nbytes.",
            )
        while True:
            with self._usable():
                sizes = self._classes.setdefault(capacity, SizeClass(capacity))
                slot = self._take_or_borrow(sizes)
                job = None
                if slot is None:
                    try:
                        job = self._find_run(sizes)
                    except OutOfSpace:
                        if sizes.ready:
                            return None  # one of these will be released
                        raise
                    if job is None:
                        slot = self._borrow(capacity, self.chunk_limit)
                        if slot is None:
                            return None
                if slot is not None:
                    slot.nbytes = nbytes
                    if len(sizes.free) < sizes.low and self._filler is None:
                        self._start_filler()
                    return slot
            assert job is not None
            try:
                self._fill(sizes, *job)
            except OutOfSpace:
                with self._usable():
                    if sizes.ready:
                        return None
                raise

    def _acquire_ready(self, nbytes: int, capacity: int) -> Slot | None:
        """Take a slot of another size, if one is free; make some behind the caller's back."""
        with self._usable():
            sizes = self._classes.setdefault(capacity, SizeClass(capacity))
            slot = self._borrow(capacity, 2 * capacity)
            if slot is not None:
                slot.nbytes = nbytes
            self._tune(sizes)
            if sizes.low and self._filler is None:
                self._start_filler()
            return slot

    def _make_first(self, sizes: SizeClass, now: int, *, make_room: bool) -> bool:
        """Fault in slots of a size that has none; whether there are some."""
        while True:
            with self._usable():
                if sizes.ready >= now:
                    return True
                job = None
                if sizes.cold or make_room or self._grow(sizes):
                    job = self._find_run(sizes)
                if job is None:
                    return sizes.ready > 0
            try:
                self._fill(sizes, *job)
            except OutOfSpace:
                with self._usable():
                    if sizes.ready:
                        return True
                raise

    def _take_or_borrow(self, sizes: SizeClass) -> Slot | None:
        """Take a free slot, or where the quota is used up one of at most twice the size."""
        if sizes.free:
            return taken(sizes.free)
        if sizes.cold or self._reserved_nbytes + sizes.capacity <= self.quota_nbytes:
            return None
        return self._borrow(sizes.capacity, 2 * sizes.capacity)

    def _find_run(self, sizes: SizeClass) -> tuple[Arena, range] | None:
        """Choose or make slots to be faulted in at once."""
        if not sizes.cold and not self._grow(sizes) and self._make_room(sizes):
            self._grow(sizes)
        return self._next_run(sizes, _CALLER_RUN_NBYTES)

    def _fill(self, sizes: SizeClass, arena: Arena, run: range) -> None:
        """Fault slots in and free them."""
        try:
            slots = arena.fault_in(run)
        except BaseException:
            with self._lock:
                self._refused(sizes, arena, run)
            self._notify()
            raise
        with self._lock:
            self._filled(sizes, arena, slots)
        self._notify()

    def _start_filler(self) -> None:
        """Have the thread make spare slots; in the lock."""
        if self._helper is None:
            try:
                self._helper = Helper(self, "openhcs-stream-pixels")
            except RuntimeError:  # no more threads, or the interpreter is going down
                _log.debug("no thread for spare slots could be started", exc_info=True)
                return
        self._filler = self._helper.thread
        self._helper.give(self.fill_spare)

    def fill_spare(self) -> None:
        """Fault spare slots in until there are enough; what the pool's own thread does."""
        try:
            while True:
                with self._lock:
                    job = None if self._unusable is not None else self._spare_job()
                    if job is None:
                        self._filler = None
                        return
                self._fill(*job)
        except OutOfSpace as error:
            _log.warning("no spare slots: %s", error)
            with self._lock:
                self._filler = None

    def _spare_job(self) -> tuple[SizeClass, Arena, range] | None:
        for sizes in self._classes.values():
            free, is_wanted = len(sizes.free), sizes.ready < sizes.wanted
            # `low` is 0 where growing is impossible or was refused.
            if not sizes.low or (free >= sizes.spare and not is_wanted):
                continue
            if not sizes.cold and (free < sizes.low or is_wanted):
                sizes.low = 0  # until growing has succeeded
                self._grow(sizes)
            run = self._next_run(sizes, _FILLER_RUN_NBYTES)
            if run is not None:
                return sizes, *run
        return None

    # ---- small helpers ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Hold the lock of a pool that works."""
        with self._lock:
            if self._unusable is not None:
                raise self._unusable()
            yield

    def _drop_loan(self, slot: Slot) -> None:
        """Note that a loan's last view is gone; from a finalizer, so without the lock."""
        self._dropped.append(slot)
        self._notify()

    def _notify(self) -> None:
        on_free = self.on_free
        if on_free is not None:
            on_free()

    def _refuse_in_child(self) -> None:
        if self._unusable is _forked:
            raise _forked()


def _can_share(*, insist: bool) -> bool:
    """Try whether the system has shared memory without a name; raise if it must."""
    try:
        Arena(0, capacity=PAGE_NBYTES, count=1, shared=True).close()
    except OutOfSpace as error:
        if insist:
            raise
        _log.warning("pixels go through sockets: %s", error.what)
        return False
    return True


def _closed() -> StreamError:
    return StreamClosed(
        "this stream's memory was given back when it was closed.", cure="Connect again."
    )


def _forked() -> StreamError:
    return ForkedStream(
        "this stream belongs to the parent of this forked process.",
        cure="Connect in the child itself, or start processes with the 'spawn' method.",
    )


def _not_held(slot: Slot, what: str) -> StreamError:
    return UsageError(
        f"{slot!r} can't be {what}.",
        cure="Acquire a slot for each item; publish or cancel it once.",
    )
