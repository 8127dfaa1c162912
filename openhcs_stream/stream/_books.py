"""What was handed to a stream and is not over yet, and what became of it, viewer by viewer."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from openhcs_stream.errors import StreamError
from openhcs_stream.stream._uninterrupted import Uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.messages import LayerSpec
    from openhcs_stream.pixels import PixelPool, Slot
    from openhcs_stream.protocol import EditCame, Moved
    from openhcs_stream.stream._edits import EditHub
    from openhcs_stream.stream._item import Outgoing
    from openhcs_stream.stream._layers import LayerBook
    from openhcs_stream.stream._link import Link
    from openhcs_stream.stream._links import LinkGroup
    from openhcs_stream.stream._receipt import Receipt
    from openhcs_stream.tracker import DropReason

__all__ = ["Books"]

#: What failed since the last flush is listed by name up to this many.
NAMED_FAILURES: Final = 1000
#: A message for each small item costs both sides more than the item itself. In a flood, which
#: begins when viewers are behind by so many items and ends with the first pause, small ones are
#: gathered for a moment: they go with the first that comes a while after the last message, when
#: they are many, as soon as anybody waits for anything, and at the latest when the stream's own
#: thread looks. Where the viewers are not behind by more than a few, they go at once.
FLOOD_ITEMS: Final = 32
BEHIND_ITEMS: Final = 2
GATHER_S: Final = 0.001
GATHER_ITEMS: Final = 32
GATHER_NBYTES: Final = 256 << 10


class Books:
    """The items of one stream; changed under the stream's lock.

    Parameters
    ----------
    pool : PixelPool
        Where their pixels lie.
    layers : LayerBook
    group : LinkGroup
    hub : EditHub

    Attributes
    ----------
    open : dict of int to Outgoing
        Items by number, of which some viewer has still to tell the end.
    """

    def __init__(self, pool: PixelPool, layers: LayerBook, group: LinkGroup, hub: EditHub) -> None:
        self.open: dict[int, Outgoing] = {}
        self._unreceived = 0
        self._unreceived_nbytes = 0
        self._pool = pool
        self._layers = layers
        self._group = group
        self._hub = hub
        self._seq = itertools.count()
        self._failures: list[tuple[str, str]] = []
        self._failed_count = 0
        #: Not told yet, and without a number, see `tell_soon`; and their bytes.
        self._gathered: tuple[tuple[Outgoing, ...], int] = (), 0
        self._told_at = 0.0
        self._is_flood = False

    # --- telling ------------------------------------------------------------------------------

    @property
    def unreceived(self) -> int:
        """Items that some viewer has not received."""
        return self._unreceived + len(self._gathered[0])

    @property
    def unreceived_nbytes(self) -> int:
        """Their bytes."""
        return self._unreceived_nbytes + self._gathered[1]

    @property
    def gathered(self) -> int:
        """Those of them that wait a moment for others."""
        return len(self._gathered[0])

    def has_gathered(self, item: Outgoing) -> bool:
        """Whether this item does."""
        with self._group.lock:
            return item in self._gathered[0]

    def tell_soon(self, items: Sequence[Outgoing]) -> bool:
        """As `tell`; in a flood small items wait a moment for others.

        Returns
        -------
        bool
            Whether they were sent.
        """
        behind = self.unreceived
        if time.monotonic() - self._told_at > GATHER_S:
            self._is_flood = False
        elif behind > FLOOD_ITEMS:
            self._is_flood = True
        if (
            not self._is_flood
            or behind <= BEHIND_ITEMS
            or len(items) >= GATHER_ITEMS
            or not all(map(_is_small, items))
        ):
            self.tell(items)
            return True
        with self._group.lock:
            for item in items:
                if item.slot is not None:
                    item.lent = item.slot.protect()
            before, nbytes = self._gathered
            together = (*before, *items)
            # In one step, for an interrupt may come between any two.
            self._gathered = together, nbytes + _nbytes_of(items)
        if len(together) < GATHER_ITEMS:
            return False
        self.tell(())
        # What is known to be received is used again while it still lies in the processor's cache,
        # and the stream's thread need not take turns with this one to read of it.
        self._group.pump(0.0)
        return True

    def tell_gathered(self) -> None:
        """Send what waits for others. Where there is no viewer, its items say so."""
        if self._gathered[0]:
            with suppress(StreamError):
                self.tell(())

    def tell(self, items: Sequence[Outgoing], *, in_parts: bool = False) -> None:
        """Number items, lease their memory and send them to all viewers.

        To those that are away they are sent when they are back.

        Raises
        ------
        ViewerLost
            There is no viewer, and none is waited for. The memory is free.
        """
        with Uninterrupted(), self._group.sending():
            before, _ = self._gathered
            self._gathered = (), 0
            together = (*before, *items)
            self._count(together, 1)
            try:
                if in_parts and before:
                    self._tell(before)
                    self._tell(items, in_parts=True)
                elif together:
                    self._tell(together, in_parts=in_parts)
            except StreamError as error:
                self._count(together, -1)
                for item in together:
                    self._let_go(item, error.what)
                for item in before:  # their calls returned before this was known
                    self._note_failure(item.receipt.name, error.what)
                raise
            self._told_at = time.monotonic()

    def _tell(self, items: Sequence[Outgoing], *, in_parts: bool = False) -> None:
        group, pool = self._group, self._pool
        links = group.taking_links()
        if not links:
            raise group.nobody()
        holders = [link.number for link in links]
        mask = sum([link.mask for link in links])
        for arena in pool.retired():
            for link in links:
                link.carry_out(link.session.retire(arena))
        count, numbers, is_open = len(links), self._seq, self.open
        for item in items:
            item.seq = seq = next(numbers)
            if item.slot is not None and not item.is_guest:
                item.lease = pool.publish(item.slot, holders)
                item.lent = None
            item.receipt.mark_sent(count, mask)
            is_open[seq] = item
        leases = [(item.seq, (item.lease,) if item.lease else ()) for item in items]
        for link in links:
            if link.tracker is not None:
                link.tracker.sent([(item.seq, item.receipt) for item in items])
            link.session.sent(leases, in_parts=in_parts)
            if link.is_open:
                link.tell(items)
        if len(links) < len(group.links):
            self._count_absent(items)

    def tell_more(self, seq: int, slot: Slot, nbytes: int) -> bool:
        """Send a further part of an item; False: no viewer takes more of it."""
        group = self._group
        with Uninterrupted(), group.sending():
            links = [x for x in group.open_links() if x.session.is_outstanding(seq)]
            lease = self._pool.publish(slot, [link.number for link in links])
            for link in links:
                link.session.sent_more(seq, (lease,))
                link.tell_more(seq, slot, nbytes, lease)
            return bool(links)

    def dropped(self, receipts: Sequence[Receipt], why: DropReason) -> None:
        """A policy let items go: no viewer gets them."""
        for receipt in receipts:
            receipt.mark_dropped()
        for link in self._group.links:
            if link.tracker is not None and not link.is_closed:
                link.tracker.dropped(receipts, why)

    def _count_absent(self, items: Sequence[Outgoing]) -> None:
        """Viewers that are gone miss these items; those that are there have them."""
        receipts = [item.receipt for item in items]
        for link in self._group.links:
            if link.tracker is not None and not link.session.takes_items:
                link.tracker.dropped(receipts, "absent")

    # --- what a link needs of its stream ------------------------------------------------------

    def spec(self, layer: int) -> LayerSpec:
        """The declaration of a layer."""
        return self._layers.spec(layer)

    def moved(self, link: Link, moved: Moved) -> None:
        """A viewer reported, or is gone."""
        if moved.leases:
            self._pool.release_all(link.number, moved.leases)
        items, mask = self.open, link.mask
        for seq in moved.received:
            item = items.get(seq)
            if item is not None:
                self._received(item, mask)
        for seq in moved.displayed:
            item = items.get(seq)
            if item is not None:
                receipt = item.receipt
                if link.tells_displayed:
                    receipt.undisplayed -= 1
                receipt.unfinished -= 1
                if not receipt.unfinished:
                    self._forget(seq, item)
        for seq, reason in moved.failed:
            item = items.get(seq)
            if item is not None:
                self._failed(link, item, reason)
        tracker = link.tracker
        if tracker is not None:
            if moved.received:
                tracker.received(moved.received)
            if moved.displayed:
                (tracker.displayed if link.tells_displayed else tracker.told)(moved.displayed)
            if moved.failed:
                tracker.failed(moved.failed)

    def edit_came(self, link: Link, effect: EditCame) -> None:
        """A person changed something."""
        self._hub.came(link, effect)

    def resend(self, link: Link, seqs: Sequence[int]) -> None:
        """A viewer is back: these items are told again. The caller leads."""
        items = [self.open[seq] for seq in seqs]
        for start in range(0, len(items), 256):
            link.tell(items[start : start + 256])

    def is_back(self, link: Link) -> None:
        """A viewer is back: it is told again which edits are wanted."""
        self._hub.resume(link)

    # --- what became of them ------------------------------------------------------------------

    def take_failures(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """How many items failed since the last call, and the first of them by name."""
        failures, self._failures = tuple(self._failures), []
        count, self._failed_count = self._failed_count, 0
        return count, failures

    def _received(self, item: Outgoing, mask: int) -> None:
        """One viewer needs its pixels no more."""
        receipt = item.receipt
        if receipt.unreceived & mask:
            receipt.unreceived &= ~mask
            if not receipt.unreceived:
                self._unreceived -= 1
                self._unreceived_nbytes -= item.nbytes

    def _failed(self, link: Link, item: Outgoing, reason: str) -> None:
        receipt = item.receipt
        receipt.mark_failed(link.label, reason)
        self._note_failure(receipt.name, f"{link.label}: {reason}")
        self._received(item, link.mask)
        receipt.unfinished -= 1
        if not receipt.unfinished:
            self._forget(item.seq, item)

    def _count(self, items: Sequence[Outgoing], sign: int) -> None:
        self._unreceived += sign * len(items)
        self._unreceived_nbytes += sign * _nbytes_of(items)

    def _let_go(self, item: Outgoing, reason: str) -> None:
        """Nobody is told of an item."""
        slot = item.give_slot()
        if slot is not None:
            self._pool.cancel(slot)
        item.receipt.mark_failed("", reason)

    def _note_failure(self, name: str, reason: str) -> None:
        self._failed_count += 1
        if len(self._failures) < NAMED_FAILURES:
            self._failures.append((name, reason))

    def _forget(self, seq: int, item: Outgoing) -> None:
        del self.open[seq]
        item.slot = None


def _nbytes_of(items: Iterable[Outgoing]) -> int:
    return sum([item.nbytes for item in items])


def _is_small(item: Outgoing) -> bool:
    return item.nbytes <= GATHER_NBYTES
