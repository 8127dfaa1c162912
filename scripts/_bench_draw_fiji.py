"""ImageJ's windows for `bench_draw`: our viewer, and a note of each time an image was painted."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from _bench_draw_viewer import Notes, run

from openhcs_stream_fiji import FijiViewer, create

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUNDS = 12


def main() -> int:
    """Serve until standard input ends."""
    viewer = create(headless=False, title="bench_draw", options={})
    assert isinstance(viewer, FijiViewer)
    events = Events(viewer)
    notes = Notes(viewer, events.post)
    events.watch(notes.drawn)
    run(viewer, notes, events.post, lambda size, channels: bare(viewer, events, size, channels))
    return 0


class Events:
    """AWT's event thread: what it is to do soon, and when it has painted an image.

    Parameters
    ----------
    viewer : FijiViewer
    """

    def __init__(self, viewer: FijiViewer) -> None:
        import jpype

        self._java = viewer.java
        self._jpype = jpype
        self._queue = jpype.JClass("java.awt.EventQueue")
        self._toolkit = jpype.JClass("java.awt.Toolkit").getDefaultToolkit()
        self._canvas = jpype.JClass("ij.gui.ImageCanvas")
        self._painted: Callable[[], None] = lambda: None
        self._after = self._proxy("java.lang.Runnable", run=self._on_after)

    def _proxy(self, name: str, **methods: Callable[..., Any]) -> Any:
        return self._jpype.JProxy(name, dict=methods)

    def post(self, work: Callable[[], None]) -> None:
        """Have the event thread do something soon; from any thread."""
        self._queue.invokeLater(self._proxy("java.lang.Runnable", run=work))

    def watch(self, painted: Callable[[], None]) -> None:
        """Have `painted` called after an image was painted, on the event thread.

        The listener is told before a component paints; what it has done next comes after, since
        painting waits behind everything else.
        """
        self._painted = painted
        listener = self._proxy("java.awt.event.AWTEventListener", eventDispatched=self._on_paint)
        mask = int(self._jpype.JClass("java.awt.AWTEvent").PAINT_EVENT_MASK)
        self._toolkit.addAWTEventListener(listener, mask)

    def _on_paint(self, event: Any) -> None:
        if isinstance(event.getSource(), self._canvas):
            self._queue.invokeLater(self._after)

    def _on_after(self) -> None:
        self._toolkit.sync()  # until the display has it
        self._painted()


def bare(viewer: FijiViewer, events: Events, size: int, channels: int) -> list[float]:
    """Milliseconds of ImageJ's own `setPixels`, `updateAndDraw` and painting of a composite.

    The way that a plugin goes which shows live images: the plane is put into the stack and into
    the channel that is blended, and the image is drawn again.
    """
    java = viewer.java
    random = np.random.default_rng(1)
    planes = [
        java.shorts(random.integers(0, 4096, size * size, np.uint16).view(np.int16))
        for _ in range(channels + 1)
    ]
    stack = java.ImageStack(size, size)
    for plane in planes[:channels]:
        stack.addSlice("", plane)
    imp = java.CompositeImage(java.ImagePlus("bare", stack), 1)
    imp.setDimensions(channels, 1, 1)
    imp.setOpenAsHyperStack(True)
    painted = threading.Event()
    watched = events._painted  # noqa: SLF001
    events._painted = painted.set  # noqa: SLF001
    spans: list[float] = []
    steps = iter(range(_ROUNDS * channels))
    # On the event thread one can't wait for it: each step begins when the one before is painted.
    loop = java.jpype.JClass("java.awt.Toolkit").getDefaultToolkit().getSystemEventQueue()
    second = loop.createSecondaryLoop()
    window = java.StackWindow(imp)

    def step() -> None:
        number = next(steps, None)
        if number is None:
            second.exit()
            return
        began = time.perf_counter()
        stack.setPixels(planes[number % len(planes)], number % channels + 1)
        imp.reset()
        imp.updateAndDraw()

        def done() -> None:
            events._painted = lambda: None  # noqa: SLF001
            spans.append(1e3 * (time.perf_counter() - began))
            events.post(step)

        events._painted = done  # noqa: SLF001

    events._painted = lambda: (setattr(events, "_painted", lambda: None), events.post(step))  # noqa: SLF001
    second.enter()
    events._painted = watched  # noqa: SLF001
    imp.changes = False
    window.close()
    return spans[channels:]


if __name__ == "__main__":
    sys.exit(main())
