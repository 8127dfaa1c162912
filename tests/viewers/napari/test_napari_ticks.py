"""When the window draws what came, and that other threads run while it does."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from openhcs_stream.messages import LayerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.viewers.napari.conftest import Stage

IMAGE = LayerSpec(kind="image", name="raw", axes="YX", components=("well",))


def pass_until(condition: Callable[[], bool]) -> None:
    """Let Qt run until something is so."""
    from qtpy.QtWidgets import QApplication

    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        QApplication.processEvents()


def poke_from_elsewhere(stage: Stage, times: int) -> None:
    def poke() -> None:
        for _ in range(times):
            stage.viewer.poke()

    thread = threading.Thread(target=poke)
    thread.start()
    thread.join()


def test_what_came_is_shown_without_waiting_for_the_timer(window: Stage) -> None:
    ticks: list[float] = []
    window.viewer.start(lambda: ticks.append(time.monotonic()), 3600.0)  # type: ignore[attr-defined]
    poke_from_elsewhere(window, 1)
    pass_until(lambda: len(ticks) == 1)


def test_many_that_came_are_one_tick_and_the_next_waits_for_the_rest(window: Stage) -> None:
    from qtpy.QtWidgets import QApplication

    ticks: list[float] = []
    window.viewer.start(lambda: ticks.append(time.monotonic()), 3600.0)  # type: ignore[attr-defined]
    poke_from_elsewhere(window, 100)
    pass_until(lambda: len(ticks) == 1)
    for _ in range(20):
        poke_from_elsewhere(window, 10)
        QApplication.processEvents()
    assert len(ticks) == 1  # the rest is half of the interval


def test_poked_before_and_after_its_life(window: Stage) -> None:
    window.viewer.poke()
    window.viewer.start(lambda: pytest.fail("it is closed"), 3600.0)  # type: ignore[attr-defined]
    window.viewer.poke()
    window.viewer.close()
    window.viewer.poke()
    window.viewer._pass_events()  # type: ignore[attr-defined]


def test_python_is_asked_about_no_frame(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari._qt.qt_main_window import _QtMainWindow
    from qtpy.QtCore import QEvent

    from openhcs_stream_napari._window import NapariWindowViewer

    handle, seen = _QtMainWindow.event, set()

    def noted(window: object, event: QEvent) -> bool:
        seen.add(event.type())
        return bool(handle(window, event))

    monkeypatch.setattr(_QtMainWindow, "event", noted)
    viewer = NapariWindowViewer(title="test")
    try:
        window = viewer.model.window._qt_window
        assert vars(_QtMainWindow)["event"] is noted  # others' windows are as they were
        frames: list[None] = []
        canvas = viewer.model.window._qt_viewer.canvas.native
        canvas.frameSwapped.connect(lambda: frames.append(None))
        viewer.model.add_image(np.zeros((20, 20), np.uint8))
        pass_until(lambda: len(frames) >= 2 or (canvas.update() is not None))
        assert window in _QtMainWindow._instances
    finally:
        viewer.close()
        viewer._pass_events()
    assert window not in _QtMainWindow._instances
    kinds = QEvent.Type
    assert seen <= {kinds.ToolTip, kinds.WindowActivate, kinds.ZOrderChange, kinds.Close}
    assert kinds.Close in seen
