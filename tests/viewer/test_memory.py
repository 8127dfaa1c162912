"""The memory viewer: its loop, and what it keeps."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import LayerSpec
from openhcs_stream.viewer._memory import MemoryViewer
from openhcs_stream.viewer._placement import place
from openhcs_stream.viewer._scene import Arrival, Scene


def test_run_ticks_until_stopped() -> None:
    viewer = MemoryViewer()
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(len(ticks))
        if len(ticks) == 3:
            viewer.stop()

    viewer.run(tick, 0.001)
    assert ticks == [0, 1, 2]


def test_a_poke_ticks_before_the_interval_is_over() -> None:
    viewer = MemoryViewer()
    ticked = threading.Semaphore(0)
    thread = threading.Thread(target=viewer.run, args=(lambda: ticked.release(), 3600.0))
    thread.start()
    try:
        for _ in range(3):
            assert ticked.acquire(timeout=10)
            viewer.poke()
    finally:
        viewer.stop()
        thread.join(10)
    assert not thread.is_alive()


def test_stop_before_run_makes_it_return_at_once() -> None:
    viewer = MemoryViewer()
    viewer.stop()
    viewer.stop()
    viewer.run(lambda: pytest.fail("no tick was due"), 3600.0)


def test_an_error_of_the_tick_ends_run() -> None:
    def tick() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        MemoryViewer().run(tick, 3600.0)


def test_it_keeps_layers_and_has_no_screen() -> None:
    viewer, scene = MemoryViewer(), Scene()
    spec = LayerSpec("image", "raw", "YX", ("z",))
    kept = viewer.keep(np.ones((2, 3), np.uint8), None, spec)
    placed = place(spec, (1,), kept)
    scene.commit([Arrival("ticket", placed)])
    (layer,) = scene.layers.values()
    viewer.set_axes(scene.axes)
    viewer.show_layer(layer, [(1,)])
    assert viewer.axes == scene.axes
    assert viewer.layers == {layer.key: layer}
    assert viewer.describe() == {"layers": 1, "nbytes": 6}
    viewer.remove_layer(layer)
    viewer.remove_layer(layer)
    assert viewer.layers == {}
    with pytest.raises(UsageError, match="no screen"):
        viewer.screenshot()
