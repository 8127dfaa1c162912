"""What a viewer's process notes for `bench_draw`, and how it is asked."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.viewer import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.viewer import Viewer

#: How often the window's own thread is asked how late it is.
_PROBE_S = 0.01


class Notes:
    """When each image was kept, shown, set and drawn.

    An image is *kept* when it is in the viewer's own memory, *shown* when the viewer's thread takes
    it up, *set* when the viewer's program has its data, and *drawn* when the frame is out. One that
    a newer one replaced before it was drawn is not counted.

    Parameters
    ----------
    viewer : Viewer
        Its `keep`, `adopt` and `show_layer` are noted from now on.
    post : callable
        Has the window's own thread call something soon; from any thread.
    """

    def __init__(self, viewer: Viewer, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        #: When each image was kept, by its number: they come in order, and each is kept.
        self._kept: list[int] = []
        self._waiting: dict[Any, list[int]] = {}
        self._frames: list[list[int]] = []
        self._lag: list[int] = []
        self._draws = 0
        self._began = 0
        self._is_closed = False
        self._keep, self._show_layer = viewer.keep, viewer.show_layer
        self._adopt = viewer.adopt
        viewer.keep = self.keep  # type: ignore[method-assign]
        viewer.adopt = self.adopt  # type: ignore[method-assign]
        viewer.show_layer = self.show_layer  # type: ignore[method-assign]
        threading.Thread(target=self._probe, daemon=True).start()

    def close(self) -> None:
        """Ask the window's thread no more: it is about to end."""
        self._is_closed = True

    def keep(self, pixels: Any, recycled: Any, spec: Any) -> Any:
        """As the viewer's own, and note when."""
        kept = self._keep(pixels, recycled, spec)
        self._kept.append(time.monotonic_ns())
        return kept

    def adopt(self, pixels: Any, spec: Any) -> Any:
        """As the viewer's own, and note when: what came in parts is kept without a copy."""
        count = len(self._kept)
        adopted = self._adopt(pixels, spec)
        if len(self._kept) == count:  # else by its `keep`
            self._kept.append(time.monotonic_ns())
        return adopted

    def show_layer(self, layer: Any, arrived: Any) -> None:
        """As the viewer's own, and note when, for each image that is new."""
        shown = time.monotonic_ns()
        self._show_layer(layer, arrived)
        now = time.monotonic_ns()
        for coords in set(arrived):
            info = layer.infos[coords]
            kept = self._kept[info["number"]]
            self._waiting[layer.key, coords] = [info["sent"], kept, shown, now]

    def drawn(self) -> None:
        """All that was set is on the screen."""
        self._draws += 1
        if self._waiting:
            now = time.monotonic_ns()
            self._frames += [[*times, now] for times in self._waiting.values()]
            self._waiting.clear()

    def begin(self) -> None:
        """Forget what was noted."""
        self._frames.clear()
        self._lag.clear()
        self._draws = 0
        self._began = time.monotonic_ns()

    def end(self) -> dict[str, Any]:
        """What was noted since `begin`."""
        return {
            "frames": list(self._frames),
            "lag_ms": [lag / 1e6 for lag in self._lag],
            "draws": self._draws,
            "seconds": (time.monotonic_ns() - self._began) / 1e9,
        }

    def _probe(self) -> None:
        """What a click would wait: from asking the window's thread until it comes to it."""
        while not self._is_closed:
            asked = time.monotonic_ns()
            done = threading.Event()

            def answer(asked: int = asked, done: threading.Event = done) -> None:
                self._lag.append(time.monotonic_ns() - asked)
                done.set()

            self._post(answer)
            done.wait()
            time.sleep(_PROBE_S)


def run(
    viewer: Viewer,
    notes: Notes,
    post: Callable[[Callable[[], None]], None],
    bare: Callable[[int, int], list[float]],
) -> None:
    """Serve a viewer, and answer what is asked on standard input until it ends.

    Parameters
    ----------
    viewer : Viewer
        With a window.
    notes : Notes
        Of this viewer.
    post : callable
        Has the window's own thread call something soon.
    bare : callable
        Takes the size and number of channels; milliseconds that the viewer's program itself needs
        to set and draw an image, several times. On the window's own thread.
    """

    def do(command: dict[str, Any]) -> Any:
        match command["do"]:
            case "bare":
                return {"ms": bare(command["size"], command["channels"])}
            case "begin":
                notes.begin()
            case "end":
                return notes.end()
            case "clear":
                assert viewer.receiver is not None
                viewer.receiver.clear()
        return {}

    def listen() -> None:
        for line in sys.stdin:
            command = json.loads(line)
            post(lambda command=command: print(json.dumps(do(command)), flush=True))  # type: ignore[misc]
        notes.close()
        viewer.stop()

    def ready(endpoint: Endpoint) -> None:
        print(json.dumps({"address": endpoint.addresses[0]}), flush=True)
        threading.Thread(target=listen, daemon=True).start()

    serve(viewer, on_ready=ready)
