"""The viewer on napari's model: all that needs neither Qt nor a screen."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream_napari._corrections import Corrections
from openhcs_stream_napari._hand import Hand
from openhcs_stream_napari._layers import make
from openhcs_stream_napari._shown import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import Mode, PlaceValue
    from openhcs_stream.viewer import (
        Axis,
        Coords,
        LayerKey,
        SceneLayer,
    )
    from openhcs_stream_napari._shown import Shown

__all__ = ["NapariModelViewer"]

_log = logging.getLogger(__name__)


class NapariModelViewer(Corrections):
    """napari without a window: layers, sliders and camera are there, pixels on a screen are not.

    Parameters
    ----------
    model : napari.components.ViewerModel, optional
        Where to show; a new one by default. Layers that are in it already stay as they are.
    title : str
    """

    name: ClassVar[str] = "napari"
    #: A layer for each channel, with its own colormap.
    splits: ClassVar[frozenset[Mode]] = frozenset({"split", "channel"})

    def __init__(self, model: Any = None, *, title: str = "napari") -> None:
        if model is None:
            from napari.components import ViewerModel

            model = ViewerModel(title=title)
        #: The `napari.components.ViewerModel` (or `napari.Viewer`) that is shown in.
        self.model: Any = model
        self._hand = Hand(self._before_press)
        self._view = View(self._hand, self._report, self.tell, model.layers, self._window)
        self._shown: dict[LayerKey, Shown] = {}
        self._value_names: dict[str, dict[str, str]] = {}
        self._edited = {}
        self._busy = 0
        self._closed = False
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._anchor: Any = None
        #: What the camera was fitted to: nothing, a list of coordinates, an image. A view that
        #: holds layers of its owner is never fitted.
        self._fitted = "owner" if len(model.layers) else ""
        #: The camera, and the size of the canvas, as we left them; None: the user has moved it.
        self._fitted_view: tuple[Any, ...] | None = None
        # "last": napari's own handlers, which correct the sliders, come first.
        model.dims.events.current_step.connect(self._on_moved, position="last")
        model.dims.events.ndisplay.connect(self._on_moved, position="last")
        model.dims.events.order.connect(self._on_moved, position="last")
        model.layers.events.inserted.connect(self._on_layers, position="last")
        model.layers.events.removed.connect(self._on_layers, position="last")
        model.mouse_drag_callbacks.append(self._hand.on_drag)

    # --- the life-cycle -----------------------------------------------------------------------

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        while not self._stopping.is_set():
            tick()
            self.settle()
            self._wake.wait(interval_s)
            self._wake.clear()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def poke(self) -> None:
        self._wake.set()  # nothing is drawn, so there is no display rate to wait for

    def close(self) -> None:
        """Let go of the model: it stays as it is and is not followed any more. Idempotent."""
        if self._closed:
            return
        self.finish_drawing()
        self._closed = True
        self.model.mouse_drag_callbacks.remove(self._hand.on_drag)
        dims, layers = self.model.dims.events, self.model.layers.events
        for emitter in (dims.current_step, dims.ndisplay, dims.order):
            emitter.disconnect(self._on_moved)
        for emitter in (layers.inserted, layers.removed):
            emitter.disconnect(self._on_layers)
        self._shown.clear()

    # --- showing ------------------------------------------------------------------------------

    def name_values(self, names: Mapping[str, Mapping[str, str]]) -> None:
        for component, values in names.items():
            self._value_names.setdefault(component, {}).update(values)

    def set_axes(self, axes: tuple[Axis, ...]) -> None:
        with self._quiet():
            before = dict(self._view.here)
            self._view.axes = axes
            # Where an axis is new, or the value is gone: its first value, until a person moves.
            self._view.here = {
                axis.component: before[axis.component]
                if before.get(axis.component) in axis.values
                else axis.values[0]
                for axis in axes
                if axis.values
            }
            for shown in list(self._shown.values()):
                if shown.native not in self.model.layers:
                    continue
                try:
                    shown.fit(self._view)
                except Exception:
                    # The others must not fail with it. It stays as it is and shows nothing new;
                    # where data of its own came, `show_layer` fails with the reason.
                    _log.exception("%s could not take the new sliders", shown.layer.title)
            self._sync_sliders()
        self._on_moved()

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        with self._quiet():
            self._learn_z_step(layer)
            shown = self._shown.get(layer.key)
            if shown is not None and shown.native not in self.model.layers:
                shown.leave()
                del self._shown[layer.key]  # a person took it away; new data brings it back
                shown = None
            if shown is None:
                self._add(layer, arrived)
            else:
                if shown.fit(self._view):
                    self._sync_sliders()
                shown.update(self._view, arrived)
        self._write_place()

    def remove_layer(self, layer: SceneLayer) -> None:
        shown = self._shown.pop(layer.key, None)
        for edited in [each for each in self._edited if each[0] == layer.key]:
            del self._edited[edited]
        if shown is not None:
            self._hand.forget(shown)
            with self._quiet():
                shown.leave()
        if shown is not None and shown.native in self.model.layers:
            with self._quiet():
                self.model.layers.remove(shown.native)
                if not self._shown and self._anchor in self.model.layers:
                    self.model.layers.remove(self._anchor)
            self._after_removal()

    def places_gone(self, layer: SceneLayer, gone: Sequence[Coords]) -> None:
        shown = self._shown.get(layer.key)
        if shown is not None:
            with self._quiet():
                shown.gone(gone)
        # napari asks the stack for what it draws: it only has to draw again.
        self.show_layer(layer, ())

    def screenshot(self) -> npt.NDArray[np.uint8]:
        raise UsageError(
            "this napari has no window, so there is nothing to take a picture of.",
            cure="Start it without --headless; where there is no display, under xvfb-run.",
        )

    def describe(self) -> dict[str, Any]:
        # Called on the receiver's thread too: only what can be read while the layers change.
        from importlib.metadata import version

        return {"napari": version("napari"), "window": False, "place": dict(self._view.here)}

    # --- for corrections ------------------------------------------------------------------------

    def _window(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """What part of the world is on the canvas: (top, left), (bottom, right)."""
        camera = self.model.scene.camera
        height, width = self.model.canvas.size
        y, x = camera.center[-2:]
        half_y, half_x = height / camera.zoom / 2, width / camera.zoom / 2
        return (y - half_y, x - half_x), (y + half_y, x + half_x)

    def own_tracks(self) -> Mapping[str, npt.NDArray[Any]]:
        from napari.layers import Tracks

        ours = self._our_ids()
        layers = self.model.layers
        return {x.name: x.data for x in layers if isinstance(x, Tracks) and id(x) not in ours}

    # --- for tests and the widget -------------------------------------------------------------

    def native_layer(self, layer: SceneLayer) -> Any:
        """The napari layer that shows `layer`, or None where there is none (any more)."""
        shown = self._shown.get(layer.key)
        return None if shown is None or shown.native not in self.model.layers else shown.native

    @property
    def place(self) -> dict[str, PlaceValue]:
        """Where the sliders stand: {component: value}."""
        return dict(self._view.here)

    def go_to(self, **place: PlaceValue) -> None:
        """Move the sliders to values; components that are not named stay.

        Raises
        ------
        UsageError
            There is no such component or value.
        """
        for component, value in place.items():
            axis = next((a for a in self._view.axes if a.component == component), None)
            if axis is None or value not in axis.values:
                known = ", ".join(map(str, axis.values)) if axis else "no such slider"
                raise UsageError(
                    f"there is no place {component}={value!r} ({known}).",
                    cure=f"Sliders: {', '.join(a.component for a in self._view.axes) or 'none'}.",
                )
        self._view.here.update(place)
        with self._quiet():
            self._sync_sliders()
        self._on_moved()

    # --- layers -------------------------------------------------------------------------------

    def _add(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        first = not self._shown
        raster = layer.kind in ("image", "labels")
        if raster:
            self._view.extent_px = max(self._view.extent_px, *layer.stack.plane_shape[:2])
        if first and arrived:  # start where the first data is
            self._view.here.update(zip(layer.components, arrived[0], strict=True))
        shown = make(layer, self._view, arrived, self._shown.values())
        layers = self.model.layers
        chosen = layers.selection.active
        self._insert(shown)
        if chosen is not None:  # a new layer must not take a person's tool out of their hand
            layers.selection.active = chosen
        self._shown[layer.key] = shown
        shown.entered()
        self._sync_sliders()
        wanted = "image" if raster else "list"
        if self._fitted not in ("owner", "image", wanted):
            self._fitted = wanted
            self._fit_view()

    def _fit_view(self) -> None:
        self.model.reset_view()
        self._fitted_view = self._camera(), tuple(self.model.canvas.size)

    def _fit_view_again(self) -> None:
        """New sliders make the canvas smaller; while nobody moved the camera, it follows."""
        if self._fitted_view is None:
            return
        camera, size = self._fitted_view
        if self._camera() != camera:
            self._fitted_view = None  # from now on it is the user's
        elif tuple(self.model.canvas.size) != size:
            self._fit_view()

    def _camera(self) -> tuple[Any, ...]:
        camera = self.model.scene.camera
        return tuple(camera.center), camera.zoom, tuple(camera.angles)

    def _insert(self, shown: Shown) -> None:
        layers = self.model.layers
        try:
            layers.insert(self._index_for(shown), shown.native)
        except BaseException:
            # What can't be drawn is in the list, and would break each later draw.
            if shown.native in layers:
                try:
                    layers.remove(shown.native)
                except (KeyError, ValueError) as error:  # it never got as far as the canvas
                    _log.debug("a layer that failed was half there: %r", error)
            raise

    def _index_for(self, new: Shown) -> int:
        """Where in napari's list: after ours of its kind, or of the nearest kind below."""
        layers = self.model.layers
        ranks = {id(shown.native): shown.rank for shown in self._shown.values()}
        ours = [(i, ranks[id(native)]) for i, native in enumerate(layers) if id(native) in ranks]
        below = [i for i, rank in ours if rank <= new.rank]
        if below:
            return max(below) + 1
        return min((i for i, _ in ours), default=len(layers))

    def _learn_z_step(self, layer: SceneLayer) -> None:
        from openhcs_stream_napari._looks import known_unit

        spec = layer.spec
        if len(spec.pixel_size) < 3:
            return
        step = (float(spec.pixel_size[0]), known_unit(spec.unit))
        if self._view.z_step is None:
            self._view.z_step = step
            for shown in self._shown.values():
                if shown.native in self.model.layers:
                    shown.fit(self._view)
        elif self._view.z_step != step:
            _log.debug("%s: z step %s; shown with that of the first, %s",
                       layer.title, step, self._view.z_step)  # fmt: skip

    def _after_removal(self) -> None:
        """A window lets its events pass once here."""

    # --- sliders ------------------------------------------------------------------------------

    def _first_dim(self) -> int:
        """napari's number of our first slider; layers of others may have more axes in front."""
        return int(self.model.dims.ndim) - 2 - len(self._view.axes)

    def _steps(self) -> tuple[float, ...]:
        """Length of a step of each slider in napari's world."""
        return self._view.scale(())[: len(self._view.axes)]

    def _sync_sliders(self, *, anchor: bool = True) -> None:
        """Make napari's sliders those of the scene, at the place where the user looks.

        Without `anchor`, only as far as the layers that are there have them.
        """
        dims, axes = self.model.dims, self._view.axes
        if not self._shown:
            return
        if anchor:
            self._set_anchor()
        if not axes or self._first_dim() < 0:
            return
        first, steps = self._first_dim(), self._steps()
        ranges, point = list(dims.range), list(dims.point)
        alone = not any(
            native.ndim > 2 for native in self.model.layers if id(native) not in self._our_ids()
        )
        for dim, (axis, step) in enumerate(zip(axes, steps, strict=True), start=first):
            low, high, _ = ranges[dim]
            last = (len(axis.values) - 1) * step
            ranges[dim] = (0.0, last, step) if alone else (min(low, 0.0), max(high, last), step)
            if axis.component in self._view.here:
                point[dim] = axis.values.index(self._view.here[axis.component]) * step
        if tuple(map(tuple, dims.range)) != tuple(map(tuple, ranges)):
            dims.range = tuple(ranges)
        if tuple(dims.point) != tuple(point):
            dims.point = tuple(point)

    def _set_anchor(self) -> None:
        """Where no image spans the sliders, an invisible layer does.

        Lists of coordinates have Y and X only, and napari has the sliders that its layers have;
        given more of them, its own "fit to view" fails.
        """
        layers, ndim = self.model.layers, len(self._view.axes) + 2
        if self._anchor is not None and self._anchor not in layers:
            self._anchor = None
        enough = max((n.ndim for n in layers if n is not self._anchor), default=2) >= ndim
        if enough:
            if self._anchor is not None:
                layers.remove(self._anchor)
                self._anchor = None
            return
        last = [len(axis.values) - 1.0 for axis in self._view.axes]
        corners = np.array([[0.0] * ndim, [*last, 0.0, 0.0]])
        if self._anchor is None:
            from napari.layers import Points

            self._anchor = Points(corners, name="places", visible=False)
            layers.insert(0, self._anchor)
        elif self._anchor.data.shape != corners.shape or (self._anchor.data != corners).any():
            self._anchor.data = corners
        if tuple(self._anchor.scale) != self._view.scale(()):
            self._anchor.scale = self._view.scale(())

    def _our_ids(self) -> set[int]:
        natives = (native for shown in self._shown.values() for native in shown.natives)
        return {id(self._anchor), *map(id, natives)}

    def _read_place(self) -> None:
        dims = self.model.dims
        first = self._first_dim()
        if first < 0:
            return
        for offset, (axis, step) in enumerate(zip(self._view.axes, self._steps(), strict=True)):
            if axis.values:
                index = min(max(round(dims.point[first + offset] / step), 0), len(axis.values) - 1)
                self._view.here[axis.component] = axis.values[index]
        self._view.displayed = frozenset(
            axis.component
            for offset, axis in enumerate(self._view.axes)
            if first + offset in dims.displayed
        )

    def _on_moved(self, event: object = None) -> None:
        if self._busy:
            return
        with self._quiet():
            self._read_place()
            for shown in list(self._shown.values()):
                if shown.native in self.model.layers:
                    shown.moved(self._view)
        self._write_place()

    def _on_layers(self, event: object = None) -> None:
        """A person added or removed a layer: napari has set the sliders to what is left."""
        if self._busy:
            return
        with self._quiet():
            # No anchor: who empties the list would find a new layer in it, for ever.
            self._sync_sliders(anchor=False)
        self._on_moved()

    def _write_place(self) -> None:
        """Say in words where the sliders stand: napari itself shows numbers only."""
        axes, here = self._view.axes, self._view.here
        dims = self.model.dims
        first = self._first_dim()
        if first < 0:
            return
        labels = list(dims.axis_labels)
        labels[-2:] = ["y", "x"]
        for offset, axis in enumerate(axes):
            labels[first + offset] = f"{axis.component}: {self._said(axis.component)}"
        if tuple(labels) != tuple(dims.axis_labels):
            dims.axis_labels = tuple(labels)
        overlay = self.model.canvas.overlays.text
        components = [axis.component for axis in axes if axis.component in here]
        text = "   ".join(f"{component} {self._said(component)}" for component in components)
        text = "\n".join([text, *(s.notice for s in self._shown.values() if s.notice)]).strip()
        if overlay.text != text:
            if not overlay.text:  # the first time; after that it is the user's to hide
                overlay.position = "top_left"
                overlay.visible = True
            overlay.text = text

    def _said(self, component: str) -> str:
        """Where a slider stands, with the name of that value where it has one."""
        value = str(self._view.here.get(component, ""))
        name = self._value_names.get(component, {}).get(value)
        return value if name is None else f"{value} ({name})"

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """While we move things ourselves, napari's events about it are not the user's doing.

        Values that float32, napari's widest texture, does not hold become infinite without a word.
        """
        self._busy += 1
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                yield
        finally:
            self._busy -= 1
