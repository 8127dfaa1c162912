"""Questions, saving and layers of a person's own: the panel, in our window and in theirs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from openhcs_stream import connect
from openhcs_stream.errors import Refused, UsageError
from openhcs_stream.rois import Roi, from_geojson, read_imagej
from openhcs_stream.viewer import Receiver
from openhcs_stream_napari._model import NapariModelViewer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openhcs_stream.stream import Stream
    from openhcs_stream_napari._panel import EditPanel
    from openhcs_stream_napari._window import NapariWindowViewer

SQUARE = np.array([(2.0, 2.0), (2.0, 8.0), (8.0, 8.0), (8.0, 2.0)])
PLACE: dict[str, Any] = {"well": "A02", "site": 2}


class Desk:
    """A window that serves workers; they run on other threads, this one is the person's."""

    def __init__(self, viewer: NapariWindowViewer, receiver: Receiver) -> None:
        self.viewer = viewer
        self.receiver = receiver
        self.address = f"inproc://{id(self)}"

    @property
    def panel(self) -> EditPanel:
        panel = self.viewer._panel
        assert panel is not None
        return panel

    def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Let the viewer's timer and Qt work until something holds."""
        from qtpy.QtWidgets import QApplication

        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            self.viewer._on_timer(self.receiver.tick)
            QApplication.processEvents()

    def work(self, job: Callable[[Stream], Any], *, wait: bool = True) -> Worker:
        worker = Worker(self.address, job)
        if wait:
            self.until(lambda: not worker.is_alive())
        return worker

    def answer(self) -> None:
        """Press Done, as soon as one can."""
        self.until(lambda: self.panel.asks and self.panel.done.isEnabled())
        self.panel.done.click()

    def native(self, name: str) -> Any:
        (layer,) = (x for x in self.receiver.scene.layers.values() if x.key.name == name)
        return self.viewer.native_layer(layer)


class Worker(threading.Thread):
    def __init__(self, address: str, job: Callable[[Stream], Any]) -> None:
        super().__init__(daemon=True)
        self._address, self._job = address, job
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            with connect(self._address, name="worker 1") as stream:
                self.result = self._job(stream)
        except Exception as error:
            self.result = error


@pytest.fixture
def desk(display: str) -> Iterator[Desk]:
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer = NapariWindowViewer(title="desk")
    receiver = Receiver(viewer, publish=False)
    made = Desk(viewer, receiver)
    receiver._addresses = (made.address,)
    receiver.start()
    try:
        yield made
    finally:
        receiver.close()
        viewer.close()
        viewer._pass_events()


def show_cells(stream: Stream) -> None:
    for well in ("A01", "A02"):
        for site in (1, 2):
            place: dict[str, Any] = {"well": well, "site": site}
            stream.image(np.zeros((40, 60), "u1"), name="raw", place={**place, "channel": "DAPI"})
            stream.rois([Roi.polygon(SQUARE, name="one")], name="cells", place=place)
            stream.labels(np.zeros((40, 60), "u2"), name="mask", place=place)
            stream.points([[3.0, 4.0]], name="spots", place=place)
    stream.flush()


def ask(stream: Stream) -> Any:
    return stream.ask("Is this right?", on="cells", place=PLACE, timeout_s=30)


def test_a_question_is_shown_where_it_is_about_and_answered(desk: Desk) -> None:
    desk.work(show_cells)
    assert not desk.panel.isVisible()
    assert desk.viewer.place == {"well": "A01", "site": 1}
    desk.native("cells").visible = False
    worker = desk.work(ask, wait=False)
    desk.until(lambda: desk.panel.asks)
    desk.until(desk.panel.isVisible)
    assert desk.viewer.place == PLACE
    native = desk.native("cells")
    assert desk.viewer.model.layers.selection.active is native
    assert native.visible
    assert "worker 1" in desk.panel.worker.text()
    assert desk.panel.text.text() == "Is this right?"
    assert desk.panel.where.text() == "cells · well A02, site 2"
    assert not desk.panel.more.isVisible()
    native.selected_data = {0}
    desk.until(desk.panel.done.isEnabled)
    native.current_edge_color = "red"  # a burst that is not over yet
    desk.panel.done.click()
    desk.until(lambda: not worker.is_alive())
    assert worker.result.done
    (edit,) = worker.result.edits
    assert (edit.action, edit.place) == ("changed", PLACE)
    assert edit.after[0].stroke_color == "#ff0000ff"
    assert not desk.panel.asks
    assert not desk.panel.question.isVisible()


