"""Images: planes in a stack along the sliders, their contrast and their colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openhcs_stream.viewer import channel_colormap
from openhcs_stream_napari._array import LayerArray
from openhcs_stream_napari._looks import Contrast, contrast_of, known_colormap
from openhcs_stream_napari._pyramid import Pyramid
from openhcs_stream_napari._shown import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.messages import LayerSpec
    from openhcs_stream.viewer import Coords, PlaneStack, SceneLayer
    from openhcs_stream_napari._shown import View

__all__ = ["MULTISCALE_PX", "Images", "Raster"]

#: From this many pixels in one direction a plane is shown as a pyramid.
MULTISCALE_PX = 8192


class Raster(Shown):
    """Images and labels: planes in a stack along the sliders.

    A very large plane is shown at once, as every 2nd, 4th, ... of its pixels, and then as the means
    that a thread has made of them meanwhile. Of labels every 2nd, 4th, ... pixel is shown for good.
    """

    #: Whether smaller levels are of the plane's own values.
    EXACT: ClassVar[bool] = False

    _arrays: list[LayerArray]  #: the levels of the pyramid; mostly one
    _levels: int
    #: Where the smaller levels come from, where there are any.
    _pyramid: Pyramid | None = None

    @property
    def _array(self) -> LayerArray:
        return self._arrays[0]

    def _data(self) -> Any:
        stack = self.layer.stack
        if self._levels > 1 and self._pyramid is None:
            self._pyramid = Pyramid(self._levels, exact=self.EXACT)
            self._want(self.view)
        self._arrays = [self._level(stack, 2**level) for level in range(self._levels)]
        return self._arrays if self._levels > 1 else self._array

    def _level(self, stack: PlaneStack, stride: int) -> LayerArray:
        return LayerArray(stack, stride=stride, pyramid=self._pyramid)

    def _want(self, view: View) -> None:
        """Have the levels of the plane in view made."""
        if self._pyramid is not None:
            plane = self.layer.stack.planes.get(view.coords(self.layer.components))
            # What is in a file is read at the size that is looked at.
            if isinstance(plane, np.ndarray):
                self._pyramid.want(plane)

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
        self._forget(arrived)
        self._want(view)
        if any(view.shows(self.layer.components, coords) for coords in arrived):
            self.draw()

    def gone(self, places: Sequence[Coords]) -> None:
        self._forget(places)

    def _forget(self, places: Sequence[Coords]) -> None:
        """Levels are void where other pixels came, and where the plane is gone."""
        if self._pyramid is not None:
            planes, changed = self.layer.stack.planes.items(), set(places)
            self._pyramid.keep_only(
                plane
                for coords, plane in planes
                if coords not in changed and isinstance(plane, np.ndarray)
            )

    def draw(self) -> None:
        """Show the plane again: its pixels may be others. Much cheaper than a whole refresh."""
        self.native.refresh(thumbnail=False, extent=False, highlight=False)

    def moved(self, view: View) -> None:
        """napari slices the stack itself."""
        self._want(view)

    def look(self) -> bool:
        if self._pyramid is None or not self._pyramid.take_made():
            return False
        self.draw()
        return True

    def leave(self) -> None:
        if self._pyramid is not None:
            self._pyramid.close()

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


class Images(Raster):
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
        planes = (stack.glance(coords) for coords in some if coords in stack.planes)
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


def _increasing(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    return (low, high) if high > low else (low, low + 1.0)


def _colormaps(layer: SceneLayer, others: Iterable[Shown]) -> set[str]:
    """Colormaps of the same image's other channels."""
    return {
        str(other.native.colormap.name)
        for other in others
        if isinstance(other, Images)
        and (other.layer.key.source, other.layer.key.name) == (layer.key.source, layer.key.name)
    }
