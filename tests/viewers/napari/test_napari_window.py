"""The window: pixels that are really on the screen, its loop, and the dock widget."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import LayerSpec
from openhcs_stream.rois import Roi
from openhcs_stream.stream import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.viewers.napari.conftest import Stage

IMAGE = LayerSpec(
    kind="image", name="raw", axes="YX", components=("well",), contrast_limits=(0.0, 255.0)
)
BACKGROUND = (0, 0, 0)


def screen(stage: Stage) -> Any:
    """What is on the canvas, without the words about the place: (Y, X, 3)."""
    stage.viewer.model.canvas.overlays.text.visible = False
    picture = stage.viewer.screenshot()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 4
    return picture[..., :3].astype(int)


def middle(picture: Any) -> tuple[int, ...]:
    height, width = picture.shape[:2]
    return tuple(int(v) for v in picture[height // 2, width // 2])


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Let Qt work until something holds."""
    from qtpy.QtWidgets import QApplication

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        QApplication.processEvents()


def test_pixels_are_drawn_and_drawn_again(window: Stage) -> None:
    left_dark = np.full((40, 40), 200, "u1")
    left_dark[:, :20] = 50
    window.show((IMAGE, ("A02",), left_dark))
    picture = screen(window)
    values = {tuple(v) for v in np.unique(picture.reshape(-1, 3), axis=0).tolist()}
    assert values == {BACKGROUND, (50, 50, 50), (200, 200, 200)}
    lit = (picture[..., 0] > 0).any(axis=1).sum()
    assert 0.85 * min(picture.shape[:2]) < lit <= picture.shape[0]  # fitted to the canvas
    window.show((IMAGE, ("A02",), np.full((40, 40), 77, "u1")))
    assert middle(screen(window)) == (77, 77, 77)
    window.show((IMAGE, ("A01",), np.full((40, 40), 11, "u1")))  # in front, out of view
    assert middle(screen(window)) == (77, 77, 77)
    window.viewer.go_to(well="A01")
    assert middle(screen(window)) == (11, 11, 11)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8", "?"])
def test_every_dtype_reaches_the_screen(window: Stage, dtype: str) -> None:
    limits = (0.0, 1.0) if dtype == "?" else (0.0, 100.0)
    spec = LayerSpec(kind="image", name="raw", axes="YX", contrast_limits=limits)
    pixels = np.zeros((30, 30), dtype)
    pixels[:, 10:20] = 1 if dtype == "?" else 40
    window.show((spec, (), pixels))
    expected = 255 if dtype == "?" else 102
    assert middle(screen(window)) == pytest.approx((expected,) * 3, abs=1)


def test_channels_add_up(window: Stage) -> None:
    spec = LayerSpec(
        kind="image", name="raw", axes="YX", components=("channel",), contrast_limits=(0.0, 255.0)
    )
    bright = np.full((30, 30), 255, "u1")
    red = LayerSpec(**{**{f: getattr(spec, f) for f in spec.__struct_fields__}, "colormap": "red"})
    window.show((spec, ("GFP",), bright), (red, ("other",), bright))
    assert middle(screen(window)) == (255, 255, 0)


def test_colours_labels_outlines_and_points_lie_where_they_belong(window: Stage) -> None:
    scaled: dict[str, Any] = {"pixel_size": (0.5, 0.5), "unit": "um"}
    colour = np.zeros((60, 60, 3), "u1")
    colour[..., 2] = 255
    window.show((LayerSpec(kind="image", name="rgb", axes="YXS", **scaled), (), colour))
    assert middle(screen(window)) == (0, 0, 255)
    mask = np.zeros((60, 60), "u4")
    mask[20:40, 20:40] = 7
    window.show(
        (LayerSpec(kind="labels", name="nuclei", axes="YX", opacity=1.0, **scaled), (), mask)
    )
    over = screen(window)
    assert middle(over) != (0, 0, 255)
    square = Roi.rectangle(10, 10, 50, 50, stroke_color="#ffff00")
    window.show((LayerSpec(kind="rois", name="cells", axes="", **scaled), (), [square]))
    dot = LayerSpec(kind="points", name="dots", axes="YX", colormap="red", **scaled)
    window.show((dot, (), np.array([(29.5, 29.5)])))
    picture = screen(window)
    assert middle(picture) == (255, 0, 0)
    yellow = np.argwhere((picture == (255, 255, 0)).all(axis=2))
    blue = np.argwhere((picture == (0, 0, 255)).all(axis=2))
    per_pixel = (blue[:, 0].max() - blue[:, 0].min()) / 60  # screen pixels for one of the image's
    height = (yellow[:, 0].max() - yellow[:, 0].min()) / per_pixel
    assert height == pytest.approx(40, abs=2)


