"""What a receiver keeps of the items that came, within its budget.

Used by the receiver's thread, except where it is said.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from openhcs_stream import rois as roi_codecs
from openhcs_stream.errors import InvalidItem, OutOfSpace, ProtocolViolation
from openhcs_stream.viewer._budget import PLACE_NBYTES, Budget, owner_of
from openhcs_stream.viewer._files import open_image
from openhcs_stream.viewer._placement import RASTER_KINDS

if TYPE_CHECKING:
    from collections import deque

    import numpy as np
    import numpy.typing as npt

    from openhcs_stream.messages import FileShown, LayerSpec, PlaceValue
    from openhcs_stream.viewer._base import Viewer
    from openhcs_stream.viewer._placement import LayerKey, PlacedItem, Placement

__all__ = ["Keeper", "Removal", "WhenMemoryFull"]

#: What happens to an item that finds no room: it is refused, or the oldest time points go.
WhenMemoryFull = Literal["refuse", "oldest"]

#: Of the limit: where making room begins, and how far it goes, so that it happens seldom.
_HIGH: Final = 7 / 8
_LOW: Final = 3 / 4
#: What a region of interest costs besides its coordinates.
_ROI_NBYTES: Final = 512
#: How long an item waits for the window to let go of the oldest.
_PATIENCE_S: Final = 0.25

Key = tuple[Any, ...]


class Spot(NamedTuple):
    """One place in one layer."""

    key: LayerKey
    components: tuple[str, ...]
    coords: tuple[PlaceValue, ...]


@dataclass(slots=True)
class Removal:
    """What is to be taken off the screen, to make room. Goes the way of arrivals, in order."""

    spots: tuple[Spot, ...]
    times: frozenset[tuple[str, PlaceValue]]  #: (source, time): lists at these go as well
    tickets: tuple[object, ...]  #: of the items that these were


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Entry:
    """One item's memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None  #: None: it is no array that the next image could be written to
    ticket: object
    kept: Any = None
    spots: tuple[Spot, ...] = ()
    time: tuple[str, PlaceValue] | None = None
    #: What `placement` made of it.
    placement: Placement | None = None
    placed: tuple[PlacedItem, ...] = ()


