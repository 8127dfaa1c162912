"""What a person changed in the viewer, kept until a worker has dealt with it.

A viewer says what a place of a layer holds now and what each entry of it was before; here that
becomes records (added, changed, renamed, removed, painted), the scene is brought up to date, and
each record waits for a worker that asked for edits. A worker that died before it was done with
one loses nothing: the next that asks gets it.
"""

from __future__ import annotations

import dataclasses
import getpass
import itertools
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream import rois as roi_codecs
from openhcs_stream.messages import EditRecord, PlaceValue
from openhcs_stream.rois import Roi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import EditAction
    from openhcs_stream.viewer._scene import Coords, SceneLayer

__all__ = ["MAX_WAITING_NBYTES", "Change", "EditBook", "Painting", "Wanted", "place_of"]

logger = logging.getLogger(__name__)

#: Edits that nobody has taken are kept up to this size; the layers themselves keep their result.
MAX_WAITING_NBYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """A list of ROIs or points at one place, after a person changed it.

    Attributes
    ----------
    layer : SceneLayer
    coords : Coords
        The place in the layer.
    base : list of Roi, or (N, D) float64
        What the viewer showed before, as it was in ``layer.items[coords]``.
    items : list of Roi, or (M, D) float64
        What is there now.
    origins : sequence of int or None
        For each of `items` where in `base` it was; None: a person added it. An entry that is not
        touched is the very object of `base`.
    """

    layer: SceneLayer
    coords: Coords
    base: Any
    items: Any
    origins: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Painting:
    """A part of a label image's plane, after a person painted in it; the plane holds it already.

    Attributes
    ----------
    layer : SceneLayer
    coords : Coords
        Of the plane.
    top, left : int
        Of the region, pixels.
    before, after : (height, width) arrays of the plane's dtype
    """

    layer: SceneLayer
    coords: Coords
    top: int
    left: int
    before: npt.NDArray[Any]
    after: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which edits a worker asked for: layers by name (none named: all), at a part of a place."""

    names: frozenset[str] = frozenset()
    place: Mapping[str, PlaceValue] | None = None

    def matches(self, edit: EditRecord) -> bool:
        """Whether an edit is one of them."""
        if self.names and edit.name not in self.names:
            return False
        return all(edit.place.get(key) == value for key, value in (self.place or {}).items())


class EditBook:
    """All edits of one viewer that nobody has dealt with. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, EditRecord] = {}
        self._nbytes = 0
        self._who = _user()

    def take(self, change: Change | Painting) -> list[EditRecord]:
        """Note what a person did, and bring the scene up to date. On the viewer's own thread."""
        if isinstance(change, Painting):
            made = [self._painted(change)]
        else:
            made = self._changed(change)
            if made and change.layer.items.get(change.coords) is change.base:
                change.layer.items[change.coords] = change.items
        with self._lock:
            for record in made:
                self._waiting[record.number] = record
                self._nbytes += _nbytes(record)
            while self._nbytes > MAX_WAITING_NBYTES and len(self._waiting) > 1:
                oldest = next(iter(self._waiting))
                self._forget(oldest)
                logger.warning(
                    "edit %d is forgotten: more than %d bytes of edits wait for a worker to take "
                    "them; what it changed is still on the screen",
                    oldest,
                    MAX_WAITING_NBYTES,
                )
        return made

    def waiting(self, wanted: Wanted | None = None) -> list[EditRecord]:
        """What nobody has dealt with, oldest first."""
        with self._lock:
            records = list(self._waiting.values())
        return [each for each in records if wanted is None or wanted.matches(each)]

    def taken(self, numbers: Sequence[int]) -> None:
        """A worker has dealt with these; unknown numbers are ignored."""
        with self._lock:
            for number in numbers:
                self._forget(number)

    def __len__(self) -> int:
        return len(self._waiting)

    def _forget(self, number: int) -> None:
        record = self._waiting.pop(number, None)
        if record is not None:
            self._nbytes -= _nbytes(record)

    def _record(
        self, layer: SceneLayer, coords: Coords, action: EditAction, **what: Any
    ) -> EditRecord:
        return EditRecord(
            number=next(self._numbers),
            time_s=time.time(),
            who=self._who,
            action=action,
            kind=layer.kind,
            name=layer.key.name,
            source=layer.key.source,
            place=place_of(layer, coords),
            **what,
        )

    def _painted(self, change: Painting) -> EditRecord:
        before, after = np.ascontiguousarray(change.before), np.ascontiguousarray(change.after)
        return self._record(
            change.layer,
            change.coords,
            "painted",
            before=before.tobytes(),
            after=after.tobytes(),
            region=(change.top, change.left, *after.shape[:2]),
            dtype=after.dtype.newbyteorder("<").str,
        )

    def _changed(self, change: Change) -> list[EditRecord]:
        """What happened, as far as what was and what is tell it; in an order that can be redone."""
        base, items = change.base, change.items
        kept = {origin: at for at, origin in enumerate(change.origins) if origin is not None}
        removed = [at for at in range(len(base)) if at not in kept]
        added = [at for at, origin in enumerate(change.origins) if origin is None]
        renamed: list[int] = []
        changed: list[int] = []
        for origin, at in sorted(kept.items()):
            if not _same(base[origin], items[at]):
                (renamed if _is_renamed(base[origin], items[at]) else changed).append(origin)
        made = []
        groups: tuple[tuple[EditAction, list[int]], ...] = (
            ("changed", changed),
            ("renamed", renamed),
        )
        for action, origins in groups:
            if origins:
                now = [items[kept[origin]] for origin in origins]
                made.append(self._list(change, action, origins, [base[o] for o in origins], now))
        if removed:
            made.append(self._list(change, "removed", removed, [base[at] for at in removed], []))
        if added:
            made.append(self._list(change, "added", added, [], [items[at] for at in added]))
        return made

    def _list(
        self, change: Change, action: EditAction, indices: list[int], before: Any, after: Any
    ) -> EditRecord:
        what: dict[str, Any]
        if change.layer.kind == "rois":
            what = {"before": roi_codecs.encode(before), "after": roi_codecs.encode(after)}
        else:
            columns = int(np.asarray(change.items if len(change.items) else change.base).shape[1])
            what = {"before": _table(before), "after": _table(after), "columns": columns}
        return self._record(change.layer, change.coords, action, indices=tuple(indices), **what)


def place_of(layer: SceneLayer, coords: Coords) -> dict[str, PlaceValue]:
    """Where something is, with the values by which the layer was split."""
    return {**dict(layer.key.split), **dict(zip(layer.components, coords, strict=True))}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, np.ndarray):
        return bool(np.array_equal(before, after, equal_nan=True))
    return before is after or bool(before == after)


def _is_renamed(before: Any, after: Any) -> bool:
    return isinstance(before, Roi) and dataclasses.replace(before, name=after.name) == after


def _table(rows: Sequence[npt.NDArray[Any]]) -> bytes:
    return np.asarray(rows, dtype="<f8").tobytes()


def _nbytes(record: EditRecord) -> int:
    return len(record.before) + len(record.after) + 256


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
