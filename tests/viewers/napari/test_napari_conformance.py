"""The suite that any viewer must pass, on napari: with a window under Xvfb, and without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from napari.layers import Tracks

from openhcs_stream.errors import Refused
from openhcs_stream.testing import ViewerTests
from openhcs_stream_napari._model import NapariModelViewer
from openhcs_stream_napari._window import NapariWindowViewer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from openhcs_stream import Stream
    from openhcs_stream.messages import PlaceValue


class NapariTests(ViewerTests):
    """How to look behind our API: at napari's own layers."""

    viewer: NapariModelViewer

    def close_viewer(self, viewer: Any) -> None:
        viewer.close()

    def layer_titles(self) -> list[str]:
        return [layer.name for layer in self.viewer.model.layers]

    def native_layer(self, title: str) -> Any:
        return self.viewer.model.layers[title]

    def go_to(self, place: Mapping[str, PlaceValue]) -> None:
        self.viewer.go_to(**place)

    def pixels_on_screen(self, title: str) -> npt.NDArray[Any]:
        """The plane that napari cut for the sliders' position."""
        layer = self.native_layer(title)
        step = self.viewer.model.dims.current_step[:-2]
        axes = layer.data.ndim - (3 if getattr(layer, "rgb", False) else 2)
        return np.asarray(layer.data[tuple(step[len(step) - axes :])])

    def scale_of(self, title: str) -> tuple[float, ...]:
        return tuple(self.native_layer(title).scale)

    def unit_of(self, title: str) -> str:
        return str(self.native_layer(title).units[-1])

    def outlines_of(self, title: str) -> list[npt.NDArray[Any]]:
        return [np.asarray(shape)[:, -2:] for shape in self.native_layer(title).data]

    def points_of(self, title: str) -> npt.NDArray[Any]:
        return np.asarray(self.native_layer(title).data)[:, -2:]

    def tracks_of(self, title: str) -> npt.NDArray[Any]:
        return np.asarray(self.native_layer(title).data)[:, [0, 1, -2, -1]]

    def test_tracks_of_the_persons_own_can_be_read(self) -> None:
        rows = np.array([[1.0, 0, 3.5, 4], [1, 1, 4.5, 6], [4, 0, 2, 2], [4, 2, 3, 3]])
        deep = np.insert(rows, 2, 8.0, axis=1)
        layers = self.viewer.model.layers
        own = [Tracks(rows, name="btrack", scale=(1, 0.5, 0.5)), Tracks(deep, name="deep")]

        def work(stream: Stream) -> list[npt.NDArray[Any]]:
            stream.tracks(rows + 1, name="deep", place={"well": "A01"}).wait()
            with pytest.raises(Refused, match=r"tracks 'deep'.*tracks 'btrack' of the person"):
                stream.get_tracks("moves")
            with pytest.raises(Refused, match="has no tracks 'btrack'"):
                stream.get_tracks("btrack", place={"well": "A01"})
            with pytest.raises(Refused, match="has no points 'btrack'"):
                stream.get_points("btrack")
            return [stream.get_tracks("btrack"), stream.get_tracks("deep")]

        try:
            layers.extend(own)
            btrack, sent = self.send(work)
            np.testing.assert_array_equal(btrack, rows, strict=True)
            np.testing.assert_array_equal(sent, rows + 1, strict=True)  # a worker's goes first
        finally:
            for each in own:
                layers.remove(each)


class TestNapariModel(NapariTests):
    def make_viewer(self) -> NapariModelViewer:
        return NapariModelViewer()


@pytest.mark.usefixtures("display")
class TestNapariWindow(NapariTests):
    has_screen = True

    def make_viewer(self) -> NapariWindowViewer:
        return NapariWindowViewer(title="conformance")

    def pump(self) -> None:
        from qtpy.QtWidgets import QApplication

        super().pump()
        QApplication.processEvents()
