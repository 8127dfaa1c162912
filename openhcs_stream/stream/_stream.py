"""The worker's face of a session: send items, get receipts, wait, close."""

from __future__ import annotations

import atexit
import getpass
import itertools
import logging
import os
import secrets
import threading
import time
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Unpack

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import (
    DeadlineExceeded,
    ForkedStream,
    InvalidItem,
    ItemFailed,
    OutOfSpace,
    StreamClosed,
    StreamError,
    UsageError,
)
from openhcs_stream.messages import (
    CHUNK_NBYTES,
    MAJOR,
    MINOR,
    Hello,
    Item,
    Items,
    Kind,
    Mode,
    More,
    Part,
    encode,
)
from openhcs_stream.pixels import PixelPool, wire_dtype
from openhcs_stream.stream._feedback import Feedback
from openhcs_stream.stream._layers import PLAIN, Common, LayerBook, Look
from openhcs_stream.stream._link import Link
from openhcs_stream.stream._links import LinkGroup
from openhcs_stream.stream._payload import (
    Place,
    as_array,
    as_info,
    as_limits,
    as_place,
    as_table,
    with_axes,
)
from openhcs_stream.stream._receipt import Receipt
from openhcs_stream.tracker import QueueStatus, registry
from openhcs_stream.transport import machine_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.pixels import Slot
    from openhcs_stream.protocol import Moved
    from openhcs_stream.transport import Lane

__all__ = ["Stream", "WhenFull"]

logger = logging.getLogger(__name__)

WhenFull = Literal["block", "drop"]

#: Items, and bytes, that may be on their way and not received. More would add delay, not speed.
WINDOW_ITEMS = 256
WINDOW_NBYTES = 256 << 20

#: Longest that the interpreter's end waits for a stream that was not closed.
EXIT_TIMEOUT_S = 2.0

#: What failed since the last flush is listed by name up to this many.
NAMED_FAILURES = 1000

_live: weakref.WeakSet[Stream] = weakref.WeakSet()


class _Prepared:
    """An item whose pixels lie in memory already, ready to be told to the viewers."""

    __slots__ = ("dtype", "info", "layer", "nbytes", "place", "receipt", "shape", "slot")

    def __init__(
        self,
        layer: int,
        place: tuple[PlaceValue, ...],
        shape: tuple[int, ...],
        dtype: str,
        nbytes: int,
        slot: Slot | None,
        info: dict[str, Any],
        receipt: Receipt,
    ) -> None:
        self.layer = layer
        self.place = place
        self.shape = shape
        self.dtype = dtype
        self.nbytes = nbytes
        self.slot = slot
        self.info = info
        self.receipt = receipt