def test_the_place_is_written_on_the_canvas(window: Stage) -> None:
    window.show((IMAGE, ("A01",), np.zeros((40, 40), "u1")))
    with_words = window.viewer.screenshot()[..., :3].astype(int)
    assert (with_words[:40, :120] > 100).any()
    assert not (screen(window)[:40, :120] > 100).any()


def test_the_sliders_labels_have_room(window: Stage) -> None:
    from qtpy.QtWidgets import QApplication, QLineEdit

    names = ("plate", "well", "site")
    spec = LayerSpec(kind="image", name="raw", axes="YX", components=names)
    for well in ("A01", "A02"):
        window.show(*((spec, ("one", well, site), np.zeros((40, 40), "u1")) for site in (1, 2)))
    window.viewer.screenshot()
    labels = [
        label
        for widget in QApplication.topLevelWidgets()
        if widget.isVisible()
        for label in widget.findChildren(QLineEdit, "axis_label")
        if label.isVisible()
    ]
    assert {label.text() for label in labels} == {"well: A01", "site: 1"}
    for label in labels:
        assert label.width() > label.fontMetrics().horizontalAdvance(label.text())


def test_the_whole_window_can_be_taken(window: Stage) -> None:
    window.show((IMAGE, ("A01",), np.zeros((40, 40), "u1")))
    canvas = window.viewer.screenshot()
    vars(window.viewer)["canvas_only"] = False
    whole = window.viewer.screenshot()
    assert whole.shape[0] > canvas.shape[0]
    assert whole.shape[1] > canvas.shape[1]


def test_layers_that_were_drawn_can_be_replaced_by_others(window: Stage) -> None:
    """The order of events that crashed napari in glDrawArrays: draw, remove, add, draw."""
    for number in range(3):
        names = [f"image {number} {i}" for i in range(4)]
        for name in names:
            spec = LayerSpec(kind="image", name=name, axes="YX")
            window.show((spec, (), np.full((50, 50), 9, "u2")))
        screen(window)
        for layer in window.scene.clear():
            window.viewer.remove_layer(layer)
        window.viewer.set_axes(window.scene.axes)
        window.show((LayerSpec(kind="labels", name="m", axes="YX"), (), np.ones((50, 50), "u1")))
        points = np.random.default_rng(0).random((1000, 2)) * 50
        window.show((LayerSpec(kind="points", name="p", axes="YX"), (), points))
        screen(window)


def test_run_ticks_until_stop_is_called_from_another_thread(display: str) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer = NapariWindowViewer(title="run")
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 5:
            threading.Thread(target=viewer.stop).start()

    viewer.run(tick, 0.01)
    assert len(ticks) >= 5
    assert viewer.is_stopping
    viewer.stop()
    viewer.close()


def test_run_ends_when_a_person_closes_the_window(display: str) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer = NapariWindowViewer(title="close")
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            viewer.model.window._qt_window.close()

    viewer.run(tick, 0.01)
    assert ticks == [1, 1, 1]


def test_an_exception_in_a_tick_ends_run_and_is_raised(display: str) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer

    def tick() -> None:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        NapariWindowViewer(title="raise").run(tick, 0.01)


@pytest.fixture
def own_napari(display: str) -> Iterator[Any]:
    """A napari that belongs to somebody else."""
    import napari.viewer

    viewer = napari.viewer.Viewer(title="own")
    yield viewer
    viewer.close()
    until(lambda: True)


def test_attached_to_a_napari_that_runs(own_napari: Any) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer

    own_napari.add_image(np.zeros((8, 8)), name="own")
    zoom = own_napari.scene.camera.zoom
    viewer = NapariWindowViewer.attach(own_napari)
    with pytest.raises(UsageError, match="start"):
        viewer.run(lambda: None, 0.01)
    ticks: list[int] = []
    viewer.start(lambda: ticks.append(1), 0.005)
    until(lambda: len(ticks) > 2)
    viewer.close()
    assert [layer.name for layer in own_napari.layers] == ["own"]
    assert own_napari.scene.camera.zoom == zoom


def test_a_napari_with_streamed_layers_closes(own_napari: Any) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer
    from tests.viewers.napari.conftest import Stage as StageOf

    viewer = NapariWindowViewer.attach(own_napari)
    viewer.start(lambda: None, 0.005)
    points = LayerSpec(kind="points", name="dots", axes="YX", components=("well",))
    stage = StageOf(viewer)
    stage.show((points, ("A01",), np.array([(1.0, 1.0)])), (points, ("A02",), np.zeros((1, 2))))
    stage.show((IMAGE, ("A01",), np.zeros((40, 40), "u1")))
    own_napari.close()
    viewer.close()