def test_half_a_polygon_is_taken_with_the_answer(desk: Desk) -> None:
    desk.work(show_cells)
    worker = desk.work(ask, wait=False)
    desk.until(lambda: desk.panel.asks)
    native = desk.native("cells")
    native.mode = "add_polygon"
    from tests.viewers.napari.conftest import Mouse

    mouse = Mouse(desk.viewer.model)
    for at in ((10, 20), (20, 20), (20, 30), (10, 35)):
        mouse.move(*at, pressed=False)
        mouse.click(*at)
    desk.answer()
    desk.until(lambda: not worker.is_alive())
    (edit,) = worker.result.edits
    assert edit.action == "added"


def test_questions_wait_for_each_other(desk: Desk) -> None:
    def two(text: str) -> Callable[[Stream], Any]:
        return lambda stream: stream.ask(text, timeout_s=30)

    first = desk.work(two("first?"), wait=False)
    desk.until(lambda: desk.panel.asks)
    second = desk.work(two("<b>second?</b>"), wait=False)
    third = desk.work(two("third?"), wait=False)
    desk.until(lambda: desk.panel.more.text() == "2 more questions wait")
    assert desk.panel.text.text() == "first?"
    desk.until(desk.panel.skip.isEnabled)
    desk.panel.skip.click()
    desk.panel.skip.click()  # a double click must not answer the next one
    desk.until(lambda: not first.is_alive())
    assert first.result.outcome == "skipped"
    desk.until(lambda: desk.panel.asks and "1 more" in desk.panel.more.text())
    for _ in range(2):
        desk.answer()
    desk.until(lambda: not (second.is_alive() or third.is_alive()))
    assert second.result.done
    assert third.result.done


def test_a_question_that_nobody_waits_for_any_more_is_taken_away(desk: Desk) -> None:
    worker = desk.work(lambda stream: stream.ask("now?", timeout_s=0.5), wait=False)
    desk.until(lambda: desk.panel.asks)
    desk.until(lambda: not worker.is_alive())
    desk.until(lambda: not desk.panel.asks)


def test_a_closed_panel_comes_back(desk: Desk) -> None:
    worker = desk.work(lambda stream: stream.ask("there?", timeout_s=30), wait=False)
    desk.until(lambda: desk.panel.asks)
    dock: Any = desk.panel.parent()
    dock.destroyOnClose()
    desk.until(lambda: desk.panel.parent() is not None and desk.panel.isVisible())
    desk.answer()
    desk.until(lambda: not worker.is_alive())
    assert worker.result.done


def test_nobody_can_answer_without_a_window(desk: Desk) -> None:
    assert not NapariModelViewer().can_ask
    from openhcs_stream_napari._window import NapariWindowViewer

    attached = NapariWindowViewer.attach(desk.viewer.model)
    assert not attached.can_ask
    attached.close()
    desk.viewer._own, own = False, True
    desk.viewer._panel, panel = None, desk.viewer._panel
    worker = desk.work(lambda stream: stream.ask("?", timeout_s=20))
    desk.viewer._own, desk.viewer._panel = own, panel
    assert isinstance(worker.result, Refused)


def test_what_waits_is_told_and_the_panel_shows_itself(desk: Desk) -> None:
    desk.work(show_cells)
    assert not desk.panel.isVisible()
    assert not desk.panel.save_edited.isEnabled()
    native = desk.native("spots")
    native.add((9.0, 9.0))
    desk.until(lambda: desk.panel.waiting.text() == "1 edit waits for a worker.")
    assert desk.panel.isVisible()
    native.add((19.0, 9.0))
    desk.until(lambda: desk.panel.waiting.text() == "2 edits wait for a worker.")
    edits = desk.work(lambda stream: [edit.action for edit in stream.edits(timeout_s=2)])
    assert edits.result == ["added", "added"]
    desk.until(lambda: desk.panel.waiting.text() == "No edit waits for a worker.")
    assert desk.panel.save_edited.isEnabled()


