"""Where ROIs, points and tracks are seen: on the image they belong to, and in the ROI Manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream_fiji._entries import Entry
from openhcs_stream_fiji._rois import Maker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.viewer import Coords, LayerKey, SceneLayer
    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._manager import Manager

__all__ = ["Annotations", "Shown"]


@dataclass(eq=False)
class Shown:
    """One layer of ROIs, points or tracks, and the image that it belongs to."""

    layer: SceneLayer
    entries: dict[Coords, Entry] = field(default_factory=dict)
    image: Hyperstack | None = None
    #: A person drew it on this very image.
    is_drawn: bool = False


class Annotations:
    """All ROIs, points and tracks; belongs to AWT's event thread, where there is one.

    Parameters
    ----------
    java : Java
    bulk : Bulk
    images : mapping of LayerKey to Hyperstack
        All that there are, as they come and go.
    manager : Manager or None
        Where ROIs are listed; None: without windows, where all are overlays of their images.

    Attributes
    ----------
    layers : dict of LayerKey to Shown
    own : list of `ij.gui.Roi`
        What a person has in the list for something else.
    before : callable
        Called with entries that are about to be replaced or moved, and before the list is written.
    after : callable
        Called when the list was written.
    """

    def __init__(
        self,
        java: Java,
        bulk: Bulk,
        images: Mapping[LayerKey, Hyperstack],
        manager: Manager | None,
    ) -> None:
        self._java = java
        self._bulk = bulk
        self._images = images
        self._manager = manager
        self._overlays: dict[int, Any] = {}  #: by the image's ID
        self._style: Any = None  #: an overlay with the person's choice of labels
        self.layers: dict[LayerKey, Shown] = {}
        self.own: list[Any] = []
        self.before: Callable[[Sequence[Entry]], None] = _nothing
        self.after: Callable[[], None] = _nothing

    @property
    def entries(self) -> Iterator[Entry]:
        """All of all layers."""
        return (entry for shown in self.layers.values() for entry in shown.entries.values())

    def update(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        """Take in what arrived, and show it on its image and in the ROI Manager."""
        shown = self.layers.get(layer.key)
        if shown is not None and shown.layer is not layer:
            self.remove(shown.layer)  # one that a person began has the same name
            shown = None
        if shown is None:
            shown = self.layers[layer.key] = Shown(layer)
        image = self._find_image(shown)
        places = list(dict.fromkeys(arrived))
        moves = image is not shown.image and bool(shown.entries)
        replaced = [shown.entries[coords] for coords in places if coords in shown.entries]
        self.before([*shown.entries.values()] if moves else replaced)
        before, shown.image = shown.image, image
        fresh: list[Entry] = []
        for coords in places:
            shown.entries.pop(coords, None)
            entry = shown.entries[coords] = self.make(layer, coords)
            fresh.append(entry)
            self.place(shown, entry)
        if moves or any(len(entry.natives) for entry in replaced):
            for entry in shown.entries.values():
                self.place(shown, entry)
            self.draw([before, image])
            self.list_anew()
        else:
            self.draw([image], fresh)
            self._list(fresh)

    def make(self, layer: SceneLayer, coords: Coords) -> Entry:
        """ImageJ's objects of what a layer has at a place; neither drawn nor listed yet."""
        image = self.layers[layer.key].image
        facts = {
            "source": layer.key.source,
            "image": image.layer.title if image else "",
            "images_dir": layer.spec.images_dir,
            **dict(layer.key.split),
            **dict(zip(layer.components, coords, strict=True)),
            **layer.infos.get(coords, {}),
        }
        return Entry(self._bulk, Maker(self._java, self._bulk, layer, facts), coords)

    def add_layer(self, layer: SceneLayer, image: Hyperstack) -> Shown:
        """A layer that a person began, on an image."""
        shown = self.layers[layer.key] = Shown(layer, image=image, is_drawn=True)
        return shown

    def add_entry(self, shown: Shown, coords: Coords) -> Entry:
        """A place where a layer has nothing yet."""
        layer = shown.layer
        if coords not in layer.items:
            layer.items[coords] = np.empty((0, 2)) if layer.kind == "points" else []
        entry = shown.entries[coords] = self.make(layer, coords)
        self.place(shown, entry)
        return entry

    def remove(self, layer: SceneLayer) -> None:
        """Take a layer off its image and out of the ROI Manager."""
        shown = self.layers.get(layer.key)
        if shown is not None:
            self.before(list(shown.entries.values()))
            self.layers.pop(layer.key, None)
            self.draw([shown.image])
            self.list_anew()
            manager = self._manager
            if manager is not None and not self.layers and not len(manager.natives()):
                manager.close()
                self.after()

    def image_changed(self, image: Hyperstack) -> None:
        """An image was opened, or has new places: what belongs to it may be elsewhere now."""
        redraw: list[Hyperstack | None] = []
        moved = []
        for shown in self.layers.values():
            found = self._find_image(shown)
            if found is not shown.image:
                redraw += [shown.image, found]
                shown.image = found
            elif found is not image:
                continue
            moved += [(shown, e) for e in shown.entries.values() if self._moves(shown, e)]
        self.before([entry for _, entry in moved])
        for shown, entry in moved:
            self.place(shown, entry)
            redraw.append(shown.image)
        if redraw:
            self.draw(redraw)
            self.list_anew()
        elif image.imp.getID() not in self._overlays and any(
            shown.image is image for shown in self.layers.values()
        ):
            self.draw([image])  # it was closed, and is open again

    def image_removed(self, image: Hyperstack) -> None:
        """An image is gone; what belonged to it may belong to another."""
        for shown in list(self.layers.values()):
            if shown.image is image:
                self.before(list(shown.entries.values()))
                shown.image = self._find_image(shown)
                for entry in shown.entries.values():
                    self.place(shown, entry)
                self.draw([shown.image])
                self.list_anew()

    def natives(self, key: LayerKey) -> list[Any]:
        """ImageJ's ROIs of a layer, in order."""
        shown = self.layers.get(key)
        if shown is None:
            return []
        return [native for entry in shown.entries.values() for native in entry.natives]

    # --- where ----------------------------------------------------------------------------------

    def _find_image(self, shown: Shown) -> Hyperstack | None:
        """The image that a layer belongs to: by folder and source, split values and components."""
        if shown.is_drawn and shown.image is not None and shown.image.is_open:
            return shown.image
        layer = shown.layer
        own = dict(layer.key.split) | dict.fromkeys(layer.components)
        folder = layer.spec.images_dir
        best: tuple[tuple[bool, bool, bool, int, int], Hyperstack] | None = None
        for number, image in enumerate(self._images.values()):
            other = image.layer
            if not image.is_open or any(
                own.get(component) not in (None, value) for component, value in other.key.split
            ):
                continue
            same_folder = bool(folder) and image.is_from(folder)
            same_source = other.key.source == layer.key.source
            if not (same_folder or same_source):
                continue
            shared = len(set(layer.components) & set(other.components))
            rank = (same_folder, same_source, other.kind == "image", shared, -number)
            if best is None or rank > best[0]:
                best = (rank, image)
        return best[1] if best else None

    def _positions(self, shown: Shown, entry: Entry) -> list[Position]:
        image = shown.image
        if image is None:
            return [(0, 0, 0)]
        at = dict(shown.layer.key.split)
        at |= zip(shown.layer.components, entry.coords, strict=True)
        shape = image.extent.shape
        return [_as_imagej(position, shape) for position in image.extent.positions(at)]

    def _moves(self, shown: Shown, entry: Entry) -> bool:
        return self._positions(shown, entry) != entry.positions

    def place(self, shown: Shown, entry: Entry) -> None:
        """Put an entry where it belongs on its image, where that is elsewhere than before."""
        positions = self._positions(shown, entry)
        if positions == entry.positions:
            return
        was_placed = bool(entry.positions)
        entry.positions = positions
        copies = [
            entry.natives if number == 0 else self._bulk.clones(entry.natives)
            for number in range(len(positions))
        ]
        for natives, position in zip(copies, positions, strict=True):
            self.set_position(entry, natives, entry.items, position, was_placed=was_placed)
        entry.shown = copies[0] if len(copies) == 1 else self._bulk.join(copies)
        entry.keep()

    def set_position(
        self, entry: Entry, natives: Any, items: Any, position: Position, *, was_placed: bool
    ) -> None:
        """Write positions; an item's own counts where its place says nothing."""
        if any(position):
            self._bulk.each(natives, "setPosition", *position)
        elif was_placed:
            self._bulk.each(natives, "setPosition", 0)
        if entry.layer.kind != "rois":
            return
        for index, roi in enumerate(items):
            if any(roi.position):
                native = natives[index]
                c, z, t = (
                    ours or theirs for ours, theirs in zip(position, roi.position, strict=True)
                )
                native.setPosition(c, z, t)

    # --- on the images --------------------------------------------------------------------------

    def draw(
        self, images: Iterable[Hyperstack | None], added: Sequence[Entry] | None = None
    ) -> None:
        """Draw what belongs to these images anew; or, with `added`, only that in addition."""
        for image in dict.fromkeys(images):
            if image is None or not image.is_open:
                continue
            number = image.imp.getID()
            overlay = self._overlays.get(number)
            if overlay is None or added is None:
                overlay = self._overlays[number] = self._blank()
                entries: Iterable[Entry] = self._all_on(image)
            else:
                entries = added
            for entry in entries:
                self._bulk.feed(entry.shown, overlay, "add")
            if self._manager is None:
                image.imp.setOverlay(overlay)
            elif self._manager.shows_all:
                self._put(image, overlay)

    def _blank(self) -> Any:
        if self._style is not None:
            return self._style.create()
        overlay = self._java.Overlay()
        overlay.drawLabels(False)
        return overlay

    def _put(self, image: Hyperstack, overlay: Any) -> None:
        image.imp.getCanvas().setShowAllList(overlay)
        image.imp.draw()

    def put_back(self) -> None:
        """Give each image its own ROIs again where ImageJ has drawn all of them, or none."""
        manager = self._manager
        if manager is None or not manager.is_open or not manager.shows_all:
            return
        styled = False
        for image in self._images.values():
            if not image.is_open:
                continue
            overlay = self._overlays.get(image.imp.getID())
            there = image.imp.getCanvas().getShowAllList()
            if overlay is None or overlay.equals(there):
                continue
            if there is not None:  # ImageJ's own, as the person wants it to look
                self._style = there.create()
                styled = True
        if styled:
            self.draw(self._images.values())
            return
        for image in self._images.values():
            overlay = self._overlays.get(image.imp.getID()) if image.is_open else None
            if overlay is not None and image.imp.getCanvas().getShowAllList() is None:
                self._put(image, overlay)

    def _all_on(self, image: Hyperstack) -> list[Entry]:
        return [
            entry
            for shown in self.layers.values()
            if shown.image is image
            for entry in shown.entries.values()
        ]

    # --- in the ROI Manager -----------------------------------------------------------------------

    def _list(self, entries: Sequence[Entry]) -> None:
        """Add to the end of the list."""
        natives = [entry.listed for entry in entries if len(entry.listed)]
        if self._manager is None or not natives:
            return
        if not self._manager.is_open:
            self.list_anew()
            return
        self.before(())
        labels = [label for entry in entries for label in entry.labels]
        self._manager.append(self._bulk.join(natives), labels)
        self.after()

    def list_anew(self) -> None:
        """Write the whole list: what is there already keeps its order."""
        manager = self._manager
        if manager is None or (not manager.is_open and not any(True for _ in self.entries)):
            return
        self.before(())
        manager.open()
        listed = manager.natives()
        there = self._bulk.places(listed, self._bulk.array(self.own))
        own = sorted(there[there >= 0].tolist())
        arrays = [entry.listed for entry in self.entries]
        natives = self._bulk.join([*arrays, self._bulk.take(listed, own)])
        labels = [label for entry in self.entries for label in entry.labels]
        if own:
            theirs = manager.labels()
            labels += [theirs[index] for index in own]
        order = _order(self._bulk.places(listed, natives))
        if order is not None:
            natives = self._bulk.array([natives[int(index)] for index in order])
            labels = [labels[index] for index in order]
        manager.write(natives, labels)
        self.after()
        self.put_back()


def _order(places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp] | None:
    """How to sort a list so that what was at `places` keeps its order; None: as it is."""
    places = np.where(places < 0, np.iinfo(np.intp).max, places)  # what is new comes last
    order = np.argsort(places, kind="stable")
    return None if (order == np.arange(len(order))).all() else order


def _as_imagej(position: Position, shape: Position) -> Position:
    """In a stack with one slider ImageJ heeds a position only if all three numbers are there."""
    c, z, t = position
    channels, slices, frames = shape
    if channels == 1 and (slices == 1) != (frames == 1) and (z if frames == 1 else t):
        return (c or 1, z or 1, t or 1)
    return position


def _nothing(*_: object) -> None:
    """Without a watch nobody wants to know."""
