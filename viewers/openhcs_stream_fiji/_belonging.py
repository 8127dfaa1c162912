"""Where what a person draws belongs: to which layer, and to which of its places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openhcs_stream.messages import LayerSpec
from openhcs_stream.viewer import SceneLayer
from openhcs_stream_fiji._rois import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.viewer import Coords, LayerKey
    from openhcs_stream_fiji._annotations import Annotations, Shown
    from openhcs_stream_fiji._entries import Entry
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java

    PlaceValue = int | str

__all__ = ["Belonging"]


class Belonging:
    """Finds layers and places; belongs to AWT's event thread.

    Parameters
    ----------
    java : Java
    annotations : Annotations
    images : mapping of LayerKey to Hyperstack

    Attributes
    ----------
    last : Entry or None
        Whose ROI was selected last.
    """

    def __init__(
        self, java: Java, annotations: Annotations, images: Mapping[LayerKey, Hyperstack]
    ) -> None:
        self._java = java
        self._annotations = annotations
        self._images = images
        self.last: Entry | None = None

    def layer_of(self, native: Any) -> Shown | None:
        """The layer that a new ROI belongs to; None: it is on an image that is none of ours.

        Of the layers that belong to its image: the one that it is a copy of; the one whose ROI was
        selected last; for points one of points; the last that came. Where there is none, a new one.
        """
        number = int(native.getImageID())
        current = self._java.WindowManager.getCurrentImage()
        if number == 0 and current is not None:
            number = int(current.getID())
        image = next(
            (i for i in self._images.values() if i.is_open and int(i.imp.getID()) == number), None
        )
        if image is None and number != 0:
            return None
        is_points = isinstance(native, self._java.PointRoi)
        layers = [
            shown
            for shown in self._annotations.layers.values()
            if shown.image is image and shown.layer.kind in (("rois", "points")[: 1 + is_points])
        ]
        title = str(native.getProperty(MARK) or "")
        last = self.last.layer if self.last is not None else None
        for wanted in (
            lambda layer: layer.title == title,
            lambda layer: layer is last,
            lambda layer: is_points and layer.kind == "points",
        ):
            for shown in layers:
                if wanted(shown.layer):
                    return shown
        if layers:
            return layers[-1]
        if image is None:
            return None
        drawn = _drawn_on(image)
        return self._annotations.layers.get(drawn.key) or self._annotations.add_layer(drawn, image)

    def entry_at(self, shown: Shown, position: Position) -> Entry:
        """What a layer has at a position of its image; where that says nothing, what is in view."""
        coords = self.coords_at(shown, position)
        entry = shown.entries.get(coords)
        return entry if entry is not None else self._annotations.add_entry(shown, coords)

    def coords_at(self, shown: Shown, position: Position) -> Coords:
        """The place of a layer at a position of its image."""
        layer, image = shown.layer, shown.image
        at: dict[str, PlaceValue] = {}
        if shown.entries:
            # Components that the image has not: as where the person was last.
            known = next(iter(shown.entries))
            if self.last is not None and self.last in shown.entries.values():
                known = self.last.coords
            at = dict(zip(layer.components, known, strict=True))
        if image is not None:
            imp = image.imp
            here = (imp.getChannel(), imp.getSlice(), imp.getFrame())
            c, z, t = (int(told or now) for told, now in zip(position, here, strict=True))
            at |= image.extent.place((c, z, t))
        return tuple(at[component] for component in layer.components)


def _drawn_on(image: Hyperstack) -> SceneLayer:
    """A layer for what a person draws on an image that has none; all channels share it."""
    layer, channels = image.layer, image.extent.members("C")
    spec = LayerSpec(
        kind="rois",
        name=f"drawn on {layer.key.name}",
        axes="",
        source=layer.key.source,
        components=tuple(name for name in layer.components if name not in channels),
        modes=layer.spec.modes,
        order=layer.spec.order,
    )
    return SceneLayer.apart(spec, layer.key.split)
