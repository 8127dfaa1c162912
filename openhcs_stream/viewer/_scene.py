"""What is shown: layers, the sliders that they share, and what a batch of arrivals changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from openhcs_stream.viewer._placement import (
    RASTER_KINDS,
    Axis,
    Coords,
    LayerKey,
    PlacedItem,
    PlaceValue,
    layer_title,
)
from openhcs_stream.viewer._stack import PlaneStack, World

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from openhcs_stream.messages import Kind, LayerSpec

__all__ = [
    "Arrival",
    "Axis",
    "Changes",
    "Coords",
    "LayerKey",
    "PlaceValue",
    "PlacedItem",
    "Scene",
    "SceneLayer",
]


@dataclass(slots=True)
class Arrival:
    """One item that was received: what it became, and the ticket by which it is reported."""

    ticket: object
    placed: tuple[PlacedItem, ...]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Changes:
    """What a commit changed, for the viewer to draw."""

    axes_changed: bool = False
    #: Places that are new or were replaced, in order of arrival: the last is the newest.
    layers: dict[LayerKey, list[Coords]] = field(default_factory=dict)
    #: Arrivals that were left out as a whole, each with the reason.
    failures: list[tuple[Arrival, str]] = field(default_factory=list)


@dataclass(slots=True)
class TakenOff:
    """What was let go of to make room, for the viewer to take off the screen."""

    axes_changed: bool = False
    #: Layers that lost places, and which; one that has none left is not the scene's any more.
    layers: list[tuple[SceneLayer, list[Coords]]] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True, eq=False)
class SceneLayer:
    """One layer as it stands.

    Attributes
    ----------
    key : LayerKey
    title : str
        "source / name [values that it was split by]".
    spec : LayerSpec
        Of the item that arrived last.
    components : tuple of str
        What the layer is stacked by, in component order: a part of the scene's axes.
    stack : PlaneStack
        The pixels of an image or labels layer; without planes for the other kinds.
    items : dict of coords to list or array
        rois: list of Roi; points: (N, 2) float64, y and x; tracks: (N, D + 1) float64, the
        track's number, t, (z,) y, x. Empty for images and labels.
    specs : dict of coords to LayerSpec
        Of each place's own item: channels, for one, may have been declared with colours of their
        own.
    infos : dict of coords to dict
        What was told of each place's item: its id, path and other metadata.
    """

    key: LayerKey
    title: str
    spec: LayerSpec
    components: tuple[str, ...]
    stack: PlaneStack
    items: dict[Coords, Any] = field(default_factory=dict)
    specs: dict[Coords, LayerSpec] = field(default_factory=dict)
    infos: dict[Coords, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def apart(cls, spec: LayerSpec, split: tuple[tuple[str, PlaceValue], ...] = ()) -> SceneLayer:
        """Make a layer that no scene has yet: of what a person drew. See `Scene.add`."""
        key = LayerKey(spec.source, spec.name, spec.kind, split)
        stack = PlaneStack(World(), spec.components)
        return cls(key, layer_title(key), spec, spec.components, stack)

    @property
    def kind(self) -> Kind:
        """What the layer shows."""
        return self.key.kind

    @property
    def places(self) -> Iterable[Coords]:
        """Where something has arrived."""
        return self.stack.planes.keys() | self.items.keys()


class Scene:
    """All layers and the sliders that they share; touched on the viewer's own thread only.

    Attributes
    ----------
    layers : dict of LayerKey to SceneLayer
        In the order in which they came.
    """

    def __init__(self) -> None:
        self.layers: dict[LayerKey, SceneLayer] = {}
        self._world = World()

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The sliders of all layers, slowest first, without the arrays' own Y and X."""
        return self._world.axes

    def commit(self, arrivals: Iterable[Arrival]) -> Changes:
        """Put arrivals at their places. One that does not fit is left out whole, with the reason.

        Parameters
        ----------
        arrivals : iterable of Arrival
            In the order in which they were received; a later one replaces an earlier one at the
            same place.
        """
        changes = Changes()
        world, layers, changed = self._world, self.layers, changes.layers
        version = world.version
        for arrival in arrivals:
            if self._is_in_place(arrival):
                for item in arrival.placed:
                    layer = layers[item.key]
                    layer.stack.put(item.coords, item.payload)
                    layer.infos[item.coords] = arrival.info
                    changed.setdefault(item.key, []).append(item.coords)
                continue
            reason = self._refusal(arrival)
            if reason:
                changes.failures.append((arrival, reason))
                continue
            for item in arrival.placed:
                layer = layers.get(item.key) or self._new_layer(item)
                coords = item.coords
                if item.components != layer.components:
                    at = dict(zip(item.components, coords, strict=True))
                    coords = tuple([at[component] for component in layer.components])
                layer.spec = item.spec
                world.add(layer.components, coords)
                if item.key.kind in RASTER_KINDS:
                    layer.stack.put(coords, item.payload)
                else:
                    layer.items[coords] = item.payload
                layer.specs[coords] = item.spec
                layer.infos[coords] = arrival.info
                changed.setdefault(item.key, []).append(coords)
        changes.axes_changed = world.version != version
        return changes

    def coords_at(self, layer: SceneLayer, step: Sequence[int]) -> Coords:
        """Tell what a layer shows at a world position.

        Parameters
        ----------
        layer : SceneLayer
            One of this scene's.
        step : sequence of int
            An index into the values of each of the scene's axes; more (Y, X) are ignored.
        """
        at = {axis.component: axis.values[i] for axis, i in zip(self.axes, step, strict=False)}
        return tuple(at[component] for component in layer.components)

    def step_of(
        self, layer: SceneLayer, coords: Coords, current: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """Find the world position that shows `coords`: an index for each of the scene's axes.

        Axes that the layer lacks keep their index in `current`, or 0.
        """
        at = dict(zip(layer.components, coords, strict=True))
        return tuple(
            axis.values.index(at[axis.component])
            if axis.component in at
            else (current[number] if number < len(current) else 0)
            for number, axis in enumerate(self.axes)
        )

    def add(self, layer: SceneLayer) -> None:
        """Take in a list's layer that a viewer made; nothing where there is one of its key."""
        if layer.key not in self.layers:
            self.layers[layer.key] = layer
            for coords in layer.places:
                self._world.add(layer.components, coords)

    def remove(self, key: LayerKey) -> SceneLayer | None:
        """Forget a layer; the axes shrink to what the others use. None where there is no such."""
        layer = self.layers.pop(key, None)
        if layer is not None:
            self._world.rebuild((left.components, left.places) for left in self.layers.values())
        return layer

    def take_off(
        self,
        spots: Iterable[tuple[LayerKey, tuple[str, ...], Coords]],
        times: Collection[tuple[str, PlaceValue]] = (),
    ) -> TakenOff:
        """Let go of places, to make room. A layer that has none left goes as a whole.

        Parameters
        ----------
        spots : iterable of (layer key, components, coords)
            What to let go of; what is not there is ignored.
        times : collection of (source, time)
            Lists of these sources at these time points go as well.
        """
        gone: dict[LayerKey, list[Coords]] = {}
        for key, components, coords in spots:
            layer = self.layers.get(key)
            if layer is None:
                continue
            at = dict(zip(components, coords, strict=True))
            if at.keys() == set(layer.components):
                here = tuple([at[component] for component in layer.components])
                if layer.stack.take_off(here):
                    gone.setdefault(key, []).append(here)
        for key, layer in self.layers.items():
            if layer.kind in RASTER_KINDS or "time" not in layer.components:
                continue
            number = layer.components.index("time")
            for here in [each for each in layer.items if (key.source, each[number]) in times]:
                del layer.items[here]
                gone.setdefault(key, []).append(here)
        taken = TakenOff()
        for key, places in gone.items():
            layer = self.layers[key]
            for here in places:
                layer.specs.pop(here, None)
                layer.infos.pop(here, None)
            taken.layers.append((layer, places))
            taken.count += len(places)
            if not layer.places:
                del self.layers[key]
        before = self.axes
        self._world.rebuild((left.components, left.places) for left in self.layers.values())
        taken.axes_changed = self.axes != before
        return taken

    def clear(self) -> list[SceneLayer]:
        """Forget everything; returns the layers that were there."""
        gone = list(self.layers.values())
        self.layers.clear()
        self._world.rebuild(())
        return gone

    def _new_layer(self, item: PlacedItem) -> SceneLayer:
        self._world.prefer(item.spec.order)
        layer = self.layers[item.key] = SceneLayer(
            key=item.key,
            title=self._title(item),
            spec=item.spec,
            components=item.components,
            stack=PlaneStack(self._world, item.components),
        )
        return layer

    def _title(self, item: PlacedItem) -> str:
        """What a person calls a new layer; where its sender chose, still no two are the same."""
        wanted = item.spec.title
        if not wanted:
            return layer_title(item.key)
        # Channels that are layers in one viewer are one window in the sender's mind.
        modes = item.spec.modes
        channels = [
            str(value)
            for component, value in item.key.split
            if modes.get(component, "channel") == "channel"
        ]
        title = f"{wanted} [{', '.join(channels)}]" if channels else wanted
        taken = {layer.title for layer in self.layers.values()}
        return next(each for each in _numbered(title) if each not in taken)

    def _is_in_place(self, arrival: Arrival) -> bool:
        """Whether only pixels changed, which were written over: a live picture."""
        layers = self.layers
        for item in arrival.placed:
            layer = layers.get(item.key)
            if (
                layer is None
                or layer.stack.planes.get(item.coords) is not item.payload
                or layer.specs.get(item.coords) is not item.spec
                or layer.spec is not item.spec
                or item.components != layer.components
            ):
                return False
        return True

    def _refusal(self, arrival: Arrival) -> str:
        """Why an arrival does not fit the layers that stand; empty where it does."""
        for item in arrival.placed:
            layer = self.layers.get(item.key)
            if layer is None:
                continue  # all planes of one arrival have the same form
            if item.components != layer.components and set(item.components) != set(
                layer.components
            ):
                return _mismatch(layer, item)
            if item.key.kind in RASTER_KINDS:
                reason = layer.stack.refusal(item.payload)
                if reason:
                    return (
                        f"layer {layer.title!r}: {reason}. "
                        "Send grey and RGB(A) images under different names."
                    )
        return ""


def _numbered(title: str) -> Iterator[str]:
    yield title
    for number in count(2):
        yield f"{title} ({number})"


def _mismatch(layer: SceneLayer, item: PlacedItem) -> str:
    has, lacks = set(item.components), set(layer.components)
    wrong = [f"lacks {name!r}" for name in layer.components if name not in has]
    wrong += [f"has {name!r} besides" for name in item.components if name not in lacks]
    stacked = ", ".join(layer.components) or "nothing"
    return (
        f"layer {layer.title!r} is stacked by {stacked}; this item {' and '.join(wrong)}. "
        "Give all items of a layer the same components, or send it under another name."
    )
