"""All slots of one size, as their pool keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.pixels._arena import HELD

if TYPE_CHECKING:
    from openhcs_stream.pixels._arena import Arena, Slot

__all__ = ["SizeClass", "taken"]


class SizeClass:
    """All slots of one size."""

    __slots__ = ("capacity", "cold", "free", "low", "ready", "wanted")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        #: Last in, first out: the slot that was freed last is still in the processor's cache.
        self.free: list[Slot] = []
        #: Arenas with slots that are not faulted in.
        self.cold: list[Arena] = []
        #: Slots that are faulted in, free or not.
        self.ready = 0
        #: With fewer free slots than this the thread is woken.
        self.low = 0
        #: Until so many are ready the thread goes on.
        self.wanted = 0

    @property
    def spare(self) -> int:
        """How many free slots the thread leaves behind."""
        return max(self.ready // 2, 2)


def taken(free: list[Slot]) -> Slot:
    """The last of some free slots, held."""
    slot = free[-1]
    slot.state = HELD
    del free[-1]
    return slot
