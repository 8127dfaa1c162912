"""The smallest viewer: it keeps everything and shows nothing. For tests and benchmarks."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from openhcs_stream.errors import UsageError
from openhcs_stream.viewer._base import Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from openhcs_stream.viewer._questions import Question
    from openhcs_stream.viewer._scene import Axis, Coords, LayerKey, SceneLayer

__all__ = ["MemoryViewer"]


class MemoryViewer(Viewer):
    """A viewer without a screen. What it "shows" is in `axes` and `layers`.

    Attributes
    ----------
    axes : tuple of Axis
        As last set.
    layers : dict of LayerKey to SceneLayer
        What is shown, in the order in which it came.
    question : Question or None
        What a worker asks now: answer it, in the place of a person.
    """

    name: ClassVar[str] = "memory"
    reads_files: ClassVar[bool] = True

    def __init__(self) -> None:
        self.axes: tuple[Axis, ...] = ()
        self.layers: dict[LayerKey, SceneLayer] = {}
        self.question: Question | None = None
        self._work: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._stopped = False

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        """Call `tick` every `interval_s` seconds, and sooner when poked, until `stop`."""
        while not self._stopped:
            while self._work:
                self._work.popleft()()
            tick()
            self._wake.wait(interval_s)
            self._wake.clear()

    def stop(self) -> None:
        """Make `run` return; before `run`, make it return at once."""
        self._stopped = True
        self._wake.set()

    def poke(self) -> None:
        """Make the next tick happen now; callable from any thread."""
        self._wake.set()

    def do(self, work: Callable[[], object]) -> None:
        """Have `work` done on the viewer's own thread soon: a test in the place of a person."""
        self._work.append(work)
        self._wake.set()

    def set_axes(self, axes: tuple[Axis, ...]) -> None:
        """Keep the sliders."""
        self.axes = axes

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        """Keep the layer."""
        self.layers[layer.key] = layer

    def remove_layer(self, layer: SceneLayer) -> None:
        """Let go of the layer, where it is still kept."""
        self.layers.pop(layer.key, None)

    @property
    def can_ask(self) -> bool:
        """A test can answer."""
        return True

    def show_question(self, question: Question | None) -> None:
        """Keep the question."""
        self.question = question

    def screenshot(self) -> npt.NDArray[np.uint8]:
        """Refuse: there is no screen.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError(
            "the memory viewer has no screen to take a picture of.",
            cure="Read its layers, or use a viewer with a window.",
        )

    def describe(self) -> dict[str, Any]:
        """How much is kept."""
        return {
            "layers": len(self.layers),
            "nbytes": sum(layer.stack.nbytes for layer in self.layers.values()),
        }
