"""What many ROIs cost in ImageJ: to show, to draw, to watch for edits, and to edit."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi, to_labels, write_imagej
from openhcs_stream.viewer import Arrival, Change, Painting, Placement, Scene
from openhcs_stream_fiji import FijiViewer, create

if TYPE_CHECKING:
    from collections.abc import Callable

_EDGE = 2048
_TICKS = 200


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_many_rois", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, metavar="N", help="default: 100000")
    parser.add_argument("--vertices", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    viewer = create(headless=False, title="bench", options={"memory": "4g"})
    assert isinstance(viewer, FijiViewer)
    bench = Bench(viewer)
    measured = bench.run(arguments.count, arguments.vertices)
    viewer.close()
    if arguments.json:
        print(json.dumps({"count": arguments.count, "seconds": measured}))
        return 0
    print(f"{arguments.count} outlines of {arguments.vertices} vertices in ImageJ")
    for what, seconds in measured.items():
        print(f"  {what:44s} {seconds:8.3f} s" if seconds >= 0.1 else
              f"  {what:44s} {1e3 * seconds:8.2f} ms")  # fmt: skip
    return 0


class Bench:
    """A scene, and a person who edits it.

    Parameters
    ----------
    viewer : FijiViewer
    """

    def __init__(self, viewer: FijiViewer) -> None:
        self.viewer = viewer
        self.java = viewer.java
        self.scene = Scene()
        self.changes: list[Change | Painting] = []
        viewer.watch_edits(self._note)

    def _note(self, change: Change | Painting) -> None:
        self.changes.append(change)
        if isinstance(change, Change):
            change.layer.items[change.coords] = change.items

    def show(self, spec: LayerSpec, payload: Any) -> float:
        """Show one item; seconds."""
        placement = Placement(spec, splits=self.viewer.splits)
        if spec.kind in ("image", "labels"):
            kept = self.viewer.keep(placement.arrange(payload), None, spec)
            placed = placement.cut((), kept)
        else:
            placed = placement.place((), payload)
        begin = time.perf_counter()
        changes = self.scene.commit([Arrival(0, placed)])
        self.viewer.set_axes(self.scene.axes)
        for key, coords in changes.layers.items():
            self.viewer.show_layer(self.scene.layers[key], coords)
        return time.perf_counter() - begin

    def act(self, work: Callable[[], object]) -> float:
        """What a person does, and how long ImageJ takes for it."""
        begin = time.perf_counter()
        self.java.on_event_thread(work)
        return time.perf_counter() - begin

    def settle(self, expected: int) -> float:
        """Find out what was done, and report it; seconds."""
        self.changes.clear()
        begin = time.perf_counter()
        self.viewer.finish_edits()
        seconds = time.perf_counter() - begin
        assert len(self.changes) == expected, len(self.changes)
        return seconds

    def ticks(self) -> list[float]:
        """How long each of many ticks takes in which nothing happens."""
        spans = []
        for _ in range(_TICKS):
            begin = time.perf_counter()
            self.java.on_event_thread(lambda: self.viewer.turn(lambda: None))
            spans.append(time.perf_counter() - begin)
        return spans

    def paint(self) -> float:
        """Draw the image with its ROIs once, into memory; seconds."""
        (layer,) = (each for each in self.scene.layers.values() if each.kind == "image")
        canvas = self.viewer.image(layer).getCanvas()
        picture = self.java.BufferedImage(
            canvas.getWidth(), canvas.getHeight(), self.java.BufferedImage.TYPE_INT_RGB
        )
        return self.act(lambda: canvas.paint(picture.createGraphics()))

    def run(self, count: int, vertices: int) -> dict[str, float]:
        """Everything, in seconds."""
        rois = outlines(count, vertices)
        image = LayerSpec(kind="image", name="raw", axes="YX", source="plate")
        cells = LayerSpec(kind="rois", name="cells", axes="", source="plate")
        self.show(image, np.zeros((_EDGE, _EDGE), np.uint8))
        measured = {"shown, listed and drawn for the first time": self.show(cells, rois)}
        self.paint()
        measured["drawn again"] = statistics.median(self.paint() for _ in range(3))
        measured["replaced by as many others"] = self.show(cells, rois)
        self.ticks()
        spans = sorted(self.ticks())
        measured["a tick without edits, median"] = statistics.median(spans)
        measured["a tick without edits, 95 of 100"] = spans[int(0.95 * len(spans))]
        manager = self.java.RoiManager.getInstance()
        self.act(lambda: manager.select(count // 2))
        measured["one is moved: found and reported"] = self._moved(manager, count)
        measured["one is deleted: ImageJ's part"] = self.act(lambda: manager.runCommand("delete"))
        measured["one is deleted: found and reported"] = self.settle(1)
        self.act(manager.deselect)
        measured["all get a group: ImageJ's part"] = self.act(lambda: manager.setGroup(3))
        measured["all get a group: found and reported"] = self.settle(1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "RoiSet.zip"
            few = max(1, count // 10)
            write_imagej(path, [roi.replace(name=f"new {n}") for n, roi in enumerate(rois[:few])])
            spent = self.act(lambda: manager.open(str(path)))
            measured[f"{few} are loaded: ImageJ's part"] = spent
            measured[f"{few} are loaded: found and reported"] = self.settle(1)
        self.act(manager.reset)
        measured["all are deleted: found and reported"] = self.settle(1)
        begin = time.perf_counter()
        labels = to_labels(rois, (_EDGE, _EDGE))
        measured["for comparison, as labels: rasterised"] = time.perf_counter() - begin
        spec = LayerSpec(kind="labels", name="nuclei", axes="YX", source="plate")
        measured["for comparison, as labels: shown"] = self.show(spec, labels)
        return measured

    def _moved(self, manager: Any, count: int) -> float:
        self.act(lambda: manager.getRoi(count // 2).translate(3.0, 2.0))
        return self.settle(1)


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
