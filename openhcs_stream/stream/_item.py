"""An item on its way: what is told of it, and where its pixels lie until they are received."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openhcs_stream.messages import CHUNK_NBYTES, Item, Part

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.pixels import Slot
    from openhcs_stream.stream._files import ImageFile
    from openhcs_stream.stream._receipt import Receipt

__all__ = ["Outgoing", "described", "parts_of"]


class Outgoing:
    """One item, from the moment when its pixels lie in memory until every viewer told its end.

    Attributes
    ----------
    seq : int
        Its number in the stream; -1 until it is told to the viewers.
    slot : Slot or None
        Where its pixels lie; None: it has none.
    at : int
        Where in the slot they begin.
    is_guest : bool
        The slot is that of a later item, which is told in the same go: it goes with that one's
        lease.
    lease : int
        For which the viewers hold the slot; 0: a guest has none.
    first_nbytes : int
        How much of it lies there; an item that is larger than a slot goes in parts.
    lent : ndarray or None
        While the item waits for others, the array that `slot` was lent as: dropped, it would give
        the slot back.
    file : ImageFile or None
        Where its pixels stay, if they do; `nbytes` is 0 then.
    """

    __slots__ = (
        "at",
        "dtype",
        "file",
        "first_nbytes",
        "info",
        "is_guest",
        "layer",
        "lease",
        "lent",
        "nbytes",
        "place",
        "receipt",
        "seq",
        "shape",
        "slot",
    )

    def __init__(
        self,
        layer: int,
        place: tuple[PlaceValue, ...],
        shape: tuple[int, ...],
        dtype: str,
        nbytes: int,
        info: dict[str, Any],
        receipt: Receipt,
    ) -> None:
        self.layer = layer
        self.place = place
        self.shape = shape
        self.dtype = dtype
        self.nbytes = self.first_nbytes = nbytes
        self.info = info
        self.receipt = receipt
        self.seq = -1
        self.lease = 0
        self.at = 0
        self.is_guest = False
        self.slot: Slot | None = None
        self.lent: npt.NDArray[Any] | None = None
        self.file: ImageFile | None = None

    def give_slot(self) -> Slot | None:
        """Part with its slot, as nobody is told of it; None: it has none of its own."""
        slot, self.slot = self.slot, None
        return None if self.is_guest else slot


def described(item: Outgoing, blobs: list[memoryview] | None) -> Item:
    """The item as it is told to a viewer.

    Parameters
    ----------
    item : Outgoing
        Told to nobody yet, or not received yet: its slot is its own.
    blobs : list or None
        The pixels are put in here, to follow in the message; None: the viewer has mapped them.
    """
    slot = item.slot
    if slot is None:
        parts: tuple[Part, ...] = ()
    elif blobs is None:
        parts = (Part(slot.arena.id, slot.offset + item.at, item.first_nbytes, item.lease),)
    else:
        parts = parts_of(slot, item.first_nbytes, item.lease, blobs, item.at)
    return Item(
        item.seq, item.layer, item.place, item.shape, item.dtype, item.nbytes, parts, item.info
    )


def parts_of(
    slot: Slot, nbytes: int, lease: int, blobs: list[memoryview] | None, at: int = 0
) -> tuple[Part, ...]:
    """Where bytes of an item are. In the message, the last one's release frees them all."""
    if blobs is None:
        return (Part(slot.arena.id, slot.offset + at, nbytes, lease),)
    parts = []
    view = slot.view[at : at + nbytes]
    for start in range(0, nbytes, CHUNK_NBYTES):
        piece = view[start : start + CHUNK_NBYTES]
        last = start + CHUNK_NBYTES >= nbytes
        parts.append(Part(-1, len(blobs), len(piece), lease if last else 0))
        blobs.append(piece)
    return tuple(parts)
