"""A class for each kind of layer: how it is made, takes new data, and follows the sliders."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.viewer import channel_colormap
from openhcs_stream_napari._array import LayerArray
from openhcs_stream_napari._looks import (
    Contrast,
    contrast_of,
    known_colormap,
    known_unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec, PlaceValue
    from openhcs_stream.rois import Roi
    from openhcs_stream.viewer import Axis, Coords, SceneLayer

__all__ = ["KINDS", "Shown", "View", "make"]

_log = logging.getLogger(__name__)

#: Layers are ordered by kind, the first at the bottom; within a kind the first to come is below.
KINDS = ("image", "labels", "rois", "points", "tracks")

#: From this many pixels in one direction a plane is shown as a pyramid.
MULTISCALE_PX = 8192


@dataclass
class View:
    """What all layers share: the sliders, where they stand, and the size of a z step."""

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
        self.spec: LayerSpec = layer.spec
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

    @property
    def rank(self) -> int:
        return KINDS.index(self.layer.kind)

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


class _Raster(Shown):
    """Images and labels: planes in a stack along the sliders."""

    _arrays: list[LayerArray]  #: the levels of the pyramid; mostly one
    _levels: int

    @property
    def _array(self) -> LayerArray:
        return self._arrays[0]

    def _data(self) -> Any:
        stack = self.layer.stack
        self._arrays = [LayerArray(stack, stride=2**level) for level in range(self._levels)]
        return self._arrays if self._levels > 1 else self._array

    def _geometry(self, view: View) -> dict[str, Any]:
        spec = self.layer.spec
        count = self._array.ndim - int(self._array.rgb)
        return {
            # napari aligns the last axes; the world may be ahead of the stack only in its length.
            "scale": view.scale(spec.pixel_size)[-count:],
            "units": view.units(spec.pixel_size, spec.unit)[-count:],
            "axis_labels": view.labels[-count:],
        }

    def _count_levels(self) -> int:
        """Levels of the pyramid: halved until a plane fits a screen; 1 where it is not needed.

        napari can't change a layer from one to the other later, so the first data decides.
        """
        longest = max(self.layer.stack.plane_shape[:2])
        if longest < MULTISCALE_PX:
            return 1
        return max(2, int(np.ceil(np.log2(longest / 1024))) + 1)

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self.draw()

    def draw(self) -> None:
        """Show the plane again: its pixels may be others. Much cheaper than a whole refresh."""
        self.native.refresh(thumbnail=False, extent=False, highlight=False)

    def moved(self, view: View) -> None:
        """napari slices the stack itself."""

    def fit(self, view: View) -> bool:
        native = self.native
        changed = not self._array.is_current()
        if changed and all(array.lengthen() for array in self._arrays):
            # By far the most frequent: a value was added. The plane in view is the same, so that
            # nothing is drawn; setting the data anew would also make the thumbnail again.
            native.refresh(thumbnail=False, data_displayed=False, highlight=False, extent=True)
        elif changed:
            native.data = self._data()
        wanted = self._geometry(view)
        # Setting the scale, even to what it was, also forgets the layer's cached extent, which
        # `data =` leaves behind where the layer is invisible.
        if tuple(native.scale) != tuple(wanted["scale"]) or (changed and not native.visible):
            native.scale = wanted["scale"]
            changed = True
        if tuple(map(str, native.units)) != tuple(wanted["units"]):
            native.units = wanted["units"]
            changed = True
        if tuple(native.axis_labels) != tuple(wanted["axis_labels"]):
            native.axis_labels = wanted["axis_labels"]
            changed = True
        return changed


class _Image(_Raster):
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Image

        spec = self.layer.spec
        self._levels = self._count_levels()
        data = self._data()
        rgb = self._array.rgb
        look: dict[str, Any] = {}
        channel = dict(self.layer.key.split).get("channel")
        self._contrast: Contrast | None = None
        if not rgb:
            if spec.contrast_limits is None:
                self._contrast = self._measure(arrived)
                look["contrast_limits"] = self._contrast.limits
            else:
                look["contrast_limits"] = _increasing(spec.contrast_limits)
            look["colormap"] = (spec.colormap and known_colormap(spec.colormap)) or (
                channel_colormap(str(channel), _colormaps(self.layer, others))
                if channel is not None
                else "gray"
            )
        native = Image(
            data,
            rgb=rgb,
            multiscale=self._levels > 1,
            **look,
            **self._common(
                view,
                opacity=1.0,
                blending="additive" if channel is not None and not rgb else "translucent",
            ),
            **self._geometry(view),
        )
        if self._contrast is not None:
            native.contrast_limits_range = self._contrast.range
        return native

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        if self._contrast is not None and not self._contrast.informed:
            self._learn(arrived)
        super().update(view, arrived)

    def _measure(self, arrived: Sequence[Coords]) -> Contrast:
        stack = self.layer.stack
        some = arrived[:: max(1, len(arrived) // 8)]  # of a stack: planes from all of its depth
        planes = (np.asarray(stack.planes[coords]) for coords in some if coords in stack.planes)
        return contrast_of(planes, stack.dtype)

    def _learn(self, arrived: Sequence[Coords]) -> None:
        """The first data was one flat value (an empty well), which says nothing: ask the next."""
        assert self._contrast is not None
        if tuple(self.native.contrast_limits) != self._contrast.limits:  # a person chose
            self._contrast = None
            return
        found = self._measure(arrived)
        if found.informed:
            self._contrast = found
            self.native.contrast_limits_range = found.range
            self.native.contrast_limits = found.limits

    def _restyle(self, old: LayerSpec, new: LayerSpec) -> None:
        if new.colormap and new.colormap != old.colormap and not self._array.rgb:
            colormap = known_colormap(new.colormap)
            if colormap:
                self.native.colormap = colormap
        if new.contrast_limits and new.contrast_limits != old.contrast_limits:
            self.native.contrast_limits = _increasing(new.contrast_limits)
            self._contrast = None


class _Labels(_Raster):
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Labels

        self._refuse_floats()
        self._levels = self._count_levels()
        native = Labels(
            self._data(),
            multiscale=self._levels > 1,
            **self._common(view, opacity=0.6, blending="translucent"),
            **self._geometry(view),
        )
        # The stack can't be written to yet: a brush would raise at its first stroke.
        native.editable = False
        return native

    def fit(self, view: View) -> bool:
        self._refuse_floats()
        changed = super().fit(view)
        self.native.editable = False  # napari sets it again with the data
        return changed

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self._refuse_floats()
        super().update(view, arrived)

    def _refuse_floats(self) -> None:
        dtype = self.layer.stack.dtype
        if dtype.kind not in "biu" or self.layer.stack.rgb:
            kind = "colour" if self.layer.stack.rgb else str(dtype)
            raise InvalidItem(
                f"labels {self.layer.title!r} are {kind}; napari's labels are whole numbers.",
                cure="Send labels.astype('uint32'), or send it as an image.",
            )


class _Points(Shown):
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Points

        self._here = view.coords(self.layer.components)
        size = max(5.0, view.extent_px / 100)
        return Points(
            self._points(view),
            size=size,
            face_color=self.layer.spec.colormap or "orange",
            border_color="black",
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._flat(view),
        )

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self._swap(view)

    def moved(self, view: View) -> None:
        if view.coords(self.layer.components) != self._here:
            self._swap(view)

    def _swap(self, view: View) -> None:
        self._here = view.coords(self.layer.components)
        points = self._points(view)
        # Nobody edited: who listens for edits must not hear of this.
        with self.native.events.data.blocker():
            self.native.selected_data = set()
            self.native.data = points
        self.native.refresh(thumbnail=False)

    def _points(self, view: View) -> npt.NDArray[Any]:
        """(N, 2) as Y, X: those at the current place."""
        found = self.layer.items.get(view.coords(self.layer.components))
        return np.zeros((0, 2)) if found is None else np.asarray(found, dtype=np.float64)


class _Tracks(Shown):
    """Tracks have their time in the data; it stands on the world's time slider where it can.

    napari aligns the last axes of a layer with those of the world, and a tracks layer has at most
    (time, z, y, x). So time must be the last slider, or the one before z. Where it is not, all
    of each track is shown at any time.
    """

    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Tracks

        self._here = self._now(view)
        rows = self._rows(view)
        return Tracks(
            rows,
            tail_width=3,
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._geometry(view, rows.shape[1] - 1),
        )

    def _geometry(self, view: View, ndim: int) -> dict[str, Any]:
        spec = self.layer.spec
        missing = max(0, ndim - len(view.axes) - 2)
        return {
            "scale": ((1.0,) * missing + view.scale(spec.pixel_size))[-ndim:],
            "units": (("pixel",) * missing + view.units(spec.pixel_size, spec.unit))[-ndim:],
            "axis_labels": (("time",) * missing + view.labels)[-ndim:],
        }

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self._swap(view)

    def moved(self, view: View) -> None:
        if self._now(view) != self._here:
            self._swap(view)

    def fit(self, view: View) -> bool:
        self._swap(view)
        return True

    def _now(self, view: View) -> tuple[object, ...]:
        return (view.coords(self.layer.components), view.here.get("z"), view.axes)

    def _swap(self, view: View) -> None:
        self._here = self._now(view)
        rows = self._rows(view)
        self.native.data = rows
        for name, value in self._geometry(view, rows.shape[1] - 1).items():
            setattr(self.native, name, value)

    def _rows(self, view: View) -> npt.NDArray[Any]:
        """(N, 4 or 5): track, time, (z,) y, x, in steps of the sliders."""
        components = tuple(axis.component for axis in view.axes)
        found = self.layer.items.get(view.coords(self.layer.components))
        deep = "Z" in self.layer.spec.axes  # columns: track, T, Z where there is one, Y, X
        rows = np.zeros((0, 5 if deep else 4)) if found is None else np.asarray(found, np.float64)
        zeros = np.zeros(len(rows))
        time = _to_steps(rows[:, 1], "time", view.axes)
        z = _to_steps(rows[:, 2], "z", view.axes) if deep else None
        has_z = components[-1:] == ("z",)
        before_y = components[-2:-1] if has_z else components[-1:]
        if not components:
            columns = [time, *([z] if z is not None else [])]
        else:
            if before_y != ("time",):  # timeless: at whatever step that slider has
                time = zeros
            columns = [time]
            if has_z:
                here = view.here.get("z")
                step = view.axes[-1].values.index(here) if here is not None else 0
                columns.append(np.full(len(rows), float(step)) if z is None else z)
        if len(rows) == 0:
            # napari 0.9 can't take tracks without any; a track of one vertex draws no line.
            return np.zeros((1, 3 + len(columns)))
        return np.column_stack([rows[:, 0], *columns, rows[:, -2:]])


class _Rois(Shown):
    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Shapes

        self._here = view.coords(self.layer.components)
        native = Shapes(
            ndim=2,
            **self._common(view, opacity=1.0, blending="translucent"),
            **self._flat(view),
        )
        self._fill(native, view)
        return native

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self.restyle()
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self._swap(view)

    def moved(self, view: View) -> None:
        if view.coords(self.layer.components) != self._here:
            self._swap(view)

    def _swap(self, view: View) -> None:
        self._here = view.coords(self.layer.components)
        # Nobody edited: who listens for edits must not hear of this.
        with self.native.events.data.blocker():
            self.native.selected_data = set()
            self.native.data = []
            self._fill(self.native, view)
        self.native.refresh(thumbnail=False)

    def _fill(self, native: Any, view: View) -> None:
        rois = self.layer.items.get(self._here) or ()
        if not rois:
            return
        filled = _fills_are_cheap()
        try:
            self._add(native, [_Shape.of(roi, view, filled=filled) for roi in rois])
        except RuntimeError as error:
            # napari could not cut a polygon into triangles, as one that crosses itself. One such
            # must not take the others with it: draw the outlines alone, which can't fail.
            _forget_dump(str(error))
            _log.info("%s: areas are drawn as outlines: %s", self.layer.title, error)
            native.data = []
            self._add(native, [_Shape.of(roi, view, filled=False, faces=False) for roi in rois])

    @staticmethod
    def _add(native: Any, shapes: Sequence[_Shape]) -> None:
        native.add(
            [shape.data for shape in shapes],
            shape_type=[shape.type for shape in shapes],
            edge_width=[shape.width for shape in shapes],
            edge_color=[shape.edge for shape in shapes],
            face_color=[shape.face for shape in shapes],
        )
        native.features = {
            "name": [shape.name for shape in shapes],
            "kind": [shape.kind for shape in shapes],
        }


@dataclass(frozen=True)
class _Shape:
    """One ROI as a shape of napari."""

    type: str
    data: npt.NDArray[Any]
    width: float
    edge: str
    face: str
    name: str
    kind: str

    @classmethod
    def of(cls, roi: Roi, view: View, *, filled: bool, faces: bool = True) -> _Shape:
        from openhcs_stream.rois import to_napari

        kind, data = to_napari(roi)
        width = roi.stroke_width or max(1.0, view.extent_px / 700)
        face = roi.fill_color if faces and roi.fill_color else "transparent"
        if kind == "points":  # a Shapes layer has no points: small diamonds
            kind, data = "path", _diamonds(data, 3 * width)
        elif kind == "polygon" and not filled and face == "transparent":
            # An outline looks the same and costs a twentieth: without a compiled backend napari
            # takes 20 ms to triangulate an area of 60 vertices, although it is not painted.
            kind, data = "path", np.vstack([data, data[:1]])
        edge = roi.stroke_color or "yellow"
        return cls(kind, data, width, edge, face, roi.name, roi.kind)


def _diamonds(points: npt.NDArray[Any], radius: float) -> npt.NDArray[Any]:
    """(N, 2) y, x to one path that goes around each: there is one shape for each ROI."""
    around = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 0)], dtype=np.float64) * radius
    return np.concatenate([point + around for point in points])


def _fills_are_cheap() -> bool:
    """Whether one of napari's compiled triangulation backends is there: ``napari[bermuda]``."""
    from importlib.util import find_spec

    return any(find_spec(name) for name in ("bermuda", "PartSegCore_compiled_backend", "triangle"))


