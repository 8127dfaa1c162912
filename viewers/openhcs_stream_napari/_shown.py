"""A layer of the scene, the napari layer that shows it, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openhcs_stream_napari._looks import known_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from openhcs_stream.messages import LayerSpec, PlaceValue
    from openhcs_stream.viewer import Axis, Change, Coords, Painting, SceneLayer
    from openhcs_stream_napari._hand import Hand

__all__ = ["KINDS", "Shown", "View"]

#: Layers are ordered by kind, the first at the bottom; within a kind the first to come is below.
KINDS = ("image", "labels", "rois", "points", "tracks")


@dataclass
class View:
    """What all layers share: the sliders, where they stand, and the size of a z step."""

    hand: Hand
    report: Callable[[Change | Painting], None]
    #: Say something to the person.
    tell: Callable[[str], None]
    #: napari's list of layers.
    layers: Any
    #: The part of the world that is on the canvas: (top, left), (bottom, right).
    window: Callable[[], tuple[tuple[float, float], tuple[float, float]]]
    axes: tuple[Axis, ...] = ()
    here: dict[str, PlaceValue] = field(default_factory=dict)
    #: Components that are space on the screen just now (z in the 3-D view): all of their values
    #: are in view.
    displayed: frozenset[str] = frozenset()
    #: Size and unit of a step along z. Values, not lengths, decide which planes belong together,
    #: so all layers have the same: that of the first that came with one.
    z_step: tuple[float, str] | None = None
    #: Largest extent of an image, pixels.
    extent_px: int = 0

    def coords(self, components: Sequence[str]) -> Coords:
        return tuple(self.here[c] for c in components if c in self.here)

    def shows(self, components: Sequence[str], coords: Coords) -> bool:
        """Whether the plane at `coords` is in view."""
        return all(
            component in self.displayed or self.here.get(component) == value
            for component, value in zip(components, coords, strict=True)
        )

    def scale(self, pixel_size: Sequence[float]) -> tuple[float, ...]:
        """Scale along the sliders and Y, X: 1 for what has no size."""
        z = self.z_step[0] if self.z_step else 1.0
        yx = tuple(pixel_size[-2:]) if len(pixel_size) > 1 else tuple(pixel_size) * 2 or (1.0, 1.0)
        return (*(z if axis.component == "z" else 1.0 for axis in self.axes), *yx)

    def units(self, pixel_size: Sequence[float], unit: str) -> tuple[str, ...]:
        z = self.z_step[1] if self.z_step else "pixel"
        yx = known_unit(unit) if pixel_size else "pixel"
        return (*(z if axis.component == "z" else "pixel" for axis in self.axes), yx, yx)

    @property
    def labels(self) -> tuple[str, ...]:
        return (*(axis.component for axis in self.axes), "y", "x")


class Shown(ABC):
    """A layer of the scene and the napari layer that shows it.

    Parameters
    ----------
    layer : SceneLayer
    view : View
    arrived : sequence of Coords
        What of it is new: all that it has, when the layer is made.
    others : iterable of Shown
        The layers that are there already, for colours that differ from theirs.
    """

    def __init__(
        self, layer: SceneLayer, view: View, arrived: Sequence[Coords], others: Iterable[Shown] = ()
    ) -> None:
        self.layer = layer
        self.view = view
        self.spec: LayerSpec = layer.spec
        #: What a person should know about it now; empty: nothing.
        self.notice = ""
        self._ours = 0
        self.native: Any = self._make(view, arrived, others)

    @abstractmethod
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        """The napari layer, not yet in a viewer."""

    @abstractmethod
    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        """Data at `arrived` is new: draw it if it is in view."""

    @abstractmethod
    def moved(self, view: View) -> None:
        """The sliders were moved."""

    def fit(self, view: View) -> bool:
        """The world or the stack may have another shape now; returns whether anything changed."""
        return False

    def entered(self) -> None:  # noqa: B027 - a hook, not a duty
        """The napari layer is in the viewer now."""

    def gone(self, places: Sequence[Coords]) -> None:  # noqa: B027 - a hook, not a duty
        """Nothing is at these places any more: the viewer was short of memory."""

    def look(self) -> bool:
        """The camera may have moved; returns whether anything else is drawn now."""
        return False

    def leave(self) -> None:  # noqa: B027 - a hook, not a duty
        """The napari layer is taken out of the viewer: so is whatever goes with it."""

    @property
    def natives(self) -> tuple[Any, ...]:
        """All napari layers that show it."""
        return (self.native,)

    @property
    def rank(self) -> int:
        return KINDS.index(self.layer.kind)

    # --- what a person does ---------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a person is in the middle of something, with or without a button down."""
        return False

    def finish(self) -> None:  # noqa: B027 - a hook, not a duty
        """Report what a person has changed here."""

    def finish_drawing(self) -> None:  # noqa: B027 - a hook, not a duty
        """Take what a person has begun to draw as it is."""

    @contextmanager
    def _by_us(self) -> Iterator[None]:
        """While we change the napari layer, what it tells is not a person's doing."""
        self._ours += 1
        try:
            yield
        finally:
            self._ours -= 1

    def _touched(self, *, burst: bool = False) -> None:
        if not self._ours:
            self.view.hand.touched(self, burst=burst)

    # --- looks ----------------------------------------------------------------------------------

    def restyle(self) -> None:
        """Apply what a later declaration of the layer says otherwise than the one before."""
        old, new = self.spec, self.layer.spec
        self.spec = new
        if new is old or new == old:
            return
        if new.opacity is not None and new.opacity != old.opacity:
            self.native.opacity = new.opacity
        if new.blending and new.blending != old.blending:
            self.native.blending = new.blending
        if new.visible != old.visible:
            self.native.visible = new.visible
        self._restyle(old, new)

    def _restyle(self, old: LayerSpec, new: LayerSpec) -> None:
        """As `restyle`, for what only some kinds have: nothing."""
        return

    def _common(self, view: View, *, opacity: float, blending: str) -> dict[str, Any]:
        spec = self.layer.spec
        return {
            "name": self.layer.title,
            "opacity": opacity if spec.opacity is None else spec.opacity,
            "blending": spec.blending or blending,
            "visible": spec.visible,
            "metadata": {
                "source": spec.source,
                "name": spec.name,
                "split": dict(self.layer.key.split),
                **({"images_dir": spec.images_dir} if spec.images_dir else {}),
            },
        }

    def _flat(self, view: View) -> dict[str, Any]:
        """Geometry of a layer that has Y and X only."""
        spec = self.layer.spec
        return {
            "scale": view.scale(spec.pixel_size)[-2:],
            "units": view.units(spec.pixel_size, spec.unit)[-2:],
            "axis_labels": ("y", "x"),
        }
