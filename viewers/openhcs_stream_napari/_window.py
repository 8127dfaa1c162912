"""The viewer with a window: the same as the model's, in Qt's event loop."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream_napari._labels import Labels
from openhcs_stream_napari._model import NapariModelViewer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import Kind
    from openhcs_stream.viewer import Axis, Coords, Question, SceneLayer
    from openhcs_stream_napari._panel import EditPanel

__all__ = ["NapariWindowViewer"]

_log = logging.getLogger(__name__)

_MOST_NBYTES_READ = 1 << 28


class NapariWindowViewer(NapariModelViewer):
    """A napari window; all methods but `stop` and `keep` belong to the GUI thread.

    Parameters
    ----------
    title : str
        Of the window.

    Attributes
    ----------
    canvas_only : bool
        Whether `screenshot` takes the picture alone, or the whole window with its panels.
    """

    def __init__(self, *, title: str = "napari", model: Any = None) -> None:
        self._own = model is None
        if model is None:
            import napari

            from openhcs_stream_napari._unlocked import unlocked_window

            with unlocked_window() as made:
                model = napari.Viewer(title=title, show=True)
                made(model)
            _spare_mesa()
        super().__init__(model)
        self.canvas_only = True
        self._timer: Any = None
        self._waker: Any = None
        self._rest: Any = None
        self._drawn: Any = None
        self._has_news = self._is_drawing = False
        self._ticked_at = self._rested_at = 0.0
        self._loop: Any = None
        self._removed = False
        self._widen_in = 0
        self._panel: EditPanel | None = None
        self._was_edited = False
        #: Layers that are not ours and were looked at.
        self._seen: WeakSet[Any] = WeakSet(model.layers)
        model.dims.events.ndisplay.connect(self._on_ndisplay)
        self._ticking = False
        self._failure: BaseException | None = None
        if self._own:
            self._dock(visible=False)

    @classmethod
    def attach(cls, viewer: Any) -> Self:
        """Show in a napari that runs already: its loop and its window stay its owner's.

        Use `start` and `stop` where `run` would be used; `run` raises.

        Parameters
        ----------
        viewer
            A `napari.Viewer`, or the proxy of one that plugins get.
        """
        # A plugin gets a proxy that hides what is private, and napari's own code needs it.
        return cls(model=getattr(viewer, "__wrapped__", viewer))

    # --- the life-cycle -----------------------------------------------------------------------

    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        if not self._own:
            raise UsageError(
                "this napari belongs to somebody else, who runs its loop.",
                cure="Call start(tick, interval_s), and stop() at the end.",
            )
        from qtpy.QtCore import QEventLoop

        # A loop of our own: after that of the application Qt's objects are gone, and napari's
        # close() raises.
        self._loop = QEventLoop()
        self.start(tick, interval_s)
        try:
            if not self._stopping.is_set():
                self._loop.exec()
        finally:
            self._loop = None
            self.close()
        if self._failure is not None:
            raise self._failure

    def start(self, tick: Callable[[], None], interval_s: float) -> None:
        """Call `tick` from the loop that runs, and return at once.

        It is called every `interval_s` seconds, and sooner when something came: after a rest as
        long as the last tick and its frame took, and half of the interval at least. So what a
        person does is dealt with in between, and many images are drawn as one frame.
        """
        from qtpy.QtCore import Qt, QTimer

        from openhcs_stream_napari._waker import Waker

        if not self._own:
            self._stopping.clear()
        self._failure = None
        self._timer, self._rest, self._drawn = QTimer(), QTimer(), QTimer()
        self._has_news = self._is_drawing = False
        self._timer.setInterval(max(1, round(interval_s * 1000)))
        self._timer.timeout.connect(lambda: self._on_timer(tick))
        self._rest.setSingleShot(True)
        self._rest.setTimerType(Qt.TimerType.PreciseTimer)
        self._rest.timeout.connect(lambda: self._on_timer(tick))
        self._drawn.setSingleShot(True)
        self._drawn.timeout.connect(self._on_drawn)
        self._waker = Waker(self._on_wake)
        self._timer.start()

    def _on_wake(self) -> None:
        self._has_news = True
        self._plan()

    def _plan(self) -> None:
        """Where something came: tick now, or as soon as the rest after the last tick is over."""
        if self._timer is None or not self._has_news or self._is_drawing or self._rest.isActive():
            return
        left_s = self._rested_at - time.monotonic()
        self._rest.start(max(0, math.ceil(1e3 * left_s)))

    def _on_drawn(self) -> None:
        """What the last tick changed is on the screen: Qt draws before it looks at its timers."""
        self._is_drawing = False
        if self._timer is not None:
            interval_s = self._timer.interval() / 1e3
            work_s = time.monotonic() - self._ticked_at
            self._rested_at = self._ticked_at + min(interval_s, max(interval_s / 2, 2 * work_s))
            self._plan()

    def _on_timer(self, tick: Callable[[], None]) -> None:
        if self._ticking:  # an event pass inside a tick
            return
        self._ticking = True
        self._ticked_at = time.monotonic()
        self._has_news = False
        self._is_drawing = True
        if self._timer is not None:
            self._rest.stop()
            self._drawn.start()
            self._timer.start()
        try:
            if self._own and not self._is_open():
                self._stopping.set()
            if not self._stopping.is_set():
                tick()
                self._look_at_hand()
                self.settle()
                self._take_over()
                self._tell_panel()
                self._widen_labels()
                self._fit_view_again()
        # An exception that leaves a Qt slot ends the process: keep it for `run` to raise.
        except BaseException as error:
            if self._own:
                self._failure = error
            else:
                _log.exception("showing what was received failed; the receiver stops")
            self._stopping.set()
        finally:
            self._ticking = False
        if self._stopping.is_set():
            self._end_timer()
            if self._loop is not None:
                self._loop.quit()

    def _is_open(self) -> bool:
        """Whether the person has not closed the window (a minimised one is visible to Qt)."""
        try:
            # napari has no public word for its main window.
            return bool(self.model.window._qt_window.isVisible())  # noqa: SLF001
        except (AttributeError, RuntimeError):  # deleted already
            return False

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called, or an exception ended the ticks."""
        return self._stopping.is_set()

    def close(self) -> None:
        """Stop, and close the window where it is ours. May be called more than once."""
        self._stopping.set()
        self._end_timer()
        self.model.dims.events.ndisplay.disconnect(self._on_ndisplay)
        super().close()
        if self._own:
            self._close_window()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._rest.stop()
            self._drawn.stop()
            self._timer = None

    def _close_window(self) -> None:
        if self.model is None:
            return
        try:
            self.model.close()
        except (RuntimeError, AttributeError) as error:
            # The person, or the end of the application, was faster: nothing is left to close.
            _log.debug("the window was closed already: %s", error)

    # --- corrections --------------------------------------------------------------------------

    def use_panel(self, panel: EditPanel) -> None:
        """Ask and tell in this panel, which stands in somebody else's widget."""
        self._panel = panel
        panel.use(self)

    @property
    def can_ask(self) -> bool:
        return self._own or self._panel is not None

    def show_question(self, question: Question | None) -> None:
        if question is not None:
            self.finish_edits()
            self._go_where(question)
            if self._own:
                self._dock(visible=True)
        if self._panel is not None:
            self._panel.show_question(question)

    def _look_at_hand(self) -> None:
        """Notice a button that was let go of where napari did not see it, as over a dialog."""
        from qtpy.QtCore import Qt
        from qtpy.QtWidgets import QApplication

        if self._hand.is_down and QApplication.mouseButtons() == Qt.MouseButton.NoButton:
            self._hand.is_down = False

    def tell(self, text: str) -> None:
        from napari.utils.notifications import show_info

        super().tell(text)
        if self._panel is not None:
            self._panel.tell(text)
        show_info(text)

    def _dock(self, *, visible: bool) -> None:
        """Have the panel in our window; a person may have closed it, or hidden it."""
        from openhcs_stream_napari._panel import EditPanel

        if self._panel is None:
            self._panel = EditPanel()
            self._panel.use(self)
        if self._panel.parent() is None:
            window = self.model.window
            window.add_dock_widget(
                self._panel,
                name="Corrections",
                area="right",
                menu=window.window_menu,
                add_vertical_stretch=False,
            )
        dock: Any = self._panel.parent()
        dock.setVisible(visible)
        if visible:
            dock.raise_()

    def _tell_panel(self) -> None:
        if self._panel is None or self.receiver is None:
            return
        if self._own and self._panel.parent() is None:  # a person closed it
            self._dock(visible=self._panel.asks)
        waiting = len(self.receiver.edits)
        if self._own and waiting and not self._was_edited:
            self._was_edited = True
            self._dock(visible=True)
        self._panel.show_waiting(waiting, self.n_edited)
        self._panel.show_more(max(0, self.receiver.n_questions - 1))

    def _take_over(self) -> None:
        """Make an empty layer that a person has just added one that follows the sliders.

        napari's own buttons make one that numbers the sliders' steps, which are others when a well
        arrives in front, and labels with a pixel for every place. Only in our own window: layers
        in somebody else's napari are none of our business.
        """
        if not self._own or self.receiver is None or not self._shown:
            return
        for native in list(self.model.layers):
            if native in self._seen or id(native) in self._our_ids():
                continue
            self._seen.add(native)
            kind = _kind_of_empty(native)
            if kind is not None:
                name = native.name
                with self._quiet():
                    self.model.layers.remove(native)
                self._after_removal()
                self.new_layer(kind, name)

    # --- showing ------------------------------------------------------------------------------

    def set_axes(self, axes: tuple[Axis, ...]) -> None:
        super().set_axes(axes)
        self._widen_in = 2  # ticks: Qt lays new sliders out in between

    def _on_ndisplay(self, event: object = None) -> None:
        self._widen_in = 2  # napari has set the labels' width anew

    def _widen_labels(self, *, now: bool = False) -> None:
        """Give the sliders' labels the room that their longest value needs.

        napari gives them a fifth of the first slider's width, at the moment when sliders are made:
        next to none where they are not laid out yet, or where the first is hidden since it has one
        value, and "site: 1" is cut to "sit".
        """
        if not self._widen_in:
            return
        self._widen_in = 0 if now else self._widen_in - 1
        if self._widen_in:
            return
        try:
            # napari has no public word for its sliders.
            sliders = self.model.window._qt_viewer.dims.slider_widgets  # noqa: SLF001
        except AttributeError:
            return
        longest = [self._longest_label(axis) for axis in self._view.axes]
        shown = [slider for slider in sliders if slider.isVisible()]
        for slider in shown:
            label = slider.axis_label
            metrics = label.fontMetrics()
            width = max(metrics.horizontalAdvance(text) for text in [label.text(), *longest])
            room = width + 4 * metrics.averageCharWidth()
            label.setFixedWidth(min(room, max(slider.width() // 3, 48)))

    @staticmethod
    def _longest_label(axis: Axis) -> str:
        return (
            f"{axis.component}: {max((str(value) for value in axis.values), key=len, default='')}"
        )

    def screenshot(self) -> npt.NDArray[np.uint8]:
        self._pass_events()  # layers that were added in this tick are drawn
        if self._widen_in:
            self._widen_labels(now=True)
            self._pass_events()
        picture: npt.NDArray[np.uint8] = self.model.screenshot(
            canvas_only=self.canvas_only, flash=False
        )
        return picture

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "window": True}

    def poke(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _after_removal(self) -> None:
        self._removed = True

    def _add(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        if self._removed:
            # A layer that is added before the removed ones are let go of can crash the process in
            # glDrawArrays (Mesa's software renderer). Once, and not after each removal: to draw
            # what is left in between crashes too.
            self._removed = False
            self._pass_events()
        super()._add(layer, arrived)
        self._mend_new_button(layer)

    def _mend_new_button(self, layer: SceneLayer) -> None:
        """Have napari's button for a new label work: its own way needs a layer of one array."""
        from qtpy.QtWidgets import QPushButton

        shown = self._shown[layer.key]
        if not isinstance(shown, Labels):
            return
        try:
            # napari has no public word for a layer's controls.
            controls = self.model.window._qt_viewer.controls.widgets[shown.native]  # noqa: SLF001
            button = controls.findChild(QPushButton, "newLabelButton")
            button.clicked.disconnect()
        except (AttributeError, KeyError, TypeError) as error:
            _log.debug("this napari has no such button: %r", error)
            return
        button.clicked.connect(shown.take_new_label)

    def _pass_events(self) -> None:
        from qtpy.QtCore import QEventLoop
        from qtpy.QtWidgets import QApplication

        ticking, self._ticking = self._ticking, True
        try:
            # Without the person's input: a click must not run while layers are being changed.
            QApplication.processEvents(QEventLoop.ProcessEventsFlag.ExcludeUserInputEvents)
        finally:
            self._ticking = ticking


def _kind_of_empty(native: Any) -> Kind | None:
    """What a layer without anything in it is for; None: it has something, or is none to draw in."""
    from napari.layers import Labels, Points, Shapes

    match native:
        case Shapes() if native.nshapes == 0:
            return "rois"
        case Points() if len(native.data) == 0:
            return "points"
        case Labels() if isinstance(native.data, np.ndarray) and _is_empty(native.data):
            return "labels"
        case _:
            return None


def _is_empty(labels: npt.NDArray[Any]) -> bool:
    """Whether there is no label; of very many pixels, which would take a while, one plane tells."""
    if labels.nbytes > _MOST_NBYTES_READ:
        labels = labels[(0,) * (labels.ndim - 2)]
    return not labels.any()


def _spare_mesa() -> None:
    """Keep Mesa's software renderer from crashing when layers are removed.

    There (22.3, "llvmpipe") to draw after a shader program was deleted can end in a segmentation
    fault: draw labels and points, clear, draw images, remove one, draw: 5 of 5 runs; with the
    programs kept: none. So programs are not deleted, in a viewer process of our own: each removed
    layer leaves some kilobytes behind. Renderers of graphics cards are left alone.
    """
    from importlib import import_module

    # By name: vispy has no types.
    app, gloo, glir = map(import_module, ("vispy.app", "vispy.gloo", "vispy.gloo.glir"))

    canvas = app.Canvas(show=False)
    try:
        canvas.set_current()
        renderer = str(gloo.gl.glGetParameter(gloo.gl.GL_RENDERER))
    finally:
        canvas.close()
    if renderer.startswith("llvmpipe"):
        glir.GlirProgram.delete = lambda self: None