class Stream(Feedback):
    """A worker's connection to one or several viewers; made by `connect`.

    It is a context manager: leaving it waits for what is on its way, then closes. All methods may
    be called from any thread. After a fork the child's copy raises `ForkedStream`: connect anew.

    Parameters
    ----------
    links : sequence of (address, lane, token)
        Control lanes to the viewers, fresh.
    name : str
        What a person calls this stream; it stands in viewers' and trackers' lists.
    source : str
        Plate, pipeline or step; layers are grouped by it.
    modes : mapping of component to mode
        How each component of a place is shown: "stack", "split", "channel", "slice", "frame".
    pixel_size : float, (Y, X) or (Z, Y, X)
        Default of all images, in `unit`.
    when_full : "block" or "drop"
        What a send does while the viewers have not taken what was sent before: wait, up to
        `timeout_s`, or let the new item go and count it.
    timeout_s : float
        Deadline of each blocking call that is not given its own.
    quota_nbytes : int or None
        Most shared memory to use; None: at most 1 GiB and a quarter of the machine's memory.
    side_lane : bool
        Whether to use shared memory where the viewer is on this machine. Without it pixels travel
        through ZeroMQ, as they do to another machine.
    """

    def __init__(
        self,
        lanes: Sequence[tuple[str, Lane, str]],
        *,
        name: str | None = None,
        source: str = "",
        modes: Mapping[str, Mode] | None = None,
        order: Sequence[str] = (),
        pixel_size: float | Sequence[float] | None = None,
        unit: str = "um",
        when_full: WhenFull = "block",
        timeout_s: float = 30.0,
        quota_nbytes: int | None = None,
        side_lane: bool = True,
    ) -> None:
        if when_full not in ("block", "drop"):
            raise InvalidItem(
                f"when_full={when_full!r} is no policy.", cure='Use "block" or "drop".'
            )
        self.name = (name or f"{_program()} {os.getpid()}")[:256]
        self.timeout_s = timeout_s
        self._layers = LayerBook(
            source=source, modes=modes or {}, order=order, pixel_size=pixel_size, unit=unit
        )
        self._when_full = when_full
        self._pid = os.getpid()
        super().__init__(LinkGroup())
        self._lock = self._group.lock
        self._pool = PixelPool(quota_nbytes=quota_nbytes)
        self._seq = itertools.count()
        self._receipts: dict[int, Receipt] = {}
        self._open_counts: dict[int, int] = {}
        self._unreceived: dict[int, int] = {}
        self._unreceived_nbytes = 0
        self._failures: list[tuple[str, str]] = []
        self._failed_count = 0
        self._batch = threading.local()
        self._thread: threading.Thread | None = None
        try:
            self._open(lanes, side_lane=side_lane)
        except BaseException:
            self._abandon()
            raise
        _live.add(self)
        self._thread = threading.Thread(
            target=_look_after, args=(weakref.ref(self),), name="openhcs-stream", daemon=True
        )
        self._thread.start()

    # --- sending ------------------------------------------------------------------------------

    def image(
        self,
        image: Any,
        *,
        name: str = "image",
        axes: str | None = None,
        place: Place | None = None,
        colormap: str = "",
        contrast_limits: tuple[float, float] | None = None,
        blending: str = "",
        **common: Unpack[Common],
    ) -> Receipt:
        """Send an image.

        Parameters
        ----------
        image : array-like, 0 to 8 dimensions, any numeric dtype but complex, or bool
            Also torch, cupy and jax arrays. An array from `allocate` is sent without a copy.
        name : str
            Name of its layer (napari) or window (Fiji).
        axes : str
            One letter per dimension: T, C, Z, Y, X, S (RGB). None: YX, ZYX, CZYX, TCZYX by their
            number; uint8 (Y, X, 3 or 4) is RGB.
        place : mapping
            ``{"well": "A01", "site": 1, "channel": "DAPI", "z": 3, "time": 0}``, or part of it.
        colormap : str
            Name of a colormap (napari) or LUT (Fiji); empty: by the channel's name.
        contrast_limits : (low, high)
            None: from the layer's first data, then left alone.
        blending : str
            "additive", "translucent", "opaque", ...; empty: the viewer chooses.
        **common
            What every kind of item takes: see `Common`.

        Returns
        -------
        Receipt

        Raises
        ------
        InvalidItem
            The image can't be shown as given; nothing was sent.
        DeadlineExceeded
            The viewers took nothing within the stream's `timeout_s`.
        ViewerLost
            No viewer is left.
        """
        array, axes = with_axes(as_array(image), axes)
        look = Look(colormap, as_limits(contrast_limits), blending)
        return self._send("image", array, name, axes, as_place(place, axes), look, common)

    def labels(
        self,
        labels: Any,
        *,
        name: str = "labels",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send a label image: whole numbers, 0 is background; bool is a mask.

        Parameters, returns and errors are those of `image`.
        """
        array, axes = with_axes(as_array(labels, what="a label image"), axes)
        if array.dtype.kind not in "biu":
            raise InvalidItem(
                f"a label image of dtype {array.dtype} has no labels.",
                cure="Use whole numbers, for instance labels.astype('uint32').",
            )
        return self._send("labels", array, name, axes, as_place(place, axes), PLAIN, common)

    def rois(
        self,
        rois: Any,
        *,
        name: str = "rois",
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send regions of interest; they replace those of the same name at the same place.

        Parameters
        ----------
        rois : list of Roi, or of (N, 2) arrays of polygon vertices (y, x) in pixels
            Whatever `openhcs_stream.rois.coerce` takes. An empty list clears the place.
        name, place, **common
            As in `image`.
        """
        block = np.frombuffer(roi_codecs.encode(roi_codecs.coerce(rois)), np.uint8)
        return self._send("rois", block, name, "YX", as_place(place, "YX"), PLAIN, common)

    def points(
        self,
        points: Any,
        *,
        name: str = "points",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send points; they replace those of the same name at the same place.

        Parameters
        ----------
        points : (N, D) array-like of float
            Coordinates in pixels, whole numbers are pixel centres.
        axes : str
            Letters of the D columns; None: YX or ZYX.
        name, place, **common
            As in `image`.
        """
        table, axes = as_table(points, kind="points", axes=axes)
        return self._send("points", table, name, axes, as_place(place, axes), PLAIN, common)

    def tracks(
        self,
        tracks: Any,
        *,
        name: str = "tracks",
        axes: str | None = None,
        place: Place | None = None,
        **common: Unpack[Common],
    ) -> Receipt:
        """Send tracks; they replace those of the same name at the same place.

        Parameters
        ----------
        tracks : (N, D + 1) array-like of float
            The track's number, then time and coordinates: one row per track and time.
        axes : str
            Letters of the D columns behind the number; None: TYX or TZYX.
        name, place, **common
            As in `image`.
        """
        table, axes = as_table(tracks, kind="tracks", axes=axes)
        return self._send("tracks", table, name, axes, as_place(place, axes), PLAIN, common)

    def allocate(
        self, shape: int | tuple[int, ...] | list[int], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """An array that already lies in shared memory, so that sending it copies nothing.

        Fill it, hand it to `image` or `labels`, and let go of it: it is read-only from then on.
        Its values are undefined at first. Dropped unsent, its memory is used again.

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
        wire_dtype(dtype)
        nbytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        if nbytes <= 0:
            raise InvalidItem(
                f"an array of shape {shape!r} has no pixels.", cure="Ask for at least one."
            )
        found: npt.NDArray[Any] | None = self._until(
            lambda: self._pool.allocate(shape, dtype), nbytes
        )
        if found is None:
            raise self._no_room(f"an array of {nbytes} bytes")
        return found

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Send what the block sends as one message: fewer bytes and wake-ups for small items.

        Everything in a batch is checked and copied when it is sent, and told to the viewer when
        the block ends. If the block raises, nothing of it is sent. A batch that is larger than
        the memory on its way may be goes in several messages.
        """
        self._check()
        if getattr(self._batch, "items", None) is not None:
            raise InvalidItem("a batch is open on this thread.", cure="End it first.")
        self._batch.items = []
        try:
            yield
            self._check()  # the block may have forked, and this be the child
            items, self._batch.items = self._batch.items, None
            if items:
                self._tell(items)
        except BaseException:
            for each in self._batch.items or ():
                if each.slot is not None and os.getpid() == self._pid:
                    self._pool.cancel(each.slot)
                each.receipt.mark_dropped()
            raise
        finally:
            self._batch.items = None

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
        done = self._group.wait_until(lambda: not self._receipts, limit)
        with self._lock:
            failures, self._failures = tuple(self._failures), []
            count, self._failed_count = self._failed_count, 0
            waiting = len(self._receipts)
            oldest = next(iter(self._receipts.values()), None)
        if failures:
            first = "; ".join(f"{name}: {reason}" for name, reason in failures[:3])
            raise ItemFailed(
                f"{count} of the items sent could not be shown: {first}"
                + (f"; and {count - 3} more." if count > 3 else "."),
                cure="The failures attribute of this error lists them.",
                failures=failures,
            )
        if not done:
            raise DeadlineExceeded(
                f"{waiting} items were not displayed within {limit:g} s, first "
                f"{oldest.name if oldest else 'none'}.",
                cure="Allow more time, or look at the viewer: it may be busy or stopped.",
            )

    def status(self) -> tuple[QueueStatus, ...]:
        """The queue to each viewer, now."""
        self._check(closed=True)
        if not self._group.closed:
            self._group.pump(0.0)
        return tuple(
            link.tracker.status() for link in self._group.links if link.tracker is not None
        )

    @property
    def viewers(self) -> tuple[str, ...]:
        """Names of the viewers that are connected now."""
        return tuple(link.label for link in self._group.open_links())

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
        self._group.wait_until(lambda: not self._receipts, limit)
        self._group.say_bye()
        self._hub.wake()
        self._pool.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

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

    # --- from an array to a slot --------------------------------------------------------------

    def _send(
        self,
        kind: Kind,
        array: npt.NDArray[Any],
        name: str,
        axes: str,
        place: dict[str, PlaceValue],
        look: Look,
        common: Common,
    ) -> Receipt:
        """Check, copy into shared memory, tell the viewers."""
        self._check()
        dtype = wire_dtype(array.dtype)
        layer = self._layers.number(
            kind, name, axes, tuple(place), look, common, self._group.welcomes()
        )
        info = as_info(common.get("metadata"))
        nbytes = array.nbytes
        receipt = Receipt(self._group.wait_until, kind, name, place, str(info.get("id", "")))
        prepared = _Prepared(
            layer, tuple(place.values()), array.shape, dtype, nbytes, None, info, receipt
        )
        if nbytes > self._pool.chunk_limit:
            self._send_in_chunks(prepared, array)
            return receipt
        if nbytes:
            slot = self._pool.loan_of(array)
            if slot is None:
                slot = self._until(partial(self._pool.acquire, nbytes), nbytes)
                if slot is None:
                    return self._drop(receipt)
                self._fill(slot, array, dtype)
            prepared.slot = slot
        batch = getattr(self._batch, "items", None)
        if batch is None:
            self._tell([prepared])
        else:
            batch.append(prepared)
        return receipt

    def _send_in_chunks(self, prepared: _Prepared, array: npt.NDArray[Any]) -> None:
        """An array that is larger than a slot: pieces follow each other through the pool."""
        seq = -1
        limit = self._pool.chunk_limit
        for chunk in _chunks(array, limit):
            # What the item itself holds must not keep its own next piece waiting.
            counted = chunk.nbytes if seq < 0 else 0
            slot = self._until(partial(self._pool.acquire, chunk.nbytes), counted)
            if slot is None:
                if seq < 0:
                    self._drop(prepared.receipt)
                    return
                raise self._no_room(prepared.receipt.name)
            self._fill(slot, chunk, prepared.dtype)
            if seq < 0:
                prepared.slot = slot
                seq = self._tell([prepared], first_nbytes=chunk.nbytes)
            else:
                self._tell_more(seq, slot, chunk.nbytes)
            if seq not in self._receipts:
                return  # it failed; there is no use in sending the rest

    def _fill(self, slot: Slot, array: npt.NDArray[Any], dtype: str) -> None:
        """Copy an array to a slot, which is free again where that is interrupted."""
        try:
            np.copyto(slot.array(array.shape, dtype), array)
        except BaseException:
            self._pool.cancel(slot)
            raise

    # --- room ---------------------------------------------------------------------------------

    def _until(self, take: Callable[[], Any], nbytes: int) -> Any:
        """Take memory as soon as there is some; None at once where the policy is to drop.

        `nbytes` counts against the window of what may be on its way; 0: not at all.
        """
        block = self._when_full == "block"
        deadline = time.monotonic() + self.timeout_s
        looked = False
        # Once full, it waits until there is room for many: to go on at the first free place would
        # cost both sides a wake-up for each item.
        most = WINDOW_ITEMS
        while True:
            crowded = nbytes > 0 and (
                len(self._unreceived) >= most
                or self._unreceived_nbytes + nbytes > max(WINDOW_NBYTES, 2 * nbytes)
            )
            if crowded and block:
                most = WINDOW_ITEMS // 2
            if not crowded or not self._unreceived:
                taken = take()
                if taken is not None:
                    return taken
            if not self._group.open_links():
                raise self._group.nobody()
            left = deadline - time.monotonic()
            if looked and (not block or left <= 0):
                if not block:
                    return None
                raise self._no_room("another item")
            self._group.pump(min(left, 0.1) if block else 0.0)
            looked = True

    def _no_room(self, what: str) -> StreamError:
        waiting = len(self._unreceived)
        if not waiting:
            return OutOfSpace(
                f"there is no shared memory for {what}: all of the quota of "
                f"{self._pool.quota_nbytes} bytes is in use.",
                cure="Let go of arrays from allocate(), or raise quota_nbytes.",
            )
        return DeadlineExceeded(
            f"no room for {what} within {self.timeout_s:g} s: {waiting} items wait for "
            f"{', '.join(self.viewers)} to take them.",
            cure='The viewer may be busy or stopped. Use when_full="drop" not to wait for it.',
        )

    def _drop(self, receipt: Receipt) -> Receipt:
        receipt.mark_dropped()
        for link in self._group.links:
            if link.tracker is not None:
                link.tracker.dropped([receipt.name])
        return receipt

    # --- telling the viewers ------------------------------------------------------------------

    def _tell(self, batch: list[_Prepared], *, first_nbytes: int | None = None) -> int:
        """Register items with their trackers, lease their slots, send their descriptors."""
        with self._group.sending():
            links = self._group.open_links()
            if not links:
                for each in batch:
                    if each.slot is not None:
                        self._pool.cancel(each.slot)
                    each.receipt.mark_failed("", "no viewer is connected")
                raise self._group.nobody()
            holders = [link.number for link in links]
            for arena in self._pool.retired():
                for link in links:
                    link.carry_out(link.session.retire(arena))
            items: list[tuple[int, _Prepared, int]] = []
            for each in batch:
                seq = next(self._seq)
                lease = self._pool.publish(each.slot, holders) if each.slot is not None else 0
                items.append((seq, each, lease))
                each.receipt.mark_sent(len(links))
                self._receipts[seq] = each.receipt
                self._open_counts[seq] = len(links)
                self._unreceived[seq] = each.nbytes
                self._unreceived_nbytes += each.nbytes
            for link in links:
                if link.tracker is not None:
                    link.tracker.sent([(seq, each.receipt) for seq, each, _ in items])
                for seq, _, lease in items:
                    link.session.sent(seq, (lease,) if lease else ())
                self._send_items(link, items, first_nbytes)
            return items[-1][0]

    def _send_items(
        self, link: Link, items: Sequence[tuple[int, _Prepared, int]], first_nbytes: int | None
    ) -> None:
        described: list[Item] = []
        blobs: list[memoryview] = []
        for seq, each, lease in items:
            link.carry_out(link.session.declare(each.layer, self._layers.spec(each.layer)))
            nbytes = each.nbytes if first_nbytes is None else first_nbytes
            parts: tuple[Part, ...] = ()
            slot = each.slot
            if slot is None:
                pass
            elif link.shares_memory:
                arena = slot.arena
                link.offer_arena(arena.id, arena.nbytes, arena.fd)
                parts = (Part(arena.id, slot.offset, nbytes, lease),)
            else:
                parts = _inline(slot, nbytes, blobs, lease)
            described.append(
                Item(seq, each.layer, each.place, each.shape, each.dtype, each.nbytes, parts,
                     each.info)
            )  # fmt: skip
        frame = encode(Items(tuple(described)))
        if len(frame) > link.data.max_frame and len(items) > 1:
            half = len(items) // 2
            self._send_items(link, items[:half], first_nbytes)
            self._send_items(link, items[half:], first_nbytes)
            return
        link.send_data(frame, tuple(blobs))

    def _tell_more(self, seq: int, slot: Slot, nbytes: int) -> None:
        with self._group.sending():
            links = [link for link in self._group.links if link.session.is_outstanding(seq)]
            lease = self._pool.publish(slot, [link.number for link in links])
            for link in links:
                link.session.sent_more(seq, (lease,))
                if link.shares_memory:
                    link.offer_arena(slot.arena.id, slot.arena.nbytes, slot.arena.fd)
                    link.send_data(
                        encode(More(seq, (Part(slot.arena.id, slot.offset, nbytes, lease),)))
                    )
                else:
                    blobs: list[memoryview] = []
                    parts = _inline(slot, nbytes, blobs, lease)
                    link.send_data(encode(More(seq, parts)), tuple(blobs))

    # --- what comes back ----------------------------------------------------------------------

    def _moved(self, link: Link, moved: Moved) -> None:
        """Under the lock: a viewer reported, or is gone."""
        pool, receipts, tracker = self._pool, self._receipts, link.tracker
        for lease in moved.leases:
            pool.release(link.number, lease)
        for seq in moved.received:
            receipt = receipts.get(seq)
            if receipt is not None:
                receipt.mark_received()
                if receipt.is_received:
                    self._forget_unreceived(seq)
        for seq in moved.displayed:
            receipt = receipts.get(seq)
            if receipt is not None and link.tells_displayed:
                receipt.mark_displayed()
            self._finish(seq)
        for seq, reason in moved.failed:
            receipt = receipts.get(seq)
            if receipt is not None:
                receipt.mark_failed(link.label, reason)
                self._failed_count += 1
                if len(self._failures) < NAMED_FAILURES:
                    self._failures.append((receipt.name, f"{link.label}: {reason}"))
            self._finish(seq)
        if tracker is not None:
            if moved.received:
                tracker.received(moved.received)
            if moved.displayed:
                (tracker.displayed if link.tells_displayed else tracker.told)(moved.displayed)
            if moved.failed:
                tracker.failed(moved.failed)
        if link.is_closed:
            pool.release_holder(link.number)

    def _finish(self, seq: int) -> None:
        left = self._open_counts.get(seq, 0) - 1
        if left > 0:
            self._open_counts[seq] = left
            return
        self._open_counts.pop(seq, None)
        self._receipts.pop(seq, None)
        self._forget_unreceived(seq)

    def _forget_unreceived(self, seq: int) -> None:
        self._unreceived_nbytes -= self._unreceived.pop(seq, 0)

    # --- life ---------------------------------------------------------------------------------

    def _open(self, lanes: Sequence[tuple[str, Lane, str]], *, side_lane: bool) -> None:
        side = ("unix",) if side_lane and self._pool.shared else ()
        session = secrets.token_hex(16)
        for number, (address, lane, token) in enumerate(lanes, 1):
            hello = Hello(
                MAJOR, MINOR, session, "stream", self.name, _user(), machine_id(), self._pid,
                token, side,
            )  # fmt: skip
            self._group.links.append(
                Link(number, address, lane, hello, _weakly(self), self._hub.came)
            )
        self._group.open(self.timeout_s)
        self._layers.checks = tuple(link.check for link in self._group.links if link.check)
        for link in self._group.links:
            link.tracker = registry().add(self.name, link.label)

    def _abandon(self) -> None:
        """Let go of everything, without a word to the viewers."""
        self._group.let_go()
        self._hub.wake()
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


def _after_fork_in_child() -> None:
    """A child must not hold its parent's lanes: the viewer sees the parent's death by their end."""
    for stream in list(_live):
        stream._group.abandon_after_fork()  # noqa: SLF001


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)


def _weakly(stream: Stream) -> Callable[[Link, Moved], None]:
    """The stream's `_moved` without a cycle: a forgotten stream should go when it is forgotten."""
    ref = weakref.ref(stream)

    def moved(link: Link, effect: Moved) -> None:
        stream = ref()
        if stream is not None:
            stream._moved(link, effect)  # noqa: SLF001

    return moved


def _look_after(ref: weakref.ref[Stream]) -> None:
    """The stream's own thread. It holds no reference while it rests, so a forgotten stream ends."""
    while True:
        stream = ref()
        if stream is None or stream.closed:
            return
        group = stream._group  # noqa: SLF001
        try:
            wait = group.look_once(busy=bool(stream._receipts))  # noqa: SLF001
        except Exception:
            logger.exception("stream %r ends: its own thread failed", stream.name)
            return
        del stream
        if wait and group.rest(wait):
            return


def _inline(slot: Slot, nbytes: int, blobs: list[memoryview], lease: int) -> tuple[Part, ...]:
    """Parts that travel in the message; the last one's release frees the memory of them all."""
    parts = []
    view = slot.view
    for start in range(0, nbytes, CHUNK_NBYTES):
        piece = view[start : min(start + CHUNK_NBYTES, nbytes)]
        last = start + CHUNK_NBYTES >= nbytes
        parts.append(Part(-1, len(blobs), len(piece), lease if last else 0))
        blobs.append(piece)
    return tuple(parts)


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
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _program() -> str:
    import sys

    return os.path.basename(sys.argv[0] or "python") or "python"
