"""The viewer: ImageJ's windows, in this process's Java."""

from __future__ import annotations

import logging
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream.viewer import RASTER_KINDS, Viewer
from openhcs_stream_fiji._annotations import Annotations
from openhcs_stream_fiji._bulk import Bulk
from openhcs_stream_fiji._hyperstack import Hyperstack
from openhcs_stream_fiji._java import explain
from openhcs_stream_fiji._manager import Manager
from openhcs_stream_fiji._painting import PaintWatch
from openhcs_stream_fiji._pixels import Keeper
from openhcs_stream_fiji._question import QuestionWindow
from openhcs_stream_fiji._watch import EditWatch
from openhcs_stream_fiji._windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec, Mode
    from openhcs_stream.viewer import Axis, Coords, LayerKey, Question, SceneLayer
    from openhcs_stream_fiji._java import Java

    PlaceValue = int | str

__all__ = ["FijiViewer"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: ImageJ's mode in which to quit ImageJ does not end the process.
_EMBEDDED = 1


class FijiViewer(Viewer):
    """Images as hyperstacks, ROIs in the ROI Manager.

    What a person changes comes back. *ROIs*: deleted, renamed, updated, added, coloured, sorted or
    loaded in the ROI Manager, or dragged on the image while all are shown. A ROI that is new joins
    the layer that it is a copy of, or else, of the layers on its image, the one whose ROI was
    selected last, or else the last that came; where there is none, a layer "drawn on NAME" of the
    image's source. Its place is its position, and what is in view where that says nothing.
    *Points* that are added, moved or deleted in a multi-point selection. *Labels* that are painted
    in their window: whole numbers of the labels' own type; fractions, which ImageJ paints into
    floats, are rounded. With more than 255 labels ImageJ's brush paints one of 256 steps: give an
    exact number with Process > Math > Set. Clear and the eraser paint ImageJ's background colour.
    *Tracks* can't be edited and are put back. Without windows nothing is looked for.

    Parameters
    ----------
    java : Java
        With ImageJ's classes in it.
    headless : bool
        Without windows: hyperstacks, with ROIs as overlays, are held and can be saved.
    title : str
        Of ImageJ's main window.
    gateway : object or None
        What pyimagej's ``init`` gave: ImageJ2 with its ops and scripts.
    rounds : bool
        Round numbers that 32-bit floats can't hold, where they are refused otherwise.
    save : Path or None
        Where all hyperstacks are saved when `run` ends.
    """

    name: ClassVar[str] = "fiji"
    #: Channels stay together in one window.
    splits: ClassVar[frozenset[Mode]] = frozenset({"split"})

    def __init__(
        self,
        java: Java,
        *,
        headless: bool,
        title: str = "ImageJ",
        gateway: Any = None,
        rounds: bool = False,
        save: Path | None = None,
    ) -> None:
        self.java = java
        self.gateway = gateway
        self._headless = headless
        self._save = save
        self._keeper = Keeper(java, rounds=rounds)
        self._stacks: dict[LayerKey, Hyperstack] = {}
        self._axes: dict[str, tuple[PlaceValue, ...]] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        bulk = Bulk(java)
        self._manager = manager = None if headless else Manager(java, bulk)
        self._annotations = Annotations(java, bulk, self._stacks, manager)
        self._watch: EditWatch | None = None
        if manager is not None:
            self._watch = EditWatch(
                java, bulk, manager, self._annotations, self._stacks, self.report_edit
            )
        self._painting: PaintWatch | None = None
        self._question: QuestionWindow | None = None
        self._complaint = ""
        self._windows: Windows | None = None
        self._main_window: Any = None
        if not headless:
            self._on_event_thread(lambda: self._open(title))

    def _open(self, title: str) -> None:
        java = self.java
        if self.gateway is not None and java.IJ.getInstance() is None:
            self.gateway.ui().showUI()
        self._main_window = java.IJ.getInstance()
        if self._main_window is None:
            self._main_window = java.ImageJ(_EMBEDDED)
            self._main_window.exitWhenQuitting(False)
            bounds = self._main_window.getGraphicsConfiguration().getBounds()
            self._main_window.setLocation(bounds.x + 8, bounds.y + 22)
            self._main_window.setTitle(f"{title} (ImageJ {java.IJ.getVersion()})")
        self._windows = Windows(java)
        self._painting = PaintWatch(java, self._keeper, self._stacks, self.report_edit)

    @property
    def has_windows(self) -> bool:
        """Whether images are shown in windows."""
        return not self._headless

    # --- the life-cycle -----------------------------------------------------------------------

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        try:
            while not self._stopping.is_set() and self._is_open():
                began = time.monotonic()
                self._on_event_thread(lambda: self.turn(tick))
                wait_s = interval_s
                if not self._headless:
                    # A rest as long as the work, in which ImageJ deals with what a person does and
                    # more images come, to be drawn together. After it what comes is shown at once.
                    rest_s = min(interval_s, max(interval_s / 2, time.monotonic() - began))
                    self._stopping.wait(rest_s)
                    wait_s = interval_s - rest_s
                self._wake.wait(wait_s)
                self._wake.clear()
        finally:
            if self._save is not None:
                self.save(self._save)
            self.close()

    def turn(self, tick: Callable[[], None]) -> None:
        """What a person has finished comes before what is new."""
        self._guarded(self._look)
        tick()

    def _look(self) -> None:
        if self._watch is not None:
            self._watch.look()
        if self._painting is not None:
            self._painting.look()

    def _guarded(self, look: Callable[[], None]) -> None:
        """Whatever ImageJ, or a plugin, has against being looked at: the viewer goes on."""
        try:
            look()
        except self.java.jpype.JException as error:
            text = str(error)
            if text != self._complaint:
                _log.exception("ImageJ can't be looked at for edits")
            self._complaint = text

    def _is_open(self) -> bool:
        """Whether the person has not quit ImageJ."""
        return self._headless or self.java.IJ.getInstance() is not None

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def poke(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """Close our windows, and ImageJ where it was opened for this. More than once is fine."""
        self.stop()
        self._on_event_thread(self._close)

    def _close(self) -> None:
        self._guarded(self._finish_edits)
        for stack in self._stacks.values():
            stack.close()
        self._stacks.clear()
        if self._headless or self._main_window is None:
            return
        if self._painting is not None:
            self._painting.close()
        self._ask(None)
        if self._manager is not None:
            self._manager.close()
        main, self._main_window = self._main_window, None
        if self.gateway is None and self.java.IJ.getInstance() is not None:
            main.setVisible(False)
            main.dispose()

    # --- pixels, on the receiver's thread -----------------------------------------------------

    def keep(self, pixels: npt.NDArray[Any], recycled: Any, spec: LayerSpec) -> Any:
        if spec.kind == "labels" and not self._headless:
            recycled = None  # a person may be painting there
        try:
            return self._keeper.keep(pixels, recycled, spec)
        except self.java.jpype.JException as error:
            raise explain(error) from error

    def adopt(self, pixels: npt.NDArray[Any], spec: LayerSpec) -> Any:
        return self.keep(pixels, None, spec)

    # --- showing ------------------------------------------------------------------------------

    def set_axes(self, axes: tuple[Axis, ...]) -> None:
        self._axes = {axis.component: axis.values for axis in axes}

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        self._on_event_thread(lambda: self._show(layer, arrived))

    def _show(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        if layer.kind not in RASTER_KINDS:
            self._annotations.update(layer, arrived)
            return
        stack = self._stacks.get(layer.key)
        if stack is None:
            stack = Hyperstack(self.java, self._keeper, layer, self._windows)
            self._stacks[layer.key] = stack
        with self._unwatched(stack, arrived):
            moved = stack.update(arrived, self._axes)
        if moved:
            self._annotations.image_changed(stack)

    @contextmanager
    def _unwatched(self, stack: Hyperstack, arrived: Sequence[Coords]) -> Iterator[None]:
        """What is drawn meanwhile is no painting; what was painted there before is told first."""
        if self._painting is None:
            yield
            return
        if stack.imp is not None:
            self._painting.finish(stack, arrived)
        with self._painting.own():
            yield

    def remove_layer(self, layer: SceneLayer) -> None:
        self._on_event_thread(lambda: self._remove(layer))

    def _remove(self, layer: SceneLayer) -> None:
        stack = self._stacks.get(layer.key)
        if stack is not None:
            if self._painting is not None:
                self._painting.finish(stack)
            del self._stacks[layer.key]
            self._annotations.image_removed(stack)
            stack.close()
        else:
            self._annotations.remove(layer)

    def screenshot(self) -> npt.NDArray[np.uint8]:
        windows = self._windows
        if windows is None:
            raise UsageError(
                "this ImageJ has no windows, so there is nothing to take a picture of.",
                cure="Start it without --headless; where there is no display, under xvfb-run.",
            )
        rgb = self._on_event_thread(lambda: windows.picture(self._keeper))
        return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])

    # --- what a person does -------------------------------------------------------------------

    def finish_edits(self) -> None:
        self._on_event_thread(self._finish_edits)

    def _finish_edits(self) -> None:
        if self._watch is not None:
            self._watch.finish()
        if self._painting is not None:
            self._painting.finish()

    @property
    def can_ask(self) -> bool:
        return not self._headless and self._is_open()

    def show_question(self, question: Question | None) -> None:
        self._on_event_thread(lambda: self._ask(question))

    def _ask(self, question: Question | None) -> None:
        if self._question is not None:
            self._question.close()
            self._question = None
        if question is not None:
            self._move({**question.place})
            self._question = QuestionWindow(self.java, question)

    def describe(self) -> dict[str, Any]:
        free, most = self.java.free_nbytes()
        return {
            "imagej": str(self.java.IJ.getVersion()),
            "window": not self._headless,
            "gateway": self.gateway is not None,
            "java_memory_nbytes": most,
            "java_memory_free_nbytes": free,
        }

    # --- for tests and embedders --------------------------------------------------------------

    def image(self, layer: SceneLayer) -> Any:
        """The `ij.ImagePlus` that shows `layer`, or None where there is none (any more)."""
        stack = self._stacks.get(layer.key)
        return stack.imp if stack is not None and stack.is_open else None

    def rois(self, layer: SceneLayer) -> list[Any]:
        """ImageJ's ROIs of `layer`, in order."""
        return self._annotations.natives(layer.key)

    def go_to(self, **place: PlaceValue) -> None:
        """Move the sliders of all windows to values; components that are not named stay.

        Raises
        ------
        UsageError
            There is no such component or value.
        """
        for component, value in place.items():
            if value not in self._axes.get(component, ()):
                known = ", ".join(map(str, self._axes.get(component, ()))) or "no such slider"
                raise UsageError(
                    f"there is no place {component}={value!r} ({known}).",
                    cure=f"Sliders: {', '.join(self._axes) or 'none'}.",
                )
        self._on_event_thread(lambda: self._move(place))

    def _move(self, place: Mapping[str, PlaceValue]) -> None:
        for stack in self._stacks.values():
            if stack.is_open:
                stack.show(place)

    def save(self, folder: Path) -> list[Path]:
        """Save all hyperstacks, with their overlays, as TIFF; gives the files."""
        saved: list[Path] = []

        def write() -> None:
            for stack in self._stacks.values():
                if not stack.is_open:
                    continue
                name = re.sub(r"[^\w.-]+", "_", stack.layer.title).strip("_") or "image"
                path = folder / f"{name}.tif"
                number = 1
                while path in saved:
                    number += 1
                    path = folder / f"{name}-{number}.tif"
                saver = self.java.FileSaver(stack.imp)
                if stack.imp.getStackSize() > 1:
                    saver.saveAsTiffStack(str(path))
                else:
                    saver.saveAsTiff(str(path))
                saved.append(path)

        self._on_event_thread(write)
        return saved

    def _on_event_thread(self, work: Callable[[], T]) -> T:
        """Do it where ImageJ may be touched; what Java raises becomes one of our errors."""
        try:
            result: T = work() if self._headless else self.java.on_event_thread(work)
        except self.java.jpype.JException as error:
            raise explain(error) from error
        return result