def _forget_dump(text: str) -> None:
    """Remove the files into which napari writes a polygon that it could not cut."""
    for path in re.findall(r"\S*napari_\w*_triang_\S*?\.(?:npz|txt)", text):
        Path(path).unlink(missing_ok=True)


def _to_steps(values: npt.NDArray[Any], component: str, axes: tuple[Axis, ...]) -> npt.NDArray[Any]:
    """Values of a component as steps of its slider, between them where a value lies between."""
    for axis in axes:
        if axis.component == component:
            known = np.array([v for v in axis.values if isinstance(v, int)], dtype=np.float64)
            if known.size:
                steps: npt.NDArray[Any] = np.interp(
                    values, known, np.arange(known.size, dtype=np.float64)
                )
                return steps
    return values


def _increasing(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    return (low, high) if high > low else (low, low + 1.0)


def _colormaps(layer: SceneLayer, others: Iterable[Shown]) -> set[str]:
    """Colormaps of the same image's other channels."""
    return {
        str(other.native.colormap.name)
        for other in others
        if isinstance(other, _Image)
        and (other.layer.key.source, other.layer.key.name) == (layer.key.source, layer.key.name)
    }


_CLASSES: dict[str, type[Shown]] = {
    "image": _Image,
    "labels": _Labels,
    "rois": _Rois,
    "points": _Points,
    "tracks": _Tracks,
}


def make(
    layer: SceneLayer, view: View, arrived: Sequence[Coords], others: Iterable[Shown] = ()
) -> Shown:
    """Make the layer of the right class; it is not in a viewer yet."""
    return _CLASSES[layer.kind](layer, view, arrived, others)
