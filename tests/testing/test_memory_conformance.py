"""The suite on the viewer that keeps everything in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.testing import ViewerTests
from openhcs_stream.viewer import RASTER_KINDS, MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.viewer import SceneLayer


class TestMemoryViewer(ViewerTests):
    has_layer_order = False

    viewer: MemoryViewer

    @pytest.fixture(autouse=True)
    def _begin_nowhere(self) -> None:
        self._here: dict[str, PlaceValue] = {}

    def make_viewer(self) -> MemoryViewer:
        return MemoryViewer()

    def layer_titles(self) -> list[str]:
        return [layer.title for layer in self.viewer.layers.values()]

    def native_layer(self, title: str) -> SceneLayer:
        [layer] = [each for each in self.viewer.layers.values() if each.title == title]
        return layer

    def go_to(self, place: Mapping[str, PlaceValue]) -> None:
        known = {axis.component: axis.values for axis in self.viewer.axes}
        assert all(value in known[component] for component, value in place.items())
        self._here.update(place)

    def pixels_on_screen(self, title: str) -> npt.NDArray[Any]:
        layer = self.native_layer(title)
        assert layer.kind in RASTER_KINDS
        step = []
        for axis in self.viewer.axes:
            value = self._here.get(axis.component)
            step.append(axis.values.index(value) if value in axis.values else 0)
        return np.asarray(layer.stack[tuple(step)])

    def scale_of(self, title: str) -> tuple[float, ...]:
        return self.native_layer(title).spec.pixel_size

    def unit_of(self, title: str) -> str:
        return self.native_layer(title).spec.unit

    def outlines_of(self, title: str) -> list[npt.NDArray[Any]]:
        # Areas count from the corner of the first pixel, and x stands first.
        return [roi.coordinates[:, ::-1] - 0.5 for roi in self._here_of(title)]

    def points_of(self, title: str) -> npt.NDArray[Any]:
        return np.asarray(self._here_of(title))

    def tracks_of(self, title: str) -> npt.NDArray[Any]:
        return np.asarray(self._here_of(title))

    def _here_of(self, title: str) -> Any:
        layer = self.native_layer(title)
        return layer.items.get(tuple(self._here[name] for name in layer.components), [])

    @pytest.mark.parametrize("name", ["no arena", "not sealed", "outside"])
    def test_nonsense_leaves_nothing(self, name: str, no_leaks: None) -> None:
        """Above all no descriptor that came with it."""
        self.test_nonsense_on_the_side_lane_is_survived(name)