class Keeper:
    """Copies items to where they will stand; the same place again is written over.

    Parameters
    ----------
    viewer : Viewer
    budget : Budget
    when_full : "refuse" or "oldest"
    queue : deque
        What is on its way to the viewer's thread: arrivals, each of which takes memory as well,
        and removals.

    Attributes
    ----------
    removed : int
        Places that were taken off the screen to make room.
    refused : int
        Items for which there was no room.
    """

    def __init__(
        self,
        viewer: Viewer,
        budget: Budget,
        when_full: WhenMemoryFull,
        queue: deque[Any],
    ) -> None:
        self.budget = budget
        self.when_full = when_full
        self.removed = 0
        self.refused = 0
        self._viewer = viewer
        self._queue = queue
        #: The one that was written last is the last.
        self._entries: dict[Key, _Entry] = {}
        self._lock = threading.Lock()  # `clear` comes from the viewer's thread
        #: Removals that the viewer's thread has not carried out yet.
        self._pending = 0
        self._carried_out = threading.Event()

    def keep(
        self,
        placement: Placement,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        *,
        owned: bool,
        ticket: object = None,
    ) -> tuple[PlacedItem, ...]:
        """Copy an image or label image, and say where it stands.

        Parameters
        ----------
        placement : Placement
            Of its layer.
        place : tuple
            Its values.
        array : ndarray
            The item's, where it lies.
        owned : bool
            Whether it is private already, and counted.
        ticket : object
            Told in the `Removal` that takes it off the screen, if one does.

        Raises
        ------
        OutOfSpace
            There is no room for it.
        Exception
            Whatever the viewer raises.
        """
        spec = placement.spec
        planes = placement.arrange(array)
        key = (spec.kind, spec.source, spec.name, spec.axes, spec.components, place)
        shape, dtype = array.shape, array.dtype
        old = self._entries.get(key)
        fits = old is not None and old.shape == shape and old.dtype == dtype
        if owned:
            entry = _Entry(shape, dtype, ticket)
            kept = self._viewer.adopt(planes, spec)
            if owner_of(kept) is not owner_of(planes):
                self._count(kept, array.nbytes, entry)
        elif fits:
            assert old is not None
            self.make_room(0)
            kept = self._viewer.keep(planes, old.kept, spec)
            if kept is old.kept:
                entry = old
                entry.ticket = ticket
                if entry.placement is placement:
                    # The usual case of a live picture: nothing but its pixels is new.
                    self._is_last(key, entry)
                    return entry.placed
            else:
                entry = _Entry(shape, dtype, ticket)
                self._count(kept, array.nbytes, entry)
        else:
            entry = _Entry(shape, dtype, ticket)
            nbytes = array.nbytes + PLACE_NBYTES * math.prod(planes.shape[: placement.depth])
            self.make_room(nbytes)
            try:
                kept = self._viewer.keep(planes, None, spec)
            except BaseException:
                self.budget.release(nbytes)
                raise
            self._hold(kept, nbytes, entry)
        entry.kept, entry.placement = kept, placement
        entry.placed = placed = placement.cut(place, kept)
        self._note(key, placement, place, placed, entry)
        return placed

    def keep_file(
        self,
        placement: Placement,
        place: tuple[PlaceValue, ...],
        message: FileShown,
        fd: int,
        ticket: object = None,
    ) -> tuple[PlacedItem, ...]:
        """Open an image that stays in its file, and say where its planes stand.

        Parameters
        ----------
        placement, place, ticket
            As for `keep`.
        message : FileShown
            What its sender says of it.
        fd : int
            Its descriptor, which is closed in every case, sooner or later.

        Raises
        ------
        OutOfSpace
            There is no room for its places, or too many files are open.
        InvalidItem, ProtocolViolation
            It is not what its sender says.
        """
        spec, image = placement.spec, open_image(message, fd, placement.depth)
        if not spec.axes.endswith(("YX", "YXS")):
            raise InvalidItem(f"an image in a file has the axes {spec.axes!r}.")
        placement.arrange(image)
        planes = math.prod(image.shape[: placement.depth])
        self.make_room(PLACE_NBYTES * planes)
        self.budget.hold(image, PLACE_NBYTES * planes)
        placed = placement.cut(place, image if placement.depth else image.plane())
        key = (spec.kind, spec.source, spec.name, spec.axes, spec.components, place)
        entry = _Entry((), None, ticket, image)
        self._note(key, placement, place, placed, entry)
        return placed

    def read_list(
        self, placement: Placement, place: tuple[PlaceValue, ...], array: npt.NDArray[Any]
    ) -> tuple[PlacedItem, ...]:
        """Read regions of interest, points or tracks, and say where they stand.

        Raises
        ------
        OutOfSpace
            There is no room for them.
        ProtocolViolation
            The bytes are not that.
        InvalidItem
            They don't fit the layer.
        """
        spec = placement.spec
        payload: Any
        if spec.kind == "rois":
            block = array.tobytes()  # first of all: what lies in shared memory may change
            nbytes = roi_codecs.estimated_nbytes(block)
            self.make_room(nbytes)
            try:
                payload = roi_codecs.decode(block)
                placed = placement.place(place, payload)
            except BaseException:
                self.budget.release(nbytes)
                raise
            # All their coordinates are parts of one array.
            if payload:
                self.budget.hold(owner_of(payload[0].coordinates), nbytes)
            else:
                self.budget.release(nbytes)
            return placed
        columns = len(spec.axes) + (spec.kind == "tracks")
        if array.ndim != 2 or array.shape[1] != columns or array.dtype.str != "<f8":
            raise ProtocolViolation(
                f"{spec.kind} came with shape {array.shape} and dtype {array.dtype}; "
                f"(N, {columns}) float64 is right."
            )
        nbytes = 2 * array.nbytes + PLACE_NBYTES
        self.make_room(nbytes)
        try:
            placed = placement.place(place, array.copy())
        finally:
            self.budget.release(nbytes)
        for item in placed:
            self._count(item.payload, item.payload.nbytes, item.payload)
        return placed

    def take_list(
        self, placement: Placement, place: tuple[PlaceValue, ...], payload: Any
    ) -> tuple[PlacedItem, ...]:
        """Say where a list that is private already stands.

        Raises
        ------
        OutOfSpace
            There is no room for it.
        InvalidItem
            It does not fit the layer.
        """
        if placement.spec.kind == "rois":
            parts = [(each.coordinates, each.coordinates.nbytes + _ROI_NBYTES) for each in payload]
        else:
            parts = [(payload, payload.nbytes)]
        nbytes = sum(size for _, size in parts)
        self.make_room(nbytes)
        try:
            placed = placement.place(place, payload)
        except BaseException:
            self.budget.release(nbytes)
            raise
        for coordinates, size in parts:
            self.budget.hold(owner_of(coordinates), size)
        return placed

    def make_room(self, nbytes: int) -> None:
        """Reserve memory, after making room for it where that is what the user chose.

        Raises
        ------
        OutOfSpace
            There is none.
        """
        budget = self.budget
        if self.when_full == "oldest":
            if budget.used_nbytes + nbytes > budget.limit_nbytes * _HIGH:
                self._let_go(nbytes)
            if self._pending and nbytes > self._left_nbytes:
                self._carried_out.clear()
                self._viewer.poke()
                self._carried_out.wait(_PATIENCE_S)
        # Where pixels are written over nothing more is kept but what waits for the window.
        if nbytes <= self._left_nbytes and (not nbytes or budget.reserve(nbytes)):
            return
        self.refused += 1
        more = f"{nbytes} more" if nbytes else "another item"
        waiting = f", {len(self._queue)} items wait to be shown" if self._queue else ""
        raise OutOfSpace(
            f"the viewer keeps {budget.used_nbytes} bytes{waiting}, and may keep "
            f"{budget.limit_nbytes}: there is no room for {more}.",
            cure="Clear it, start it with more --memory, or with --when-full oldest, which lets "
            "go of the oldest time points.",
        )

    @property
    def _left_nbytes(self) -> int:
        return self.budget.left_nbytes - len(self._queue) * PLACE_NBYTES

    # --- from the viewer's thread -------------------------------------------------------------

    def clear(self) -> None:
        """Everything was taken off the screen."""
        with self._lock:
            self._entries.clear()

    def describe(self) -> dict[str, Any]:
        """How full it is: JSON-able."""
        return {
            "nbytes": self.budget.counted_nbytes,
            "limit_nbytes": self.budget.limit_nbytes,
            "when_full": self.when_full,
            "removed": self.removed,
            "refused": self.refused,
        }

    def carried_out(self, places: int) -> None:
        """A removal was done, of so many places."""
        with self._lock:
            self._pending -= 1
            self.removed += places
        self._carried_out.set()

    # --- inside -------------------------------------------------------------------------------

    def _count(self, kept: Any, nbytes: int, entry: object) -> None:
        """Count what is there already, also where it is too much."""
        self.budget.release(-nbytes - PLACE_NBYTES)
        self._hold(kept, nbytes + PLACE_NBYTES, entry)

    def _hold(self, kept: Any, nbytes: int, entry: object) -> None:
        owner = owner_of(kept)
        try:
            weakref.ref(owner)
        except TypeError:
            owner = entry  # it tells nobody of its end: counted until it can't be written over
        self.budget.hold(owner, nbytes)

    def _note(
        self,
        key: Key,
        placement: Placement,
        place: tuple[PlaceValue, ...],
        placed: tuple[PlacedItem, ...],
        entry: _Entry,
    ) -> None:
        if self.when_full == "oldest":
            entry.spots = tuple(Spot(each.key, each.components, each.coords) for each in placed)
            entry.time = _time_of(placement.spec, place)
        self._is_last(key, entry)

    def _is_last(self, key: Key, entry: _Entry) -> None:
        """It was written last of all."""
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = entry

    def _let_go(self, nbytes: int) -> None:
        """Choose what goes: whole time points, the oldest first; what has no time after those."""
        budget = self.budget
        wanted = budget.used_nbytes + nbytes - int(budget.limit_nbytes * _LOW)
        if self._pending:
            return  # it is on its way already
        spots: list[Spot] = []
        tickets: list[object] = []
        times: set[tuple[str, PlaceValue]] = set()
        with self._lock:
            order = sorted(self._entries.items(), key=lambda each: each[1].time is None)
            for key, entry in order:
                if wanted <= 0 and (entry.time is None or entry.time not in times):
                    continue
                if entry.time is not None:
                    times.add(entry.time)
                del self._entries[key]
                spots += entry.spots
                tickets.append(entry.ticket)
                wanted -= getattr(entry.kept, "nbytes", 0)
            if not spots:
                return
            self._pending += 1
        self._queue.append(Removal(tuple(spots), frozenset(times), tuple(tickets)))


def _time_of(spec: LayerSpec, place: tuple[PlaceValue, ...]) -> tuple[str, PlaceValue] | None:
    """The time point that an item belongs to as a whole, if it does."""
    if spec.kind not in RASTER_KINDS or "time" not in spec.components:
        return None
    return spec.source, place[spec.components.index("time")]
