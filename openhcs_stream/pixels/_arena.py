"""One arena: a piece of memory cut into slots of one size."""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import OutOfSpace
from openhcs_stream.pixels._memory import (
    PAGE_NBYTES,
    Mapping,
    close_in_child,
    create_shared_file,
    fault_in,
    private_memory,
    seal,
)

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

__all__ = [
    "FREE",
    "HELD",
    "LEASED",
    "MAX_ARENA_NBYTES",
    "SPENT",
    "Arena",
    "Slot",
    "slot_capacity",
    "slot_capacity_within",
]

#: Bytes that an arena may have. A Java machine maps at most 2 GiB at once.
MAX_ARENA_NBYTES: Final = 1 << 30

#: What a slot is doing. Free: waiting in its pool. Held: handed out and not published. Leased:
#: published, and some holder has not released it. Spent: released by all, but the caller still
#: has the array that was lent to it.
FREE, HELD, LEASED, SPENT = range(4)


@lru_cache(maxsize=256)
def slot_capacity(nbytes: int) -> int:
    """Return the size of the slots for items of so many bytes: whole pages, at most 1/8 more.

    There are eight sizes between a power of two and the next.
    """
    if nbytes <= 16 * PAGE_NBYTES:
        return max(-(-nbytes // PAGE_NBYTES) * PAGE_NBYTES, PAGE_NBYTES)
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


def slot_capacity_within(nbytes: int) -> int:
    """Return the largest size of a slot that is not above a number of bytes (at least a page)."""
    step = max(PAGE_NBYTES, 1 << max(nbytes.bit_length() - 4, 0))
    return nbytes // step * step


class Arena:
    """A piece of memory, shared (without a name) or private, cut into equal slots.

    Its slots come to be in runs, as they are faulted in: `take` in the pool's lock, then `fault_in`
    outside of it.

    Parameters
    ----------
    arena : int
        Its number.
    capacity, count : int
        Bytes of a slot, and how many there are room for.
    shared : bool

    Attributes
    ----------
    id : int
        Its number on the wire; never used again within the pool.
    fd : int
        Descriptor to be passed to viewers; -1: private memory, or closed.
    nbytes : int
        Its size; viewers map all of it.
    charged_nbytes : int
        What it counts for against the quota: all but the slots that were given up.
    ready : int
        Slots that are faulted in.
    filling : int
        Threads that are faulting slots in.

    Raises
    ------
    OutOfSpace
        The machine refused.
    """

    __slots__ = (
        "__weakref__",
        "_memory",
        "_next",
        "_unpin",
        "capacity",
        "charged_nbytes",
        "count",
        "fd",
        "filling",
        "id",
        "nbytes",
        "ready",
    )

    def __init__(self, arena: int, *, capacity: int, count: int, shared: bool) -> None:
        self.id = arena
        self.fd = -1
        self.capacity = capacity
        self.count = count
        self.nbytes = capacity * count
        self.charged_nbytes = self.nbytes
        self.ready = 0
        self.filling = 0
        self._next = 0
        self._unpin: list[Callable[[], object]] = []
        if not shared:
            self._memory: npt.NDArray[np.uint8] | None = private_memory(self.nbytes)
            return
        self.fd = create_shared_file(self.nbytes)
        close_in_child(self)
        try:
            self._memory = np.asarray(Mapping(self.fd, self.nbytes, writable=True))
            seal(self.fd)
        except OSError as error:
            self.close()
            raise OutOfSpace(
                f"the system would not map {self.nbytes} bytes of shared memory: {error.strerror}.",
                cure="Raise the limit on address space (ulimit -v) or lower quota_nbytes.",
            ) from error

    @property
    def cold(self) -> int:
        """Slots that no run has been taken of yet."""
        return self.count - self._next

    def take(self, nbytes: int) -> range:
        """Take the next run of slots, of about so many bytes and at least one slot."""
        run = range(self._next, min(self._next + max(nbytes // self.capacity, 1), self.count))
        self._next = run.stop
        self.filling += 1
        return run

    @property
    def is_open(self) -> bool:
        """Whether it was not closed yet."""
        return self._memory is not None

    def fault_in(self, run: range) -> list[Slot]:
        """Give memory to a run of slots.

        Raises
        ------
        OutOfSpace
            The machine has no memory for them.
        """
        memory = self._memory
        assert memory is not None  # closing waits for those who fill
        start, stop = run.start * self.capacity, run.stop * self.capacity
        fault_in(memory[start:stop], self.fd, start)
        base = memory.__array_interface__["data"][0]
        return [
            Slot(self, offset, memory[offset : offset + self.capacity], base + offset)
            for offset in range(start, stop, self.capacity)
        ]

    def give_up(self, taken: int = 0) -> int:
        """Give up the slots that no run has been taken of, and some that were taken in vain.

        They have no memory yet, so that only their charge goes; the file keeps its size.

        Returns
        -------
        int
            By how many bytes the charge is less.
        """
        nbytes = (self.cold + taken) * self.capacity
        self._next = self.count
        self.charged_nbytes -= nbytes
        return nbytes

    def unpin_at_close(self, unpin: Callable[[], object]) -> None:
        """Have something called before the memory is let go of; at once if that is so already."""
        self._unpin.append(unpin)
        if self._memory is None:
            self._unpin_all()

    def _unpin_all(self) -> None:
        while self._unpin:
            with contextlib.suppress(IndexError):  # two threads may do this at once
                self._unpin.pop()()

    def close(self) -> None:
        """Let go of the file and the memory; idempotent. Views of it go on living."""
        self._unpin_all()  # while it is mapped
        self._memory = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def after_fork_in_child(self) -> None:
        """Close the child's duplicate of the descriptor. What is pinned is the parent's."""
        self._unpin.clear()
        with contextlib.suppress(OSError):
            self.close()

    def __del__(self) -> None:
        self.close()


class Slot:
    """Room for one item, or for one chunk of it.

    Attributes
    ----------
    arena : Arena
    offset : int
        Where it begins in the arena, in bytes.
    capacity : int
        How many bytes it has.
    nbytes : int
        How many were asked for.
    memory : (capacity,) uint8
        Its bytes, writable. Writing after publishing tears pixels.
    """

    __slots__ = (
        "address",
        "arena",
        "capacity",
        "holders",
        "home",
        "is_pinned",
        "lease",
        "loan",
        "memory",
        "nbytes",
        "offset",
        "state",
    )

    def __init__(
        self, arena: Arena, offset: int, memory: npt.NDArray[np.uint8], address: int
    ) -> None:
        self.arena = arena
        self.offset = offset
        self.capacity = arena.capacity
        self.nbytes = 0
        self.memory = memory
        # The rest is the pool's bookkeeping.
        self.address = address
        self.state = FREE
        self.lease = 0
        self.holders: set[int] = set()
        self.home: list[Slot] = []
        self.loan: weakref.ref[npt.NDArray[Any]] | None = None
        self.is_pinned = False

    def pin(self, register: Callable[[int, int], Callable[[], object] | None]) -> None:
        """Pin its pages for a device, once; that is undone before its arena is let go of.

        Parameters
        ----------
        register : callable
            Called with the address and the number of bytes, it gives what undoes it; None: the
            device refused, and is not asked again.
        """
        if self.is_pinned:
            return
        self.is_pinned = True
        unpin = register(self.address, self.capacity)
        if unpin is not None:
            self.arena.unpin_at_close(unpin)

    def __del__(self) -> None:
        """Free it where it was taken, and its taker was interrupted before it had it (Ctrl-C)."""
        if self.state == HELD and self.loan is None and self.arena.is_open:
            again = Slot(self.arena, self.offset, self.memory, self.address)
            again.home, again.is_pinned = self.home, self.is_pinned
            again.home.append(again)

    def protect(self) -> npt.NDArray[Any] | None:
        """Let the array that it was lent as not be written to any more; gives it if it lives."""
        array = None if self.loan is None else self.loan()
        if array is not None:
            array.setflags(write=False)
        return array

    @property
    def view(self) -> memoryview:
        """The bytes that were asked for, to be sent over a socket."""
        return self.memory.data[: self.nbytes]

    def array(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a writable C-ordered array that lies at the slot's beginning.

        Raises
        ------
        TypeError
            Such an array is larger than the slot. (numpy's error)
        """
        return np.ndarray(shape, dtype, buffer=self.memory)

    def __repr__(self) -> str:
        """Say which slot this is and what it is doing."""
        state = ("free", "held", "leased", "spent")[self.state]
        return f"<Slot {self.arena.id}:{self.offset} of {self.capacity} bytes, {state}>"
