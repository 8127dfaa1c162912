"""How much may be on its way, and what a send does when that is reached: the policies.

======== =========================================================================================
policy   what a send does while the viewers have not taken what was sent before
======== =========================================================================================
block    waits until they have, up to the deadline, then raises; while they still take nothing,
         later sends raise at once
drop     lets the new item go
latest   lets the new item wait, in place of an older one that still waits for the same place of
         the same layer; where too many places wait, the one that waits longest goes
sample   lets all but every n-th item go, from three quarters full on, and all when it is full
======== =========================================================================================

Under the last three nobody waits: whether there is room is seen at once, and memory is made in
another thread, ahead of the need. Only the first item of a size has the caller make some, and small
items the little that they need. Where a later one finds none ready, an item that waits gives it its
own ("latest": the one of the same place, or else the one that waits longest, of those that have
enough); and if there is none, the new item goes. That is rare: the last memory of a size is with an
item that waits.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from openhcs_stream.errors import DeadlineExceeded, InvalidItem, OutOfSpace, StreamError
from openhcs_stream.logs import log_event
from openhcs_stream.protocol import MAX_OUTSTANDING
from openhcs_stream.stream._latest import Latest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openhcs_stream.pixels import PixelPool, Slot
    from openhcs_stream.stream._books import Books
    from openhcs_stream.stream._item import Outgoing
    from openhcs_stream.stream._links import LinkGroup

__all__ = ["WHEN_FULL", "Room", "WhenFull"]

logger = logging.getLogger(__name__)

WhenFull = Literal["block", "drop", "latest", "sample"]
WHEN_FULL: Final = ("block", "drop", "latest", "sample")

#: Items, and bytes, that may be on their way and not received. More would add delay, not speed:
#: what was just written should still lie in the processor's cache when the viewer reads it. Of tiny
#: items a second batch should find room while the viewer takes the first.
WINDOW_ITEMS: Final = 1024
WINDOW_NBYTES: Final = 32 << 20
#: Where items are let go of, fewer: those on their way are the oldest, and the viewer shows all.
FEWER_ITEMS: Final = 256
#: Of arrays that were lent, and lie there without a copy, more may be on their way.
LOAN_WINDOW_NBYTES: Final = 128 << 20
#: Before an item as large as that goes it is seen which memory is free again: what was used last is
#: still in the processor's cache, and a copy to there takes two thirds of one to other memory.
GLANCE_NBYTES: Final = 1 << 20
#: From here on "sample" samples, and a warning is due; the next one when it was half empty again.
NEARLY_FULL: Final = 0.75
CALM: Final = 0.5
#: Seconds between two warnings of a kind.
WARN_EVERY_S: Final = 60.0
#: Up to here the first item of a size has memory made for those that may soon follow, too, ...
GROW_UP_TO: Final = 0.25
#: ... at once for so many bytes, or items, whatever is more, and soon for all of the window.
FIRST_NBYTES: Final = 8 << 20
FIRST_ITEMS: Final = 4
#: Memory for so many bytes may always be made by a send: it takes a tenth of a millisecond.
GROW_NBYTES: Final = 256 << 10


class Room:
    """Memory for the items of one stream, as far as its policy has some for them.

    Parameters
    ----------
    pool : PixelPool
    group : LinkGroup
    books : Books
    policy : "block", "drop", "latest" or "sample"
    sample_every : int
        Of "sample": one of so many is sent.
    timeout_s : float
        Of "block": how long a send waits.

    Raises
    ------
    InvalidItem
        There is no such policy.
    """

    def __init__(
        self,
        pool: PixelPool,
        group: LinkGroup,
        books: Books,
        *,
        policy: WhenFull,
        sample_every: int,
        timeout_s: float,
    ) -> None:
        if policy not in WHEN_FULL:
            raise InvalidItem(
                f"when_full={policy!r} is no policy.",
                cure='Use "block", "drop", "latest" or "sample".',
            )
        if sample_every < 1:
            raise InvalidItem(
                f"sample_every={sample_every!r} is no number of items.", cure="Use 1 or more."
            )
        self.policy = policy
        self._pool = pool
        self._group = group
        self._books = books
        self._sample_every = sample_every
        self._sampled = 0
        self._timeout_s = timeout_s
        # What waits for its turn needs memory too.
        share = 2 if policy == "latest" else 1
        self._window_items = WINDOW_ITEMS if policy == "block" else FEWER_ITEMS
        self._window_nbytes = min(WINDOW_NBYTES, pool.quota_nbytes // share)
        self._latest = Latest(pool)
        self._is_telling = False
        #: How things stood when a send had waited in vain.
        self._stuck: tuple[int, int] | None = None
        self._level = 0  #: 1: it was nearly full since it was calm; 2: full
        self._warn_at = [0.0, 0.0]

    # --- how full it is -----------------------------------------------------------------------

    @property
    def fill(self) -> float:
        """How full it is: 0 to 1, and above where single items are large."""
        books = self._books
        fill = books.unreceived_nbytes / self._window_nbytes
        if (other := books.unreceived / self._window_items) > fill:  # max() costs twice as much
            fill = other
        if (other := len(books.open) / MAX_OUTSTANDING) > fill:
            fill = other
        return fill

    @property
    def waiting(self) -> int:
        """Items that wait: for room, under "latest", or a moment for others."""
        return len(self._latest) + self._books.gathered

    def keeps(self, item: Outgoing) -> bool:
        """Whether this item waits, and will go out or be let go."""
        return self._books.has_gathered(item) or self._latest.has(item)

    def has_room(self, nbytes: int) -> bool:
        """Whether another item of so many bytes may go out.

        Two may always be on their way, however large: the next is written while one is read.
        """
        return self._has_room(nbytes, self._window_items, max(self._window_nbytes, 2 * nbytes))

    def _has_room(self, nbytes: int, items: int, most_nbytes: int) -> bool:
        books = self._books
        return (
            books.unreceived < items
            and books.unreceived_nbytes + nbytes <= most_nbytes
            and len(books.open) < MAX_OUTSTANDING
        )

    def _notice(self) -> None:
        """Count, and say, that it is nearly full or full; once until it has been calm again."""
        fill = self.fill
        if fill < NEARLY_FULL:
            if self._level and fill < CALM:
                self._level = 0
            return
        level = 2 if fill >= 1.0 else 1
        if level <= self._level:
            return
        self._level = level
        for link in self._group.links:
            if link.tracker is not None and link.session.takes_items:
                link.tracker.filled(full=level == 2)
        now = time.monotonic()
        if now < self._warn_at[level - 1]:
            return
        self._warn_at[level - 1] = now + WARN_EVERY_S
        log_event(
            logger, logging.WARNING, "queue full" if level == 2 else "queue nearly full",
            policy=self.policy, items=self._books.unreceived, bytes=self._books.unreceived_nbytes,
            viewers=", ".join(link.label for link in self._group.taking_links()),
        )  # fmt: skip

    # --- taking memory ------------------------------------------------------------------------

    def take(self, item: Outgoing) -> Slot | None:
        """Take memory for an item; None: the policy lets it go, which is told.

        Raises
        ------
        DeadlineExceeded
            Nothing was taken within the time ("block").
        ViewerLost
            There is no viewer.
        """
        nbytes, policy = item.nbytes, self.policy
        if policy == "block":
            return self.take_patiently(nbytes)
        if policy == "latest":
            return self._take_for_latest(item)
        slot = None
        if self.admits(item):
            slot = self._take_ready(nbytes)
            if slot is None:
                self._books.dropped([item.receipt], "full")
        return slot

    def take_patiently(self, nbytes: int) -> Slot:
        """Take so much memory, as "block" does.

        Raises
        ------
        DeadlineExceeded, OutOfSpace, ViewerLost
            As `wait`.
        """
        if nbytes >= GLANCE_NBYTES and self._books.unreceived:
            self._group.glance()
        if self.has_room(nbytes):
            slot = self._pool.acquire(nbytes)
            if slot is not None:
                return slot
        taken: Slot = self.wait(lambda: self._pool.acquire(nbytes), nbytes)
        return taken

    def goes_now(self, item: Outgoing) -> bool:
        """Whether an item goes out at once under "latest", with nothing before it."""
        return not self._latest and self.has_room(item.nbytes)

    def admits(self, item: Outgoing) -> bool:
        """Whether the policy has an item go, or wait; if not, that is told."""
        if self.policy in ("block", "latest"):
            return True
        if not self._group.taking_links():
            raise self._group.nobody()
        if self.policy == "sample" and self.fill >= NEARLY_FULL:
            self._sampled += 1
            if self._sampled % self._sample_every:
                self._books.dropped([item.receipt], "sampled")
                return False
        if not self.has_room(item.nbytes):
            # What was reported and not read yet may make room.
            self._group.pump(0.0)
            if not self.has_room(item.nbytes):
                self._notice()
                self._books.dropped([item.receipt], "full")
                return False
        return True

    def take_parts(self, item: Outgoing, sizes: Sequence[int]) -> list[Slot]:
        """Take memory for all parts of an item at once, where the policy doesn't wait for it.

        Returns
        -------
        list of Slot
            Empty: the item is let go, which is told.

        Raises
        ------
        InvalidItem
            It can never be sent so.
        """
        if sum(sizes) > self._pool.quota_nbytes:
            raise InvalidItem(
                f"an item of {item.nbytes} bytes is larger than the stream's shared memory of "
                f"{self._pool.quota_nbytes} bytes, and when_full={self.policy!r} waits for none.",
                cure='Raise quota_nbytes, use when_full="block", or send it in smaller pieces.',
            )
        slots: list[Slot] = []
        if not self.has_room(item.nbytes):
            self._group.pump(0.0)
        grow = self.fill < GROW_UP_TO and any(
            self._pool.made(nbytes) < sizes.count(nbytes) for nbytes in set(sizes)
        )
        if self.has_room(item.nbytes):
            for nbytes in sizes:
                slot = self._pool.acquire(nbytes, grow=grow)
                if slot is None:
                    break
                slots.append(slot)
        if len(slots) == len(sizes):
            return slots
        for slot in slots:
            self._pool.cancel(slot)
        self._notice()
        self._books.dropped([item.receipt], "full")
        return []

    def wait(self, take: Callable[[], Any], nbytes: int, *, is_loan: bool = False) -> Any:
        """Take memory as soon as there is some.

        Parameters
        ----------
        take : callable
            Gives None where there is none now.
        nbytes : int
            What counts against the window; 0: nothing.
        is_loan : bool
            It is for the caller to write to: more may be on its way, as nothing is copied.

        Raises
        ------
        DeadlineExceeded, OutOfSpace
            There was none within the stream's `timeout_s`.
        ViewerLost
            There is no viewer.
        """
        group, books = self._group, self._books
        limit = self._timeout_s
        if self._stuck is not None:
            group.pump(0.0)
            if self._stuck == (books.unreceived, books.unreceived_nbytes):
                limit = 0.0  # one deadline for a viewer that takes nothing, not one for each item
            self._stuck = None
        deadline = time.monotonic() + limit
        # Once full, it waits until there is room for many: to go on at the first free place would
        # cost both sides a wake-up for each item.
        items, most_nbytes = self._window_items, max(self._window_nbytes, 2 * nbytes)
        if is_loan:
            most_nbytes = max(min(LOAN_WINDOW_NBYTES, self._pool.quota_nbytes // 2), 4 * nbytes)
        while True:
            if not nbytes or self._has_room(nbytes, items, most_nbytes):
                taken = take()
                if taken is not None:
                    return taken
            elif items == self._window_items:
                items, most_nbytes = items // 2, max(most_nbytes // 2, 2 * nbytes)
            if not group.taking_links():
                raise group.nobody()
            books.tell_gathered()
            self._notice()
            left = deadline - time.monotonic()
            if left <= 0:
                self._stuck = (books.unreceived, books.unreceived_nbytes)
                raise self.none_within("another item")
            group.pump(min(left, 0.1), self._moves())

    def _moves(self) -> Callable[[], bool]:
        """Tells whether viewers have taken something since now."""
        books = self._books
        before = books.unreceived_nbytes
        return lambda: books.unreceived_nbytes != before

    def none_within(self, what: str) -> StreamError:
        """The error for when there was no room in time."""
        waiting = self._books.unreceived
        if not waiting:
            return OutOfSpace(
                f"there is no shared memory for {what}: all of the quota of "
                f"{self._pool.quota_nbytes} bytes is in use.",
                cure="Let go of arrays from allocate(), or raise quota_nbytes.",
            )
        viewers = ", ".join(link.label for link in self._group.taking_links())
        return DeadlineExceeded(
            f"no room for {what} within {self._timeout_s:g} s: {waiting} items wait for "
            f"{viewers or 'viewers'} to take them.",
            cure='The viewer may be busy or stopped. Use when_full="drop" not to wait for it.',
        )

    # --- going out ----------------------------------------------------------------------------

    def go(self, items: Sequence[Outgoing]) -> None:
        """Tell the viewers of items; or have them wait, under "latest" and where it is full.

        Raises
        ------
        ViewerLost
            There is no viewer; the items' memory is free.
        """
        if self.policy == "latest":
            self._let_wait(items)
            self.send_waiting()
        elif self._books.tell_soon(items):
            self._notice()

    def send_waiting(self) -> None:
        """Tell of what waits, as far as there is room by now.

        Raises
        ------
        ViewerLost
            There is no viewer; what waited has failed.
        """
        lock, latest = self._group.lock, self._latest
        self._books.tell_gathered()
        if not latest:
            return
        with lock:
            # One thread at a time: an older item of a place must not overtake a newer one.
            if self._is_telling:
                return
            self._is_telling = True
        try:
            while True:
                with lock:
                    if not latest or not self._may_go(latest.next()):
                        break
                    item = latest.take()
                self._books.tell([item])
            self._notice()
        except StreamError as error:
            self.let_go(error.what)
            raise
        finally:
            self._is_telling = False

    def let_go(self, reason: str) -> None:
        """Nothing that waits for room will be sent."""
        with self._group.lock:
            for item in self._latest.take_all():
                if item.slot is not None:
                    self._pool.cancel(item.slot)
                item.receipt.mark_failed("", reason)

    def _take_for_latest(self, item: Outgoing) -> Slot | None:
        nbytes = item.nbytes
        if not self._group.taking_links():
            raise self._group.nobody()
        if not self.goes_now(item):
            self._group.pump(0.0)
        slot = self._take_ready(nbytes)
        if slot is None:
            with self._group.lock:
                slot, gone = self._latest.give_way(item)
            self._books.dropped([each.receipt for each in gone], "replaced")
        if slot is None:
            self._notice()
            self._books.dropped([item.receipt], "full")
        return slot

    def _may_go(self, item: Outgoing) -> bool:
        """Whether an item that waits may be told of now.

        The last memory of a size stays with it until more is ready, or a viewer has taken what
        is on its way: so there is some for a newer item, which nobody has to make.
        """
        nbytes, slot = item.nbytes, item.slot
        return self.has_room(nbytes) and (
            nbytes <= GROW_NBYTES
            or len(self._latest) > 1
            or not self._books.unreceived
            or (slot is not None and slot.loan is not None)
            or self._pool.spare(nbytes) > 0
        )

    def _take_ready(self, nbytes: int) -> Slot | None:
        """Take memory that is there, or is made in no time; the first of a size has some made."""
        pool = self._pool
        slot = pool.acquire(nbytes, grow=nbytes <= GROW_NBYTES)
        if slot is not None:
            return slot
        if not pool.made(nbytes):
            is_calm = self.fill < GROW_UP_TO
            window = self._window_nbytes // nbytes
            pool.make_first(
                nbytes,
                now=min(window, max(FIRST_ITEMS, FIRST_NBYTES // nbytes)) if is_calm else 1,
                soon=min(max(window, 2) + 2, pool.quota_nbytes // 4 // nbytes),
                make_room=is_calm,
            )
        else:
            # What was reported and not read yet may have freed some.
            self._group.pump(0.0)
        return pool.acquire(nbytes, grow=False)

    def _let_wait(self, items: Sequence[Outgoing]) -> None:
        gone: list[Outgoing] = []
        with self._group.lock:
            for item in items:
                gone += self._latest.put(item)
        if gone:
            self._notice()
            self._books.dropped([each.receipt for each in gone], "replaced")
