"""Items that wait for room under the policy "latest": of each place only the newest."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.pixels import PixelPool, Slot
    from openhcs_stream.stream._item import Outgoing

__all__ = ["Latest"]

#: Places that may wait at a time. Beyond that the one that waits longest goes: who looks at a time
#: series wants the newest frames, and each has a place of its own.
MAX_WAITING = 128

Key: TypeAlias = "tuple[int, tuple[PlaceValue, ...]]"


class Latest:
    """Items whose pixels lie in memory and that were told to nobody; under the stream's lock.

    Parameters
    ----------
    pool : PixelPool
    """

    def __init__(self, pool: PixelPool) -> None:
        self._pool = pool
        self._waiting: OrderedDict[Key, Outgoing] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def has(self, item: Outgoing) -> bool:
        """Whether this very item waits."""
        return self._waiting.get((item.layer, item.place)) is item

    def put(self, item: Outgoing) -> list[Outgoing]:
        """Have an item wait, behind all others.

        Returns
        -------
        list of Outgoing
            Those that had to go for it; their memory is free again.
        """
        key = (item.layer, item.place)
        old = self._waiting.pop(key, None)
        gone = [] if old is None else [old]
        self._waiting[key] = item
        while len(self._waiting) > MAX_WAITING:
            gone.append(self._waiting.popitem(last=False)[1])
        self._free(gone)
        return gone

    def give_way(self, item: Outgoing) -> tuple[Slot | None, list[Outgoing]]:
        """There is no memory for an item: take one out whose memory is enough.

        The one that waits for the same place, or else the one that waits longest.

        Returns
        -------
        slot, gone
            The memory, if one had enough; and the item that was taken out, if any.
        """
        own = (item.layer, item.place)
        for key in (own, *self._waiting):
            other = self._waiting.get(key)
            slot = None if other is None else other.slot
            if (
                other is None
                or slot is None
                or slot.loan is not None
                or item.nbytes > slot.capacity
            ):
                continue
            del self._waiting[key]
            other.slot = None
            slot.nbytes = item.nbytes
            return slot, [other]
        return None, []

    def take(self) -> Outgoing:
        """Take the item that waits longest."""
        return self._waiting.popitem(last=False)[1]

    def take_all(self) -> list[Outgoing]:
        """Take all of them."""
        items = list(self._waiting.values())
        self._waiting.clear()
        return items

    def next(self) -> Outgoing:
        """The item that waits longest; it goes on waiting."""
        return next(iter(self._waiting.values()))

    def _free(self, gone: list[Outgoing]) -> None:
        for item in gone:
            slot = item.give_slot()
            if slot is not None:
                self._pool.cancel(slot)
