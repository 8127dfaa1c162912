"""napari's window for `bench_draw`: our viewer, and a note of each frame that is out."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from _bench_draw_viewer import Notes, run

from openhcs_stream_napari import NapariWindowViewer, create

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 12


def main() -> int:
    """Serve until standard input ends."""
    from qtpy.QtCore import QObject, Qt, Signal

    size = {"size": sys.argv[1]} if len(sys.argv) > 1 else {}
    viewer = create(headless=False, title="bench_draw", options=size)
    assert isinstance(viewer, NapariWindowViewer)

    class Post(QObject):  # type: ignore[misc]
        posted = Signal(object)

    post = Post()
    post.posted.connect(lambda work: work(), Qt.ConnectionType.QueuedConnection)

    def on_window(work: Callable[[], None]) -> None:
        post.posted.emit(work)

    notes = Notes(viewer, on_window)
    canvas = viewer.model.window._qt_viewer.canvas.native  # noqa: SLF001
    canvas.frameSwapped.connect(notes.drawn)
    run(viewer, notes, on_window, lambda size, channels: bare(viewer, canvas, size, channels))
    return 0


def bare(viewer: NapariWindowViewer, canvas: Any, size: int, channels: int) -> list[float]:
    """Milliseconds of napari's own `layer.data = image`, and the draw, in this window."""
    from qtpy.QtCore import QEventLoop

    random = np.random.default_rng(1)
    images = [random.integers(0, 4096, (size, size), np.uint16) for _ in range(2)]
    model = viewer.model
    layers = [
        model.add_image(
            images[0], name=f"bare {number}", blending="additive", contrast_limits=(0, 4095)
        )
        for number in range(channels)
    ]
    loop = QEventLoop()
    canvas.frameSwapped.connect(loop.quit)
    spans = []
    for number in range(_ROUNDS * channels):
        began = time.perf_counter()
        layers[number % channels].data = images[number // channels % 2]
        loop.exec()  # until the frame is out
        spans.append(1e3 * (time.perf_counter() - began))
    canvas.frameSwapped.disconnect(loop.quit)
    for layer in layers:
        model.layers.remove(layer)
    viewer._pass_events()  # noqa: SLF001
    return spans[channels:]


if __name__ == "__main__":
    sys.exit(main())