def test_saving_what_was_changed_and_everything(desk: Desk, tmp_path: Path) -> None:
    desk.work(show_cells)
    desk.native("spots").add((9.25, 9.5))
    cells = desk.native("cells")
    cells.selected_data = {0}
    cells.remove_selected()
    mask = desk.native("mask")
    mask.paint((0, 0, 10, 10), 7)
    desk.panel.save(str(tmp_path / "edited"), everything=False)
    assert desk.panel.message.text() == f"Saved 4 files in {tmp_path / 'edited'}."
    names = {path.name for path in (tmp_path / "edited").iterdir()}
    at = "well-A01_site-1"
    assert names == {
        f"cells_{at}.zip", f"cells_{at}.geojson", f"mask_{at}.tif", f"spots_{at}.csv",
    }  # fmt: skip
    assert read_imagej(tmp_path / "edited" / f"cells_{at}.zip") == []
    labels = tifffile.imread(tmp_path / "edited" / f"mask_{at}.tif")
    assert labels.dtype == np.uint16
    assert labels[10, 10] == 7
    points = np.loadtxt(tmp_path / "edited" / f"spots_{at}.csv", delimiter=",", skiprows=1, ndmin=2)
    assert points.tolist() == [[3, 4], [9.25, 9.5]]
    desk.panel.save(str(tmp_path / "all"), everything=True)
    assert len(list((tmp_path / "all").iterdir())) == 16
    import json

    text = (tmp_path / "all" / "cells_well-A02_site-1.geojson").read_text()
    assert [roi.name for roi in from_geojson(json.loads(text))] == ["one"]
    (tmp_path / "file").write_text("in the way")
    desk.panel.save(str(tmp_path / "file"), everything=True)
    assert "can't be written" in desk.panel.message.text()


def test_a_layer_to_draw_in(desk: Desk) -> None:
    desk.work(show_cells)
    desk.viewer.go_to(**PLACE)
    desk.panel.new["rois"].click()
    native = desk.viewer.model.layers.selection.active
    assert (native.name, native.ndim) == ("outlines", 2)
    assert desk.panel.message.text() == "Workers know it as 'outlines'."
    native.add(SQUARE, shape_type="polygon")
    desk.viewer.go_to(well="A01")
    assert native.nshapes == 0
    read = desk.work(lambda s: (s.get_rois(on="outlines"), list(s.edits(timeout_s=1))))
    rois, (edit,) = read.result
    assert len(rois) == 1
    assert (edit.name, edit.source, edit.place, edit.action) == (
        "outlines", "", PLACE, "added",
    )  # fmt: skip
    desk.panel.new["rois"].click()
    assert desk.viewer.model.layers.selection.active.name == "outlines 2"
    desk.panel.new["labels"].click()
    labels = desk.viewer.model.layers.selection.active
    assert labels.data.shape == (2, 2, 40, 60)
    labels.paint((0, 1, 10, 10), 3)
    read = desk.work(lambda s: s.get_labels(on="labels", place={"well": "A01", "site": 2}))
    assert read.result[10, 10] == 3


@pytest.mark.parametrize("kind", ["points", "shapes", "labels"])
def test_napari_own_buttons_make_layers_that_follow_the_sliders(desk: Desk, kind: str) -> None:
    desk.work(show_cells)
    buttons: Any = desk.viewer.model.window._qt_viewer.layerButtons
    before = len(desk.viewer.model.layers)
    desk.viewer.model.layers.selection.active = desk.native("raw")
    getattr(buttons, f"new{kind.capitalize()}Button").click()
    desk.until(lambda: len(desk.viewer._shown) == 5)
    assert len(desk.viewer.model.layers) == before + 1
    native = desk.viewer.model.layers.selection.active
    (layer,) = (x for x in desk.receiver.scene.layers.values() if x.title == native.name)
    assert layer.key.source == ""
    assert layer.components == ("well", "site")
    if kind == "points":
        native.add((3.0, 3.0))
    elif kind == "shapes":
        native.add(SQUARE, shape_type="polygon")
    else:
        native.paint((0, 0, 5, 5), 3)
    desk.until(lambda: len(desk.receiver.edits) == 1)