def test_an_exception_in_an_attached_tick_stops_the_receiver_and_not_napari(
    own_napari: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer = NapariWindowViewer.attach(own_napari)

    def tick() -> None:
        raise ZeroDivisionError("on purpose")

    viewer.start(tick, 0.005)
    with caplog.at_level(logging.ERROR):
        until(lambda: viewer.is_stopping)
    assert "on purpose" in caplog.text
    assert own_napari.add_image(np.zeros((8, 8))) in own_napari.layers


@pytest.fixture
def dock(own_napari: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from openhcs_stream_napari._widget import ReceiverWidget

    tmp_path.chmod(0o700)
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(tmp_path))
    widget = ReceiverWidget(own_napari)
    own_napari.window.add_dock_widget(widget, name="receiver")
    return widget


def receivers() -> int:
    return sum(thread.name == "receiver" for thread in threading.enumerate())


def test_the_widget_starts_and_stops_a_receiver(dock: Any) -> None:
    assert receivers() == 0
    dock._button.click()
    assert receivers() == 1
    assert "ipc://" in dock._address.text()
    dock.refresh()
    dock._button.click()
    assert receivers() == 0
    assert dock._address.text() == "not receiving"
    assert "stopped" in dock._lines.toPlainText()
    dock.start()
    dock._session.viewer.stop()  # as `openhcs-stream stop` does
    until(lambda: dock.receiver is None)


def test_the_widget_lists_streams_that_ended(dock: Any) -> None:
    dock.start()
    address = dock.receiver.endpoint.addresses[0]
    with connect(address, name="worker 3", launch=False) as stream:
        receipt = stream.image(np.zeros((8, 8), "u1"))
        until(lambda: receipt.state == "displayed")
        dock.refresh()
        assert dock._table.item(0, 0).text() == "worker 3"
        assert dock._table.item(0, dock._table.columnCount() - 1).text() == ""
    until(lambda: dock.receiver.status()["ended"])
    dock.refresh()
    assert dock._table.rowCount() == 1
    text = dock._table.item(0, dock._table.columnCount() - 1).text()
    assert text.endswith(" s ago: closed by the worker")


def test_a_closed_dock_closes_the_receiver(dock: Any, own_napari: Any) -> None:
    dock.start()
    own_napari.window.remove_dock_widget(dock)
    until(lambda: receivers() == 0)


def test_a_closed_napari_closes_the_receiver(dock: Any, own_napari: Any) -> None:
    dock.start()
    own_napari.close()
    until(lambda: receivers() == 0)


def test_the_widget_says_why_it_can_not_start(dock: Any) -> None:
    dock._name.setText("not / a name")
    dock.start()
    assert dock.receiver is None
    assert "not / a name" in dock._address.text()


def test_new_sliders_make_the_canvas_smaller_and_the_picture_still_fits(window: Stage) -> None:
    viewer = window.viewer
    canvas = viewer.model.canvas
    window.show((IMAGE, ("A01",), np.full((400, 400), 200, "u1")))
    before = tuple(canvas.size)
    window.show((IMAGE, ("A02",), np.full((400, 400), 200, "u1")))
    until(lambda: tuple(canvas.size) != before)
    viewer._fit_view_again()
    height, width = canvas.size
    assert 400 * viewer.model.scene.camera.zoom < min(height, width)
    viewer.model.scene.camera.zoom = 9.5  # the user's
    viewer._fit_view_again()
    viewer.model.window._qt_window.resize(1000, 600)
    until(lambda: tuple(canvas.size) != (height, width))
    viewer._fit_view_again()
    assert viewer.model.scene.camera.zoom == 9.5


def test_values_that_no_texture_holds_are_drawn_without_a_word(window: Stage) -> None:
    extreme = np.full((20, 20), 50.0)
    extreme[0, :4] = np.nan, np.inf, -np.inf, np.finfo("f8").max
    window.show((LayerSpec(kind="image", name="far", axes="YX"), (), extreme))
    assert len(window.viewer.model.layers) == 1
    screen(window)


def test_a_layer_that_can_not_be_drawn_leaves_nothing_behind(
    window: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari._vispy.layers.image import VispyImageLayer

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(VispyImageLayer, "__init__", refuse)
        with pytest.raises(ZeroDivisionError):
            window.show((IMAGE, ("A01",), np.zeros((40, 40), "u1")))
    assert not window.viewer.model.layers
    window.show((IMAGE, ("A01",), np.full((40, 40), 60, "u1")))
    assert middle(screen(window)) == (60, 60, 60)
