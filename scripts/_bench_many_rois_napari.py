"""What many ROIs cost in napari: as shapes, as an overview, zoomed in, and to edit."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi
from openhcs_stream.viewer import Arrival, Placement, Scene
from openhcs_stream_napari import NapariModelViewer, NapariWindowViewer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openhcs_stream.viewer import Change, Painting

_EDGE = 2048
_IMAGE = LayerSpec(kind="image", name="raw", axes="YX", components=("well",), source="plate")
_CELLS = LayerSpec(kind="rois", name="cells", axes="", components=("well",), source="plate")
#: Numbers that are shown as shapes, whatever the viewer would choose.
_SHAPES = (500, 1000, 2000, 5000)


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_many_rois", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument("--vertices", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--headless", action="store_true", help="without a window: nothing drawn")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    rois = outlines(arguments.count, arguments.vertices)
    measured: dict[str, float] = {}
    for number in _SHAPES:
        if number <= arguments.count:
            bench = Bench(headless=arguments.headless)
            measured |= bench.as_shapes(rois[:number])
            bench.close()
    bench = Bench(headless=arguments.headless)
    measured |= bench.as_the_viewer_does(rois)
    bench.close()
    if arguments.json:
        print(json.dumps({"count": arguments.count, "seconds": measured}))
        return 0
    print(f"{arguments.count} outlines of {arguments.vertices} vertices in napari")
    for what, seconds in measured.items():
        print(f"  {what:44s} {seconds:8.3f} s" if seconds >= 0.1 else
              f"  {what:44s} {1e3 * seconds:8.2f} ms")  # fmt: skip
    return 0


class Bench:
    """A scene of one image and its outlines in two wells, and a person who edits them.

    Parameters
    ----------
    headless : bool
        On napari's model alone.
    """

    def __init__(self, *, headless: bool) -> None:
        self.viewer: Any = (
            NapariModelViewer() if headless else NapariWindowViewer(title="many ROIs")
        )
        self.has_window = not headless
        self.scene = Scene()
        self.changes: list[Change | Painting] = []
        self.viewer.watch_edits(self._note)
        if self.has_window:
            from qtpy.QtWidgets import QApplication

            for _ in range(10):  # until the window is there to be drawn in
                QApplication.processEvents()
        flat = np.zeros((_EDGE, _EDGE), np.uint8)
        self.show((_IMAGE, "A01", flat), (_IMAGE, "A02", flat))

    def _note(self, change: Any) -> None:
        self.changes.append(change)
        change.layer.items[change.coords] = change.items

    def close(self) -> None:
        """Take the window away."""
        self.viewer.close()

    def show(self, *items: tuple[LayerSpec, str, Any]) -> float:
        """Show items and draw; seconds."""
        arrivals = [
            Arrival(0, Placement(spec, splits=self.viewer.splits).place((well,), payload))
            for spec, well, payload in items
        ]

        def commit() -> None:
            changes = self.scene.commit(arrivals)
            if changes.axes_changed:
                self.viewer.set_axes(self.scene.axes)
            for key, coords in changes.layers.items():
                self.viewer.show_layer(self.scene.layers[key], coords)

        return self.act(commit)

    def act(self, work: Callable[[], object]) -> float:
        """Do something and draw what it changed; seconds."""
        begin = time.perf_counter()
        work()
        self.draw()
        return time.perf_counter() - begin

    @staticmethod
    def _time(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def draw(self) -> float:
        """Draw the canvas once; seconds."""
        begin = time.perf_counter()
        if self.has_window:
            canvas = self.viewer.model.window._qt_viewer.canvas.native  # noqa: SLF001
            canvas.repaint()
            canvas.grabFramebuffer()  # waits until it is drawn
        return time.perf_counter() - begin

    def draws(self) -> float:
        """Seconds to draw it again, while the camera moves."""
        camera = self.viewer.model.scene.camera
        spans = []
        for step in range(7):
            camera.center = (0.0, _EDGE / 2 + step, _EDGE / 2)
            spans.append(self.draw())
        return statistics.median(spans)

    def native(self) -> Any:
        """napari's layer of the outlines."""
        (layer,) = (each for key, each in self.scene.layers.items() if key.kind == "rois")
        return self.viewer.native_layer(layer)

    def as_shapes(self, rois: Sequence[Roi]) -> dict[str, float]:
        """So many as shapes: what decides from how many on there is an overview."""
        from openhcs_stream_napari import _crowd

        most, _crowd.MANY = _crowd.MANY, 1 << 30
        try:
            self.show((_CELLS, "A02", []))
            name = f"{len(rois)} as shapes"
            made = {f"{name}: shown": self.show((_CELLS, "A01", list(rois)))}
            made[f"{name}: drawn again"] = self.draws()
            self.viewer.go_to(well="A02")
            made[f"{name}: the slider comes back"] = self.act(lambda: self.viewer.go_to(well="A01"))
        finally:
            _crowd.MANY = most
        return made

    def as_the_viewer_does(self, rois: Sequence[Roi]) -> dict[str, float]:
        """All of them by the route that the viewer chooses, and what a person does then."""
        from openhcs_stream_napari import _crowd

        self.show((_CELLS, "A02", []))
        made = {"all: shown": self.show((_CELLS, "A01", list(rois)))}
        made["all: drawn again"] = self.draws()
        self.viewer.go_to(well="A02")
        made["all: the slider comes back"] = self.act(lambda: self.viewer.go_to(well="A01"))
        camera = self.viewer.model.scene.camera
        height = _EDGE * min(1.0, np.sqrt(_crowd.IN_VIEW / len(rois))) * 0.6
        camera.center = (0.0, _EDGE / 2, _EDGE / 2)
        camera.zoom = min(self.viewer.model.canvas.size) / height
        self.draw()
        made["zoomed in: drawn as shapes"] = self.act(self._stand_still)
        native = self.native()
        name = f"zoomed in: one of {native.nshapes} shapes is"
        native.selected_data = {0}
        made[f"{name} deleted: napari's part"] = self.act(native.remove_selected)
        made[f"{name} deleted: found and reported"] = self.act(self.viewer.finish_edits)
        made[f"{name} moved: found and reported"] = self._move(native)
        assert len(self.changes) == 2, self.changes
        camera.zoom /= 50
        self.draw()
        made["zoomed out: the overview again"] = self.act(self._stand_still)
        made["a tick without edits"] = statistics.median(
            self._time(self.viewer.settle) for _ in range(50)
        )
        return made

    def _move(self, native: Any) -> float:
        data = native.data
        data[0] = data[0] + 3
        native.data = data
        return self.act(self.viewer.finish_edits)

    def _stand_still(self) -> None:
        from openhcs_stream_napari import _crowd

        wait, _crowd.STILL_S = _crowd.STILL_S, 0.0
        for _ in range(3):
            self.viewer.settle()
        _crowd.STILL_S = wait


def outlines(count: int, vertices: int) -> list[Roi]:
    """Outlines like those of cells, each with a name."""
    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    centres = random.uniform(10, _EDGE - 10, (count, 1, 2))
    made = (centres + random.uniform(3, 6, (count, vertices, 1)) * circle).astype(np.float32)
    return [Roi("polygon", each, name=f"cell {n}") for n, each in enumerate(made)]


if __name__ == "__main__":
    sys.exit(main())