def test_layers_of_a_persons_own_are_left_alone(desk: Desk) -> None:
    desk.work(show_cells)
    model = desk.viewer.model
    shapes = model.add_shapes([SQUARE], shape_type="polygon", name="mine")
    labels = model.add_labels(np.ones((40, 60), "u1"), name="my labels")
    image = model.add_image(np.zeros((40, 60)), name="my image")
    for _ in range(3):
        desk.viewer._on_timer(desk.receiver.tick)
    assert all(layer in model.layers for layer in (shapes, labels, image))
    shapes.selected_data = {0}
    shapes.remove_selected()
    for _ in range(3):
        desk.viewer._on_timer(desk.receiver.tick)
    assert shapes in model.layers  # it was looked at when it came
    assert not len(desk.receiver.edits)


def test_a_layer_to_draw_in_needs_a_receiver() -> None:
    viewer = NapariModelViewer()
    with pytest.raises(UsageError, match="no receiver"):
        viewer.new_layer("rois")
    viewer.close()


def test_the_button_for_a_new_label_works(desk: Desk) -> None:
    from qtpy.QtWidgets import QPushButton

    desk.work(show_cells)
    mask = desk.native("mask")
    mask.paint((0, 0, 10, 10), 41)
    controls = desk.viewer.model.window._qt_viewer.controls.widgets[mask]
    controls.findChild(QPushButton, "newLabelButton").click()
    assert mask.selected_label == 42


def test_a_name_is_changed_in_the_features_table(desk: Desk) -> None:
    """napari's own way to rename something in a layer."""
    from importlib import import_module

    desk.work(show_cells)
    desk.viewer.model.layers.selection.active = desk.native("cells")
    # By name: it has no types.
    features_table = import_module("napari_builtins._qt.features_table")
    table = features_table.FeaturesTable(desk.viewer.model)
    model: Any = table.table.model().sourceModel()
    model.editable = True
    (column,) = (i for i in range(model.columnCount()) if model.headerData(i, _across()) == "name")
    assert model.setData(model.index(0, column), "eins")
    desk.until(lambda: len(desk.receiver.edits) == 1)
    (edit,) = desk.receiver.edits.waiting()
    assert edit.action == "renamed"
    assert desk.native("cells").features["name"].tolist() == ["eins"]
    table.close()


def _across() -> Any:
    from qtpy.QtCore import Qt

    return Qt.Orientation.Horizontal


def test_a_button_that_napari_never_saw_come_up(desk: Desk) -> None:
    desk.work(show_cells)
    native = desk.native("spots")
    desk.viewer.model.layers.selection.active = native
    from tests.viewers.napari.conftest import Mouse

    Mouse(desk.viewer.model).press(30, 30)
    assert desk.viewer._hand.is_down
    native.add((9.0, 9.0))
    desk.until(lambda: len(desk.receiver.edits) == 1)


def test_in_a_persons_own_napari(desk: Desk) -> None:
    """The panel is a part of the receiver's widget; layers of the owner stay what they are."""
    from openhcs_stream_napari._widget import ReceiverWidget

    model = desk.viewer.model
    widget = ReceiverWidget(model)
    model.window.add_dock_widget(widget, name="receiver")
    assert not widget.panel.save_all.isEnabled()
    widget.start()
    receiver = widget.receiver
    assert receiver is not None
    assert receiver.endpoint is not None
    address = receiver.endpoint.addresses[0]

    def job(stream: Stream) -> Any:
        show_cells(stream)
        return stream.ask("well?", on="cells", timeout_s=30)

    worker = Worker(address, job)
    desk.until(lambda: widget.panel.asks)
    own = model.add_shapes(ndim=4, name="own")
    desk.until(widget.panel.done.isEnabled)
    assert own in model.layers
    widget.panel.new["points"].click()
    model.layers.selection.active.add((4.0, 4.0))
    widget.panel.done.click()
    desk.until(lambda: not worker.is_alive())
    assert worker.result.done
    widget.stop()
    assert not widget.panel.save_all.isEnabled()
    assert not widget.panel.asks
