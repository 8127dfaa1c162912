"""Where ROIs, points and tracks are seen: on the image they belong to, and in the ROI Manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openhcs_stream_fiji._rois import MARK, to_java

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.viewer import Coords, LayerKey, SceneLayer
    from openhcs_stream_fiji._hyperstack import Hyperstack, Position
    from openhcs_stream_fiji._java import Java

__all__ = ["Annotations"]


@dataclass(eq=False)
class _Entry:
    """What one layer has at one place."""

    natives: list[Any]
    #: Where on its image it is: several where the image tells places apart that this does not.
    positions: list[Position] = field(default_factory=list)
    #: What is drawn: `natives`, and copies where there are several positions. Empty where its
    #: image has no such place yet.
    shown: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _Shown:
    """One layer of ROIs, points or tracks."""

    layer: SceneLayer
    entries: dict[Coords, _Entry] = field(default_factory=dict)
    image: Hyperstack | None = None


class Annotations:
    """All ROIs, points and tracks; belongs to AWT's event thread, where there is one.

    Parameters
    ----------
    java : Java
    has_windows : bool
        Whether there is a ROI Manager; without, all are overlays of their images.
    """

    def __init__(self, java: Java, *, has_windows: bool) -> None:
        self._java = java
        self._has_windows = has_windows
        self._shown: dict[LayerKey, _Shown] = {}
        self._overlays: dict[int, Any] = {}  #: by the image's ID
        self._listed = 0  #: of ours in the ROI Manager
        # There is another `add` that a bare None could be meant for.
        self._no_image = java.jpype.JObject(None, java.ImagePlus)

    def update(
        self, layer: SceneLayer, arrived: Sequence[Coords], images: Iterable[Hyperstack]
    ) -> None:
        """Take in what arrived, and show it on its image and in the ROI Manager."""
        shown = self._shown.get(layer.key)
        if shown is None:
            shown = self._shown[layer.key] = _Shown(layer)
        image = self._find_image(layer, images)
        anew = image is not shown.image and bool(shown.entries)
        before, shown.image = shown.image, image
        fresh: list[_Entry] = []
        for coords in dict.fromkeys(arrived):
            replaced = shown.entries.pop(coords, None)
            anew = anew or (replaced is not None and bool(replaced.natives))
            at = dict(zip(layer.components, coords, strict=True))
            entry = _Entry(
                to_java(
                    self._java,
                    layer,
                    layer.items[coords],
                    {
                        "source": layer.key.source,
                        "image": image.layer.title if image else "",
                        "images_dir": layer.spec.images_dir,
                        **dict(layer.key.split),
                        **at,
                        **layer.infos.get(coords, {}),
                    },
                )
            )
            shown.entries[coords] = entry
            fresh.append(entry)
            self._position(shown, coords, entry)
        if anew:
            for coords, entry in shown.entries.items():
                self._position(shown, coords, entry)
            self._draw([before, image])
            self._list_anew()
        else:
            added = [native for entry in fresh for native in entry.shown]
            self._draw([image], added)
            self._list(fresh)

    def remove(self, layer: SceneLayer) -> None:
        """Take a layer off its image and out of the ROI Manager."""
        shown = self._shown.pop(layer.key, None)
        if shown is not None:
            self._draw([shown.image])
            self._list_anew()

    def image_changed(self, image: Hyperstack, images: Iterable[Hyperstack]) -> None:
        """An image was opened, or has new places: what belongs to it may be elsewhere now."""
        every = list(images)
        redraw: list[Hyperstack | None] = []
        for shown in self._shown.values():
            found = self._find_image(shown.layer, every)
            if found is not shown.image:
                redraw += [shown.image, found]
                shown.image = found
            elif found is not image:
                continue
            for coords, entry in shown.entries.items():
                if self._position(shown, coords, entry):
                    redraw.append(found)
        if redraw:
            self._draw(redraw)
            self._list_anew()
        elif image.imp.getID() not in self._overlays and any(
            shown.image is image for shown in self._shown.values()
        ):
            self._draw([image])  # it was closed, and is open again

    def image_removed(self, image: Hyperstack, images: Iterable[Hyperstack]) -> None:
        """An image is gone; what belonged to it may belong to another."""
        every = list(images)
        for shown in self._shown.values():
            if shown.image is image:
                shown.image = self._find_image(shown.layer, every)
                for coords, entry in shown.entries.items():
                    self._position(shown, coords, entry)
                self._draw([shown.image])

    def natives(self, key: LayerKey) -> list[Any]:
        """ImageJ's ROIs of a layer, in order."""
        shown = self._shown.get(key)
        if shown is None:
            return []
        return [native for entry in shown.entries.values() for native in entry.natives]

    # --- where ----------------------------------------------------------------------------------

    @staticmethod
    def _find_image(layer: SceneLayer, images: Iterable[Hyperstack]) -> Hyperstack | None:
        """The image that a layer belongs to: by folder and source, split values and components."""
        own = dict(layer.key.split) | dict.fromkeys(layer.components)
        folder = layer.spec.images_dir
        best: tuple[tuple[bool, bool, bool, int, int], Hyperstack] | None = None
        for number, image in enumerate(images):
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

    def _position(self, shown: _Shown, coords: Coords, entry: _Entry) -> bool:
        """Set where on its image an entry is; whether that is another place than before."""
        layer, image = shown.layer, shown.image
        if image is None:
            positions: list[Position] = [(0, 0, 0)]
        else:
            at = dict(layer.key.split) | dict(zip(layer.components, coords, strict=True))
            shape = image.extent.shape
            positions = [_as_imagej(p, shape) for p in image.extent.positions(at)]
        if positions == entry.positions:
            return False
        was_placed = bool(entry.positions)
        entry.positions = positions
        entry.shown = []
        rois = layer.items[coords] if layer.kind == "rois" else [None] * len(entry.natives)
        for number, position in enumerate(positions):
            for native, roi in zip(entry.natives, rois, strict=True):
                placed = native if number == 0 else native.clone()
                own = roi.position if roi is not None else (0, 0, 0)
                c, z, t = (ours or theirs for ours, theirs in zip(position, own, strict=True))
                if c or z or t:
                    placed.setPosition(c, z, t)
                elif was_placed:
                    placed.setPosition(0)
                entry.shown.append(placed)
        return True

    # --- on the images --------------------------------------------------------------------------

    def _draw(self, images: Iterable[Hyperstack | None], added: list[Any] | None = None) -> None:
        """Draw what belongs to these images anew; or, with `added`, only that in addition."""
        for image in dict.fromkeys(images):
            if image is None or not image.is_open:
                continue
            imp = image.imp
            number = imp.getID()
            overlay = self._overlays.get(number)
            if overlay is None or added is None:
                overlay = self._overlays[number] = self._java.Overlay()
                overlay.drawLabels(False)
                natives = self._all_on(image)
            else:
                natives = added
            for native in natives:
                overlay.add(native)
            if not self._has_windows:
                imp.setOverlay(overlay)
            elif self._shows_all():
                imp.getCanvas().setShowAllList(overlay)
                imp.draw()

    def _all_on(self, image: Hyperstack) -> list[Any]:
        return [
            native
            for shown in self._shown.values()
            if shown.image is image
            for entry in shown.entries.values()
            for native in entry.shown
        ]

    # --- in the ROI Manager -----------------------------------------------------------------------

    def _manager(self) -> Any:
        """The ROI Manager; it is opened where it is not."""
        manager = self._java.RoiManager.getInstance()
        if manager is None:
            self._listed = 0
            manager = self._java.RoiManager()
            bounds = manager.getGraphicsConfiguration().getBounds()
            manager.setLocation(bounds.x + bounds.width - manager.getWidth() - 8, bounds.y + 22)
            # ImageJ's own switch would draw each window's ROIs on the active one.
            self._show_all_switch(manager).setState(True)
        return manager

    def _show_all_switch(self, manager: Any) -> Any:
        """The checkbox "Show All"."""
        waiting = list(manager.getComponents())
        for component in waiting:
            if hasattr(component, "getState") and str(component.getLabel()) == "Show All":
                return component
            if hasattr(component, "getComponents"):
                waiting.extend(component.getComponents())
        raise LookupError("this ImageJ's ROI Manager has no switch to show all ROIs")

    def _shows_all(self) -> bool:
        """Whether ROIs are to be seen: a person may have switched them off."""
        manager = self._java.RoiManager.getInstance()
        return manager is None or bool(self._show_all_switch(manager).getState())

    def _list(self, entries: Iterable[_Entry]) -> None:
        """Add to the ROI Manager: in bulk, without its drawing everything for each."""
        natives = [native for entry in entries for native in entry.shown or entry.natives]
        if not self._has_windows or not natives:
            return
        manager, nothing = self._manager(), self._no_image
        for native in natives:
            manager.add(nothing, native, -1)
        self._listed += len(natives)

    def _list_anew(self) -> None:
        if not self._has_windows:
            return
        entries = [e for shown in self._shown.values() for e in shown.entries.values()]
        if self._java.RoiManager.getInstance() is None and not entries:
            return
        manager = self._manager()
        own = [roi for roi in manager.getRoisAsArray() if roi.getProperty(MARK) is None]
        manager.reset()  # and takes what is shown off the active window
        self._listed = 0
        if not (own or self._shown):
            manager.close()
            return
        self._list(entries)
        for roi in own:
            manager.add(self._no_image, roi, -1)
        if self._shows_all():
            for shown in self._shown.values():
                image = shown.image
                if image is not None and image.is_open:
                    overlay = self._overlays.get(image.imp.getID())
                    image.imp.getCanvas().setShowAllList(overlay)
                    image.imp.draw()


def _as_imagej(position: Position, shape: Position) -> Position:
    """In a stack with one slider ImageJ heeds a position only if all three numbers are there."""
    c, z, t = position
    channels, slices, frames = shape
    if channels == 1 and (slices == 1) != (frames == 1) and (z if frames == 1 else t):
        return (c or 1, z or 1, t or 1)
    return position
