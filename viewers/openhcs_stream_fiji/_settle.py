"""What a person did to ROIs and points in ImageJ: compared, assigned to layers, and reported."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.viewer import Change
from openhcs_stream_fiji._belonging import Belonging
from openhcs_stream_fiji._changes import Comparison, Positions, aligned, close, points_of
from openhcs_stream_fiji._entries import SPECIAL
from openhcs_stream_fiji._reading import NativeReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.rois import Roi
    from openhcs_stream.viewer import LayerKey
    from openhcs_stream_fiji._annotations import Annotations, Shown
    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._entries import Entry
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._manager import Manager

    PlaceValue = int | str

__all__ = ["Settler"]

logger = logging.getLogger(__name__)


@dataclass
class _Found:
    """What has become of one entry; indices are of what it lists."""

    changed: dict[int, Any] = field(default_factory=dict)
    #: Those of `changed` that are other objects than before.
    replaced: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)


@dataclass
class _Added:
    """A ROI or a point that joins an entry."""

    item: Any
    native: Any
    name: str


@dataclass
class _Result:
    """What one entry is to be."""

    items: list[Any]
    origins: list[int | None]
    names: list[str]
    #: Objects that take the place of others, by origin.
    natives: dict[int, Any] = field(default_factory=dict)
    added: list[_Added] = field(default_factory=list)
    #: Whether ImageJ's objects must be made anew.
    renew: bool = False


class Settler:
    """Takes over into the layers what ImageJ has otherwise; belongs to AWT's event thread.

    Parameters
    ----------
    java : Java
    bulk : Bulk
    manager : Manager
    annotations : Annotations
    images : mapping of LayerKey to Hyperstack
    report : callable
        Takes each `Change`.

    Attributes
    ----------
    belonging : Belonging
    """

    def __init__(
        self,
        java: Java,
        bulk: Bulk,
        manager: Manager,
        annotations: Annotations,
        images: Mapping[LayerKey, Hyperstack],
        report: Callable[[Change], None],
    ) -> None:
        self._java = java
        self._bulk = bulk
        self._manager = manager
        self._annotations = annotations
        self._report = report
        self._reader = NativeReader(java, bulk)
        self.belonging = Belonging(java, annotations, images)

    def settle(self, touched: Mapping[Entry, Sequence[int]], *, listed_otherwise: bool) -> None:
        """Find out what was done, report it, and draw it.

        Parameters
        ----------
        touched : mapping of Entry to indices
            What is not as it was, of what each lists.
        listed_otherwise : bool
            Whether the list's ROIs, or their order, are others than before.
        """
        entries = list(self._annotations.entries)
        found = {
            entry: _Found({index: entry.listed[index] for index in indices})
            for entry, indices in touched.items()
            if entry in entries
        }
        new: list[tuple[Any, str]] = []
        if listed_otherwise and self._manager.is_open:
            new = self._compare(entries, found)
        results: dict[Entry, _Result] = {}
        joining: dict[Entry, list[_Added]] = {}
        for entry, what in found.items():
            match entry.layer.kind:
                case "rois":
                    results[entry] = self._of_rois(entry, what, joining)
                case "points":
                    results[entry] = self._of_points(entry, what, joining)
                case _:
                    logger.info("tracks can't be edited in ImageJ: %s stay", entry.layer.title)
                    results[entry] = _unchanged(entry)
                    results[entry].renew = True
        self._assign(new, joining)
        for entry, added in joining.items():
            result = results.setdefault(entry, _unchanged(entry))
            result.added += added
            result.renew |= entry.layer.kind == "points"
        selected = [self._selected(shown) for shown in self._annotations.layers.values()]
        for entry, result in results.items():
            self._take_over(entry, result)
        self._show(results)
        for shown in filter(None, selected):
            self._select_again(shown)

    # --- the list -------------------------------------------------------------------------------

    def _compare(
        self, entries: Sequence[Entry], found: dict[Entry, _Found]
    ) -> list[tuple[Any, str]]:
        """Find what was removed from the list or replaced in it; gives what is new, and labels."""
        manager, bulk = self._manager, self._bulk
        natives = manager.natives()
        own = bulk.places(bulk.array(self._annotations.own), natives)
        self._annotations.own = [natives[index] for index in np.flatnonzero(own >= 0).tolist()]
        lengths = [len(entry.listed) for entry in entries]
        starts = np.cumsum([0, *lengths])
        hits = bulk.places(bulk.join([entry.listed for entry in entries]), natives)
        here = np.zeros(sum(lengths), np.bool_)
        here[hits[hits >= 0]] = True
        gone: dict[str, list[tuple[Entry, int]]] = {}
        for at in np.flatnonzero(~here).tolist():
            number = int(np.searchsorted(starts, at, "right")) - 1
            entry, index = entries[number], at - int(starts[number])
            gone.setdefault(entry.label(index), []).append((entry, index))
        new = []
        for position in np.flatnonzero((hits < 0) & (own < 0)).tolist():
            native, label = natives[position], manager.label(position)
            if gone.get(label):  # ImageJ's Update puts another object in the place of the old
                entry, index = gone[label].pop(0)
                each = found.setdefault(entry, _Found())
                each.changed[index] = native
                each.replaced.add(index)
            else:
                new.append((native, label))
        for lost in gone.values():
            for entry, index in lost:
                each = found.setdefault(entry, _Found())
                each.removed.add(index)
                each.changed.pop(index, None)
        return new

    # --- ROIs -----------------------------------------------------------------------------------

    def _of_rois(self, entry: Entry, what: _Found, joining: dict[Entry, list[_Added]]) -> _Result:
        result = _unchanged(entry)
        count = len(entry.natives)
        gone = {index % count for index in what.removed}
        # Of several copies that were changed, the last one counts.
        changed = {index % count: index for index in sorted(what.changed)}
        items = sorted(changed.keys() - gone)
        if items:
            now = self._bulk.array([what.changed[changed[item]] for item in items])
            deep = [
                changed[item] in what.replaced or entry.items[item].kind in SPECIAL
                for item in items
            ]
            made = Comparison(self._java, self._bulk, self._reader).changed(
                [entry.items[item] for item in items],
                entry.maker.make(
                    [entry.items[item] for item in items], [entry.names[item] for item in items]
                ),
                now,
                np.array(deep),
            )
            places = Positions(self._bulk, self._annotations.layers[entry.layer.key].image)
            usual = [places.plain(position) for position in entry.positions]
            for item, roi, position in zip(items, made, places.of(now), strict=True):
                native, copy = what.changed[changed[item]], changed[item] // count
                target = entry
                if any(roi.position) or not usual or position != usual[copy]:
                    roi, target = self._placed(entry, copy, roi, position, native)
                name = roi.name or entry.names[item]
                if target is not entry:
                    gone.add(item)
                    joining.setdefault(target, []).append(_Added(roi, native, name))
                    continue
                result.items[item], result.names[item] = roi, name
                result.natives[item] = native
        if gone:
            for column in (result.items, result.origins, result.names):
                column[:] = [each for at, each in enumerate(column) if at not in gone]
        result.renew = len(entry.positions) > 1
        return result

    def _placed(
        self, entry: Entry, copy: int, roi: Roi, position: Position, native: Any
    ) -> tuple[Roi, Entry]:
        """A ROI that stands at `position`, with that, and the entry where it belongs."""
        shown = self._annotations.layers[entry.layer.key]
        image = shown.image
        if image is not None and int(native.getImageID()) not in (0, int(image.imp.getID())):
            return roi, entry  # a position on another image says nothing
        positions = Positions(self._bulk, image)
        given = entry.positions[copy] if copy < len(entry.positions) else (0, 0, 0)
        before = [ours or theirs for ours, theirs in zip(given, roi.position, strict=True)]
        if position == positions.plain(before):
            return roi, entry
        given = positions.plain(given)
        target = entry
        if any(ours and now and now != ours for ours, now in zip(given, position, strict=True)):
            target = self.belonging.entry_at(shown, position)
        own = _besides(given, position)
        if own != roi.position:
            roi = roi.replace(position=own, flat_position=False)
        return roi, target

    # --- points ---------------------------------------------------------------------------------

    def _of_points(self, entry: Entry, what: _Found, joining: dict[Entry, list[_Added]]) -> _Result:
        if not what.changed:  # all are gone
            return _Result([], [], [], renew=True)
        native = next(iter(what.changed.values()))
        here = []
        for point, target in self._located(native, entry):
            if target is entry:
                here.append(point)
            else:
                joining.setdefault(target, []).append(_Added(point, native, ""))
        base = np.asarray(entry.items, np.float64)
        now = np.array(here, np.float64).reshape(-1, 2)
        origins = aligned(base, now)
        for index, origin in enumerate(origins):
            if origin is not None and close(base[origin][None], now[index])[0]:
                now[index] = base[origin]
        alone = len(entry.positions) == 1 and len(here) == int(native.getFloatPolygon().npoints)
        return _Result(list(now), origins, [], {0: native}, renew=not (alone and here))

    def _located(self, native: Any, home: Entry) -> Iterator[tuple[npt.NDArray[np.float64], Entry]]:
        """Each point of a multi-point, and the entry to which its slice belongs."""
        shown = self._annotations.layers[home.layer.key]
        positions = Positions(self._bulk, shown.image)
        rows, slices = points_of(native)
        targets: dict[int, Entry] = {0: home}
        for row, number in zip(rows, slices.tolist(), strict=True):
            if number not in targets:
                targets[number] = self.belonging.entry_at(shown, positions.of_slice(number))
            yield row, targets[number]

    # --- what is new ----------------------------------------------------------------------------

    def _assign(self, new: Sequence[tuple[Any, str]], joining: dict[Entry, list[_Added]]) -> None:
        """Find the layer and the place for each ROI that a person added."""
        by_layer: dict[LayerKey, list[tuple[Any, str]]] = {}
        for native, label in new:
            shown = self.belonging.layer_of(native)
            if shown is None:
                self._leave(native)
            else:
                by_layer.setdefault(shown.layer.key, []).append((native, label))
        for key, of_layer in by_layer.items():
            shown = self._annotations.layers[key]
            natives = self._bulk.array([native for native, _ in of_layer])
            positions = Positions(self._bulk, shown.image).of(natives)
            entries = {
                each: self.belonging.entry_at(shown, each) for each in dict.fromkeys(positions)
            }
            if shown.layer.kind == "points":
                for native, position in zip(natives, positions, strict=True):
                    for point, target in self._located(native, entries[position]):
                        joining.setdefault(target, []).append(_Added(point, native, ""))
                continue
            rois = self._reader.read(natives)
            for (native, label), roi, position in zip(of_layer, rois, positions, strict=True):
                if roi is None:
                    self._leave(native)
                    continue
                entry = entries[position]
                given = entry.positions[0] if entry.positions else (0, 0, 0)
                named = roi.replace(
                    name=roi.name or label,
                    position=_besides(given, position),
                    properties=entry.maker.own_properties(roi.properties),
                )
                joining.setdefault(entry, []).append(_Added(named, native, named.name))

    def _leave(self, native: Any) -> None:
        """It stays in the list for something else."""
        self._annotations.own.append(native)

    # --- taking over ----------------------------------------------------------------------------

    def _take_over(self, entry: Entry, result: _Result) -> None:
        """Report one entry's change, and let it have what ImageJ has."""
        base = entry.items
        items: Any = result.items + [added.item for added in result.added]
        origins = result.origins + [None] * len(result.added)
        if entry.layer.kind == "points":
            items = np.array(items, np.float64).reshape(-1, 2)
            same = np.array_equal(items, base)
        else:
            same = len(items) == len(base) and all(
                now is was for now, was in zip(items, base, strict=True)
            )
        if not same:
            self._report(Change(entry.layer, entry.coords, base, items, origins))
        elif entry.layer.kind == "points":
            items = base
        if result.renew and entry.layer.kind != "rois":
            entry.renew(items)
        elif entry.layer.kind == "points":
            entry.replace(items, self._bulk.array([result.natives[0]]), entry.names)
        else:
            kept = [origin for origin in result.origins if origin is not None]
            natives = self._bulk.take(entry.natives, kept)
            for at, origin in enumerate(kept):
                if origin in result.natives:
                    natives[at] = result.natives[origin]
            new = self._bulk.array([added.native for added in result.added])
            names = result.names + [added.name for added in result.added]
            entry.replace(items, self._bulk.join([natives, new]), names)
            if result.added and entry.positions:
                of_new = [added.item for added in result.added]
                self._annotations.set_position(
                    entry, new, of_new, entry.positions[0], was_placed=False
                )
            if result.added:
                self._bulk.name(new, [added.name for added in result.added])
                for key, value in entry.maker.origin().items():
                    self._bulk.each(new, "setProperty", key, value)

    def _show(self, results: Mapping[Entry, _Result]) -> None:
        """Draw, and list where ImageJ has not done so, what is otherwise now."""
        annotations = self._annotations
        images: list[Hyperstack | None] = []
        for entry, result in results.items():
            shown = annotations.layers[entry.layer.key]
            images.append(shown.image)
            if result.renew:
                entry.positions = []
                annotations.place(shown, entry)
            else:
                entry.keep()
        annotations.draw(images)
        if any(result.renew for result in results.values()) and self._manager.is_open:
            annotations.list_anew()

    def _selected(self, shown: Shown) -> Shown | None:
        """A layer of points, where some of them are selected on their image."""
        image = shown.image
        if shown.layer.kind != "points" or image is None or not image.is_open:
            return None
        native = image.imp.getRoi()
        if native is None:
            return None
        return shown if any(e.index(native) >= 0 for e in shown.entries.values()) else None

    def _select_again(self, shown: Shown) -> None:
        """The person goes on with what is in view, where their points are other objects now."""
        image = shown.image
        if image is None or self._selected(shown) is not None:
            return
        entry = shown.entries.get(self.belonging.coords_at(shown, (0, 0, 0)))
        if entry is not None and len(entry.listed):
            image.imp.setRoi(entry.listed[0])
        else:
            image.imp.deleteRoi()


def _unchanged(entry: Entry) -> _Result:
    items = list(entry.items)
    return _Result(items, list(range(len(items))), list(entry.names))


def _besides(given: Position, position: Position) -> Position:
    """A ROI's own position: where its place says nothing."""
    c, z, t = (0 if ours else now for ours, now in zip(given, position, strict=True))
    return c, z, t
