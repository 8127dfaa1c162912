"""What was handed to a stream and is not over yet, and what became of it, viewer by viewer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from openhcs_stream.stream._uninterrupted import Uninterrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

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
NAMED_FAILURES = 1000


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
    unreceived, unreceived_nbytes : int
        Those of them that some viewer has not received, and their bytes.
    """

    def __init__(self, pool: PixelPool, layers: LayerBook, group: LinkGroup, hub: EditHub) -> None:
        self.open: dict[int, Outgoing] = {}
        self.unreceived = 0
        self.unreceived_nbytes = 0
        self._pool = pool
        self._layers = layers
        self._group = group
        self._hub = hub
        self._seq = itertools.count()
        self._failures: list[tuple[str, str]] = []
        self._failed_count = 0

    # --- telling ------------------------------------------------------------------------------

    def tell(self, items: Sequence[Outgoing], *, in_parts: bool = False) -> None:
        """Number items, lease their memory and send them to all viewers.

        To those that are away they are sent when they are back.

        Raises
        ------
        ViewerLost
            There is no viewer, and none is waited for. The memory is free.
        """
        group, pool = self._group, self._pool
        with Uninterrupted(), group.sending():
            links = group.taking_links()
            if not links:
                error = group.nobody()
                for item in items:
                    slot, item.slot = item.slot, None
                    if slot is not None:
                        pool.cancel(slot)
                    item.receipt.mark_failed("", error.what)
                raise error
            holders = [link.number for link in links]
            mask = sum([link.mask for link in links])
            for arena in pool.retired():
                for link in links:
                    link.carry_out(link.session.retire(arena))
            for item in items:
                seq = item.seq = next(self._seq)
                if item.slot is not None:
                    item.lease = pool.publish(item.slot, holders)
                item.receipt.mark_sent(len(links), mask)
                self.open[seq] = item
                self.unreceived_nbytes += item.nbytes
            self.unreceived += len(items)
            for link in links:
                if link.tracker is not None:
                    link.tracker.sent([(item.seq, item.receipt) for item in items])
                sent = link.session.sent
                for item in items:
                    sent(item.seq, (item.lease,) if item.lease else (), in_parts=in_parts)
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
        release, number = self._pool.release, link.number
        for lease in moved.leases:
            release(number, lease)
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
                self.unreceived -= 1
                self.unreceived_nbytes -= item.nbytes

    def _failed(self, link: Link, item: Outgoing, reason: str) -> None:
        receipt = item.receipt
        receipt.mark_failed(link.label, reason)
        self._failed_count += 1
        if len(self._failures) < NAMED_FAILURES:
            self._failures.append((receipt.name, f"{link.label}: {reason}"))
        self._received(item, link.mask)
        receipt.unfinished -= 1
        if not receipt.unfinished:
            self._forget(item.seq, item)

    def _forget(self, seq: int, item: Outgoing) -> None:
        del self.open[seq]
        item.slot = None
