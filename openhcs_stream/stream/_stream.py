"""The worker's face of a session: send items, get receipts, wait, close."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import warnings
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import numpy as np

from openhcs_stream.errors import (
    DeadlineExceeded,
    ForkedStream,
    InvalidItem,
    ItemFailed,
    StreamClosed,
    StreamError,
    UsageError,
)
from openhcs_stream.messages import MAJOR, MINOR, Hello, Kind, Mode
from openhcs_stream.pixels import HELD, Copier, PixelPool, form_of, wire_dtype
from openhcs_stream.stream._batch import SMALL_NBYTES, Batch
from openhcs_stream.stream._books import Books
from openhcs_stream.stream._device import copy_into
from openhcs_stream.stream._edits import EditHub
from openhcs_stream.stream._feedback import Feedback
from openhcs_stream.stream._item import Outgoing
from openhcs_stream.stream._layers import Common, LayerBook, Look
from openhcs_stream.stream._link import Link
from openhcs_stream.stream._links import LinkGroup
from openhcs_stream.stream._payload import as_info
from openhcs_stream.stream._receipt import Receipt
from openhcs_stream.stream._room import Room
from openhcs_stream.stream._seek import Seeker
from openhcs_stream.stream._sending import MAX_PLANS, Plan, Sending
from openhcs_stream.tracker import QueueStatus, registry
from openhcs_stream.transport import machine_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.pixels import Slot
    from openhcs_stream.stream._files import ImageFile
    from openhcs_stream.stream._reach import Reached, Target
    from openhcs_stream.stream._room import WhenFull

__all__ = ["Stream"]

logger = logging.getLogger(__name__)

#: Longest that the interpreter's end waits for a stream that was not closed.
EXIT_TIMEOUT_S = 2.0

_live: weakref.WeakSet[Stream] = weakref.WeakSet()
#: The process in whose `multiprocessing` it stands that they are to be closed.
_closes_at_end_of = 0


class Stream(Sending, Feedback):
    """A worker's connection to one or several viewers; made by `connect`.

    It is a context manager: leaving it waits for what is on its way, then closes. All methods may
    be called from any thread. After a fork the child's copy raises `ForkedStream`: connect anew.

    A viewer that dies is waited for: what it had not received is sent again when it is back, to
    whatever it was named by, and never twice.

    Parameters
    ----------
    viewers : sequence of (Target, Reached)
        How each viewer was named, and a fresh control lane to it.
    deadline, timeout_s : float
        Until when the viewers must have answered, of the monotonic clock. And the deadline of each
        blocking call that is not given its own, seconds.
    name, source, modes, order, pixel_size, unit, when_full, sample_every, reconnect_s, \
    quota_nbytes, side_lane
        See `connect`.
    """

    def __init__(
        self,
        viewers: Sequence[tuple[Target, Reached]],
        *,
        deadline: float,
        name: str | None = None,
        source: str = "",
        modes: Mapping[str, Mode] | None = None,
        order: Sequence[str] = (),
        pixel_size: float | Sequence[float] | None = None,
        unit: str = "um",
        when_full: WhenFull = "block",
        sample_every: int = 10,
        timeout_s: float = 30.0,
        reconnect_s: float = 10.0,
        quota_nbytes: int | None = None,
        side_lane: bool = True,
    ) -> None:
        if not reconnect_s >= 0:
            raise InvalidItem(
                f"reconnect_s={reconnect_s!r} is no time.", cure="Use 0 or more seconds."
            )
        self.name = (name or f"{_program()} {os.getpid()}")[:256]
        self.timeout_s = timeout_s
        self._layers = LayerBook(
            source=source, modes=modes or {}, order=order, pixel_size=pixel_size, unit=unit
        )
        self._pid = os.getpid()
        group = LinkGroup()
        Sending.__init__(self)
        Feedback.__init__(self, group, EditHub(group))
        self._lock = group.lock
        self._batch = threading.local()
        self._thread: threading.Thread | None = None
        self._pool = PixelPool(quota_nbytes=quota_nbytes)
        self._copier = Copier()
        self._books = Books(self._pool, self._layers, group, self._hub)
        group.before_wait = self._books.tell_gathered
        try:
            self._room = Room(
                self._pool, group, self._books,
                policy=when_full, sample_every=sample_every, timeout_s=timeout_s,
            )  # fmt: skip
            self._open(viewers, deadline, reconnect_s, side_lane=side_lane)
        except BaseException:
            self._abandon()
            raise
        _live.add(self)
        _close_at_end_of_child()
        self._thread = threading.Thread(
            target=_look_after, args=(weakref.ref(self),), name="openhcs-stream", daemon=True
        )
        self._thread.start()

    # --- sending ------------------------------------------------------------------------------

    def allocate(
        self, shape: int | tuple[int, ...] | list[int], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """An array that already lies in shared memory, so that sending it copies nothing.

        Fill it, hand it to `image` or `labels`, and let go of it: it is read-only from then on.
        Its values are undefined at first. Dropped unsent, its memory is used again. Where no memory
        is free, and the stream's policy doesn't wait for some, it is an ordinary array.

        Raises
        ------
        InvalidItem
            No viewer can show such a dtype, or it is empty.
        OutOfSpace
            It is larger than one piece of shared memory can be; send an ordinary array, which
            goes in several pieces.
        DeadlineExceeded
            All memory is in use and none came free within the stream's `timeout_s`.
        """
        self._check()
        form = form_of(shape, dtype)
        if form.nbytes <= 0:
            raise InvalidItem(
                f"an array of shape {shape!r} has no pixels.", cure="Ask for at least one."
            )
        if self._room.policy == "block":
            lent: npt.NDArray[Any] = self._room.wait(
                lambda: self._pool.lend(form), form.nbytes, is_loan=True
            )
            return lent
        found = self._pool.lend(form)
        return np.empty(shape, dtype) if found is None else found

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Send what the block sends as one message: fewer bytes and wake-ups for small items.

        Everything in a batch is checked and copied at once, and told to the viewer when the block
        ends; of a batch of more than 4 MiB each 4 MiB as soon as they are there. If the block
        raises, what was not told yet is not sent.
        """
        self._check()
        if getattr(self._batch, "open", None) is not None:
            raise InvalidItem("a batch is open on this thread.", cure="End it first.")
        batch = self._batch.open = Batch(self._pool, self._room)
        try:
            yield
            self._check()  # the block may have forked, and this be the child
            self._send_batch(batch)
        except BaseException:
            batch.let_go(is_child=os.getpid() != self._pid)
            raise
        finally:
            self._batch.open = None

    def _send_batch(self, batch: Batch) -> None:
        items = batch.take_items()
        if items:
            self._room.go(items)

    # --- waiting, asking ----------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that was sent is displayed, by every viewer.

        Raises
        ------
        ItemFailed
            Something could not be shown since the last flush; its `failures` name each.
        DeadlineExceeded
            Not within `timeout_s` seconds (None: the stream's own).
        """
        self._check()
        limit = self.timeout_s if timeout_s is None else timeout_s
        done = self._group.wait_until(self._is_settled, limit)
        books = self._books
        with self._lock:
            count, failures = books.take_failures()
            waiting = len(books.open) + self._room.waiting
            oldest = next(iter(books.open.values()), None)
        if failures:
            first = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in failures[:3])
            raise ItemFailed(
                f"{count} of the items sent could not be shown: {first}"
                + (f"; and {count - 3} more." if count > 3 else "."),
                cure="The failures attribute of this error lists them.",
                failures=failures,
            )
        if not done:
            raise DeadlineExceeded(
                f"{waiting} items were not displayed within {limit:g} s, first "
                f"{oldest.receipt.name if oldest else 'none'}.",
                cure="Allow more time, or look at the viewer: it may be busy or stopped.",
            )

    def status(self) -> tuple[QueueStatus, ...]:
        """The queue to each viewer, now."""
        self._check(closed=True)
        if not self._group.closed:
            self._books.tell_gathered()
            self._group.pump(0.0)
        return tuple(
            link.tracker.status() for link in self._group.links if link.tracker is not None
        )

    @property
    def viewers(self) -> tuple[str, ...]:
        """Names of the viewers that are connected now."""
        return tuple(link.label for link in self._group.open_links())

    @property
    def awaited(self) -> tuple[str, ...]:
        """Names of the viewers that were lost, and for which items wait."""
        links = self._group.taking_links()
        return tuple(link.label for link in links if not link.is_open)

    @property
    def closed(self) -> bool:
        return self._group.closed

    def close(self, *, timeout_s: float | None = None) -> None:
        """Wait for what is on its way to be displayed, then end the sessions. Idempotent.

        What is on the screen stays there. Nothing is raised for viewers that died.
        """
        if self._group.closed or os.getpid() != self._pid:
            return
        limit = self.timeout_s if timeout_s is None else timeout_s
        self._group.wait_until(self._is_settled, limit)
        self._group.say_bye()
        self._end()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        self._seeker.join(5.0)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_clean = False
        try:
            if kind is None and not self._group.closed:
                self.flush()
            is_clean = kind is None
        finally:
            # After an error the caller should see that error, soon.
            self.close(timeout_s=None if is_clean else 1.0)

    def __del__(self) -> None:
        if "_group" in self.__dict__ and not self._group.closed and os.getpid() == self._pid:
            warnings.warn(
                f"stream {self.name!r} was dropped without close().",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self._abandon()

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            f"stream {self.name!r} can't be sent to another process.",
            cure="Give it the viewer's name or address, and connect() there.",
        )

    def __repr__(self) -> str:
        state = "closed" if self._group.closed else f"to {', '.join(self.viewers) or 'nobody'}"
        return f"<Stream {self.name!r} {state}>"

    # --- from an array to the viewers ---------------------------------------------------------

    def _send(
        self,
        kind: Kind,
        array: npt.NDArray[Any],
        name: str,
        axes: str,
        place: dict[str, PlaceValue],
        look: Look,
        common: Common,
        form: tuple[Any, ...] | None = None,
    ) -> Receipt:
        self._check()
        dtype = wire_dtype(array.dtype)
        components = tuple(place)
        layer = self._layers.number(
            kind, name, axes, components, look, common, self._group.welcomes()
        )
        info = as_info(common.get("metadata"))
        plan = Plan(kind, name, layer, components, dtype)
        if form is not None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            with suppress(TypeError):  # one of the settings can't be a key
                self._plans[form] = plan
        return self._send_planned(plan, array, tuple(place.values()), info)

    def _send_planned(
        self,
        plan: Plan,
        array: npt.NDArray[Any],
        values: tuple[PlaceValue, ...],
        info: dict[str, Any] | None = None,
    ) -> Receipt:
        batch: Batch | None = getattr(self._batch, "open", None)
        if batch is None:  # else its end looks, and whatever takes memory
            self._check()
        nbytes = array.nbytes
        receipt = Receipt(
            self._group.wait_until, plan.kind, plan.name, plan.components, values,
            str(info["id"]) if info and "id" in info else "",
        )  # fmt: skip
        item = Outgoing(plan.layer, values, array.shape, plan.dtype, nbytes, info or {}, receipt)
        if nbytes > self._pool.chunk_limit:
            self._send_in_parts(item, array)
            return receipt
        try:
            if (
                batch is not None and batch.shares and 0 < nbytes <= SMALL_NBYTES
                and type(array) is np.ndarray and self._pool.loan_of(array) is None
            ):  # fmt: skip
                is_full = batch.put_small(item, array)
            elif nbytes and not self._fill(item, array, batch):
                return receipt
            elif batch is None:
                self._room.go([item])
                return receipt
            else:
                is_full = batch.put(item)
            if is_full:
                self._send_batch(batch)
        except BaseException:
            # Also Ctrl-C in the middle: what nobody was told of must not stay in use.
            is_in = self._room.keeps(item) or (batch is not None and item in batch.items)
            if item.seq < 0 and not is_in:
                self._let_go(item)
            raise
        return receipt

    def _fill(self, item: Outgoing, array: npt.NDArray[Any], batch: Batch | None) -> bool:
        """Give the item memory with its pixels; False: the policy let it go."""
        room, pool = self._room, self._pool
        lent = pool.loan_of(array)
        if lent is not None and (room.policy != "latest" or room.goes_now(item)):
            if not room.admits(item):
                return False
            item.slot = lent
            if batch is not None:
                item.lent = lent.protect()
            return True
        if batch is not None and batch.items and room.policy == "block":
            item.slot = pool.acquire(item.nbytes)
            if item.slot is None:
                # It is larger than the memory that there is: it goes in several messages.
                room.go(batch.take_items())
        if item.slot is None:
            item.slot = room.take(item)
        if item.slot is None:
            return False
        copy_into(item.slot, array, item.dtype, self._copier)
        return True

    def _send_in_parts(self, item: Outgoing, array: npt.NDArray[Any]) -> None:
        """An array that is larger than a slot: parts follow each other through the pool."""
        room, books = self._room, self._books
        parts = list(_chunks(array, self._pool.chunk_limit))
        ready: list[Slot] = []
        if room.policy != "block":
            ready = room.take_parts(item, [part.nbytes for part in parts])
            if not ready:
                return
        slot: Slot | None = None
        try:
            for number, part in enumerate(parts):
                if ready:
                    slot = ready.pop(0)
                else:
                    # What the item itself holds must not keep its own next part waiting.
                    counted = 0 if number else part.nbytes
                    slot = room.wait(lambda n=part.nbytes: self._pool.acquire(n), counted)  # type: ignore[misc]
                copy_into(slot, part, item.dtype, self._copier)
                if number == 0:
                    item.slot, item.first_nbytes = slot, part.nbytes
                    slot = None
                    books.tell([item], in_parts=True)
                else:
                    telling, slot = slot, None
                    if not books.tell_more(item.seq, telling, part.nbytes):
                        return  # it failed; there is no use in sending the rest
        finally:
            for each in [*ready, *([] if slot is None else [slot])]:
                self._pool.cancel(each)

    def _viewer_kinds(self) -> Iterator[str]:
        return (link.viewer for link in self._group.links)

    def _send_file(
        self, file: ImageFile, name: str, place: dict[str, PlaceValue], look: Look, common: Common
    ) -> Receipt:
        self._check()
        for link in self._group.open_links():
            lacks = link.lacks(file)
            if lacks:
                raise InvalidItem(
                    f"{link.label} can't read {file.path} itself: {lacks}.",
                    cure="Send the pixels themselves, with image().",
                )
        layer = self._layers.number(
            "image", name, file.axes, tuple(place), look, common, self._group.welcomes()
        )
        info = as_info(common.get("metadata"))
        values = tuple(place.values())
        receipt = Receipt(
            self._group.wait_until, "image", name, tuple(place), values, str(info.get("id", ""))
        )
        item = Outgoing(layer, values, file.shape, file.dtype, 0, info, receipt)
        item.file = file
        self._books.tell([item])
        return receipt

    def _let_go(self, item: Outgoing) -> None:
        slot = item.give_slot()
        if slot is not None and slot.state == HELD:
            self._pool.cancel(slot)

    def _is_settled(self) -> bool:
        return not self._books.open and not self._room.waiting

    # --- life ---------------------------------------------------------------------------------

    def _open(
        self,
        viewers: Sequence[tuple[Target, Reached]],
        deadline: float,
        reconnect_s: float,
        *,
        side_lane: bool,
    ) -> None:
        group = self._group
        side = ("unix",) if side_lane and self._pool.shared else ()
        hello = Hello(
            MAJOR, MINOR, os.urandom(16).hex(), "stream", self.name, _user(), machine_id(),
            self._pid, "", side,
        )  # fmt: skip
        for number, (target, reached) in enumerate(viewers, 1):
            greeting = msgspec.structs.replace(hello, token=reached.token)
            link = Link(
                number, target, reached.address, reached.lane, greeting, self._books,
                reconnect_s=reconnect_s,
            )  # fmt: skip
            group.links.append(link)
        self._seeker = Seeker(group, hello)
        group.on_away = self._seeker.start
        group.open(deadline, self.timeout_s)
        self._layers.checks = tuple(link.check for link in group.links if link.check)
        for link in group.links:
            link.begin(registry().add(self.name, link.label))

    def _look(self) -> float:
        """One look of the stream's own thread; returns for how long to rest."""
        self._copier.start_if_wanted()
        wait = self._group.look_once(busy=not self._is_settled())
        if self._room.waiting:
            with suppress(StreamError):  # what waited has failed, which is told
                self._room.send_waiting()
        return wait

    def _end(self) -> None:
        """After the links: nothing is sent or heard any more."""
        self._room.let_go("the stream was closed")
        self._hub.wake()
        self._copier.end()
        self._pool.close()

    def _abandon(self) -> None:
        """Let go of everything, without a word to the viewers."""
        self._group.let_go()
        self._hub.wake()
        self._copier.end()
        self._pool.close()

    def _check(self, *, closed: bool = False) -> None:
        if os.getpid() != self._pid:
            raise ForkedStream(
                f"stream {self.name!r} belongs to process {self._pid}, this is its forked child "
                f"{os.getpid()}.",
                cure="Call connect() in the child.",
            )
        if self._group.closed and not closed:
            raise StreamClosed(f"stream {self.name!r} is closed.", cure="Call connect() again.")


def _close_all() -> None:
    """At the interpreter's end: what was sent should arrive, but nobody waits for long."""
    for stream in list(_live):
        stream.close(timeout_s=EXIT_TIMEOUT_S)


def _close_at_end_of_child() -> None:
    """`multiprocessing`'s forked children end without a word to `atexit`, up to Python 3.12."""
    global _closes_at_end_of
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _closes_at_end_of != os.getpid():
        _closes_at_end_of = os.getpid()
        util.Finalize(None, _close_all, exitpriority=0)


def _after_fork_in_child() -> None:
    """A child must not hold its parent's lanes: the viewer sees the parent's death by their end."""
    for stream in list(_live):
        stream._group.abandon_after_fork()  # noqa: SLF001


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)


def _look_after(ref: weakref.ref[Stream]) -> None:
    """The stream's own thread. It holds no reference while it rests, so a forgotten stream ends."""
    while True:
        stream = ref()
        if stream is None or stream.closed:
            return
        group = stream._group  # noqa: SLF001
        try:
            wait = stream._look()  # noqa: SLF001
        except Exception:
            logger.exception("stream %r ends: its own thread failed", stream.name)
            return
        del stream
        if wait and group.rest(wait):
            return


def _chunks(array: npt.NDArray[Any], limit: int) -> Iterator[npt.NDArray[Any]]:
    """Pieces of an array in C order, none larger than `limit` bytes."""
    if array.nbytes <= limit:
        yield array
    elif array.shape[0] == 1:
        yield from _chunks(array[0], limit)
    else:
        step = max(1, limit // (array.nbytes // array.shape[0]))
        for start in range(0, array.shape[0], step):
            yield from _chunks(array[start : start + step], limit)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _program() -> str:
    return os.path.basename(sys.argv[0] or "python") or "python"
