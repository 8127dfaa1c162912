"""What one thread sends together: items that are copied and told to nobody yet.

Small ones lie side by side in one slot, as a slot for each costs more than what lies in it: the
last of them has its lease, and the others are its guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.pixels import HELD

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.pixels import PixelPool, Slot
    from openhcs_stream.stream._item import Outgoing
    from openhcs_stream.stream._room import Room

__all__ = ["SMALL_NBYTES", "Batch"]

#: An item of at most so many bytes shares a slot with others, which has so many.
SMALL_NBYTES: Final = 64 << 10
SHARED_NBYTES: Final = 512 << 10
#: Up to here two copies take less time than making an array that lies in the slot.
_TINY_NBYTES: Final = 4096
#: A batch of so many bytes, or items, is told as one message.
FULL_NBYTES: Final = 4 << 20
FULL_ITEMS: Final = 4096
#: Where an array may begin: what processors like best, and any dtype allows.
_ALIGNED: Final = 64


class Batch:
    """Used by one thread.

    Parameters
    ----------
    pool : PixelPool
    room : Room

    Attributes
    ----------
    items : list of Outgoing
    nbytes : int
        Of all of them.
    shares : bool
        Whether small items share slots here: where no item is let go of without the others.
    """

    __slots__ = ("_pool", "_room", "_slot", "_used", "_view", "items", "nbytes", "shares")

    def __init__(self, pool: PixelPool, room: Room) -> None:
        self.items: list[Outgoing] = []
        self.nbytes = 0
        # Nor where the memory is so little that a slot would take a good part of it.
        self.shares = room.policy == "block" and pool.quota_nbytes >= 16 * SHARED_NBYTES
        self._pool = pool
        self._room = room
        #: The one that is being filled, its bytes, and how many of them are in use.
        self._slot: Slot | None = None
        self._view = memoryview(b"")
        self._used = SHARED_NBYTES

    def put(self, item: Outgoing) -> bool:
        """Add an item that has its pixels.

        Returns
        -------
        bool
            Whether the batch is worth a message now: more would keep the viewer waiting.
        """
        self.items.append(item)
        self.nbytes = nbytes = self.nbytes + item.nbytes
        return nbytes >= FULL_NBYTES or len(self.items) >= FULL_ITEMS

    def put_small(self, item: Outgoing, array: npt.NDArray[Any]) -> bool:
        """Copy a small array to where others lie, and add its item, as `put` does.

        Raises
        ------
        DeadlineExceeded, OutOfSpace, ViewerLost
            As `Room.wait`.
        """
        at, nbytes = self._used, item.nbytes
        if at + nbytes > SHARED_NBYTES:
            self._end_slot()
            self._begin_slot()
            at = 0
        if nbytes <= _TINY_NBYTES and array.dtype.isnative:
            self._view[at : at + nbytes] = array.tobytes()
        else:
            np.copyto(np.ndarray(array.shape, item.dtype, self._view, at), array)
        item.at, item.is_guest, item.slot = at, True, self._slot
        self._used = (at + nbytes + _ALIGNED - 1) & -_ALIGNED
        return self.put(item)

    def take_items(self) -> list[Outgoing]:
        """Take all items out, to tell them in this order and in one go."""
        self._end_slot()
        items, self.items, self.nbytes = self.items, [], 0
        return items

    def let_go(self, *, is_child: bool) -> None:
        """Nobody is told of them. In a forked child their memory is the parent's, and stays."""
        if not is_child:
            self._end_slot()
        for item in self.items:
            slot = item.give_slot()
            if slot is not None and slot.state == HELD and not is_child:
                self._pool.cancel(slot)
            item.receipt.mark_dropped()

    def _begin_slot(self) -> None:
        slot = self._pool.acquire(SHARED_NBYTES) if self.items else None
        if slot is None:
            if self.items:
                # More than the memory that there is: they go in several messages.
                self._room.go(self.take_items())
            slot = self._room.take_patiently(SHARED_NBYTES)
        self._slot, self._view, self._used = slot, slot.view, 0

    def _end_slot(self) -> None:
        """Give it to the last item that lies in it."""
        slot, self._slot, self._used = self._slot, None, SHARED_NBYTES
        self._view = memoryview(b"")
        if slot is None:
            return
        for item in reversed(self.items):
            if item.slot is slot:
                item.is_guest = False
                return
        self._pool.cancel(slot)
