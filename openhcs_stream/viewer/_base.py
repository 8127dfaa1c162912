"""What a viewer is: a thin adapter that shows layers. Where things go is decided outside of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openhcs_stream.pixels import Copier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec, Mode, PlaceValue
    from openhcs_stream.viewer._edits import Change, Painting
    from openhcs_stream.viewer._questions import Question
    from openhcs_stream.viewer._scene import Axis, Coords, SceneLayer
    from openhcs_stream.viewer._serve import Receiver

__all__ = ["Viewer"]


class Viewer(ABC):
    """One running viewer: napari, Fiji, or a plain memory.

    Two threads call it. The *receiver's* thread calls `keep` only. The *viewer's own* thread (the
    GUI thread where there is a GUI) calls everything else; it is the thread that is inside `run`.
    Life-cycle: `run` is entered; ticks happen; `stop` is called from any thread; `run` returns.
    """

    #: The registered name: "napari".
    name: ClassVar[str]
    #: Component modes that make a layer or window for each value; the others make sliders.
    splits: ClassVar[frozenset[Mode]] = frozenset({"split", "channel"})
    #: Whether it deals with items as they come, by `take_item`. Nothing is then placed or shown.
    takes_items: ClassVar[bool] = False

    #: Whether it can show what `FileImage` gives: planes that are read when they are looked at.
    reads_files: ClassVar[bool] = False

    #: Copies what comes, with a second thread's help where a receiver has set one that has it.
    copier: Copier = Copier()

    # --- the life-cycle, in order -------------------------------------------------------------

    @abstractmethod
    def run(self, tick: Callable[[], None], interval_s: float) -> None:
        """Own this thread until `stop`: show the window, call `tick` every `interval_s` seconds.

        An exception from `tick` ends `run` and is raised from it.
        """

    @abstractmethod
    def stop(self) -> None:
        """Make `run` return soon. Callable from any thread, more than once."""

    # --- showing ------------------------------------------------------------------------------

    @abstractmethod
    def set_axes(self, axes: tuple[Axis, ...]) -> None:
        """The sliders changed: a component or a value was added.

        `axes` are all stacked components, slowest first, without the array's own Y and X. It is
        called before the layers of the same tick. Where the user was looking must stay in view.
        """

    @abstractmethod
    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        """Add `layer`, or update it: the data at `arrived` is new or was replaced.

        Raises
        ------
        Exception
            Anything: the items that arrived in this layer are reported failed with its text, and
            the other layers are shown.
        """

    @abstractmethod
    def remove_layer(self, layer: SceneLayer) -> None:
        """Take a layer off the screen; silently nothing where a user did so before."""

    @abstractmethod
    def screenshot(self) -> npt.NDArray[np.uint8]:
        """What is on the screen: (Y, X, 4) uint8, RGBA.

        Raises
        ------
        UsageError
            This viewer has no screen.
        """

    # --- optional -----------------------------------------------------------------------------

    def keep(self, pixels: npt.NDArray[Any], recycled: Any, spec: LayerSpec) -> Any:
        """Copy an item's pixels to where they will stand; runs on the receiver's thread.

        Parameters
        ----------
        pixels : ndarray, read-only
            The whole item as (sliders..., Y, X), and S last where ``spec.axes`` has it: a view of
            shared memory that is given back when this returns. In C order, unless ``spec.axes``
            names another order.
        recycled : object or None
            What an earlier call returned for the same place, shape and dtype; it is being
            replaced and may be written over.
        spec : LayerSpec
            What the item's layer was declared to be.

        Returns
        -------
        object
            An array, or whatever this viewer's `SceneLayer.stack` readers understand: something
            of the same ``shape``, which gives its planes when it is indexed with integers for all
            sliders. A plane has ``shape``, ``dtype``, ``nbytes`` and ``__array__``.

        Raises
        ------
        Exception
            Anything: the item is reported failed with its text.
        """
        is_fresh = recycled is None
        kept = np.empty(pixels.shape, pixels.dtype) if is_fresh else recycled
        self.copier.copy(kept, pixels, is_fresh=is_fresh)
        return kept

    def adopt(self, pixels: npt.NDArray[Any], spec: LayerSpec) -> Any:
        """As `keep`, for an array that is private already and need not be copied."""
        return pixels

    def take_item(
        self,
        sender: str,
        spec: LayerSpec,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        info: Mapping[str, Any],
    ) -> None:
        """Deal with one item as it came, where `takes_items`; runs on the receiver's thread.

        Parameters
        ----------
        sender : str
            What its worker calls itself.
        spec : LayerSpec
            What the item's layer was declared to be.
        place : tuple
            A value for each of ``spec.components``.
        array : ndarray, read-only
            Its bytes: of images and labels the array, of rois an encoded block, of points and
            tracks a table. It is given back when this returns.
        info : mapping
            Its metadata.

        Raises
        ------
        Exception
            Anything: the item is reported failed with its text.
        """
        raise NotImplementedError

    def places_gone(self, layer: SceneLayer, gone: Sequence[Coords]) -> None:
        """Places were taken out of a layer, to make room; some are left, and the sliders are set.

        By default the layer is taken off the screen and shown anew.
        """
        self.remove_layer(layer)
        self.show_layer(layer, list(layer.places))

    def poke(self) -> None:  # noqa: B027 - a hook, not a duty
        """Something came; called on the receiver's thread, often.

        A viewer with a display rate waits for its next tick, as this does; one without may tick
        at once.
        """

    # --- what a person does, on the viewer's own thread ---------------------------------------

    #: Who serves this viewer: its scene, and the edits and questions that wait. Set before `run`.
    receiver: Receiver | None = None

    _edit_sink: Callable[[Change | Painting], None] | None = None

    def watch_edits(self, sink: Callable[[Change | Painting], None]) -> None:
        """Have `report_edit` call `sink`; the receiver does this once, before `run`."""
        self._edit_sink = sink

    def report_edit(self, change: Change | Painting) -> None:
        """Tell what a person has changed: once when it is finished, not while the mouse drags.

        For a list of ROIs or points the whole list as it is now; the receiver finds out what was
        added, changed, renamed and removed, and puts it into ``layer.items``. Call it before new
        data of the same place is shown.
        """
        if self._edit_sink is not None:
            self._edit_sink(change)

    def finish_edits(self) -> None:  # noqa: B027 - a hook, not a duty
        """Report now what would be reported soon: somebody wants to know how things stand."""

    def own_tracks(self) -> Mapping[str, npt.NDArray[Any]]:
        """Tracks that the person or a plugin made and no worker sent, by the name of their layer.

        Each is a table (N, 4) or (N, 5): the track's number, time, (z,) y, x. It is copied.
        """
        return {}

    @property
    def can_ask(self) -> bool:
        """Whether a person can answer `show_question`."""
        return False

    def show_question(self, question: Question | None) -> None:
        """Show a worker's question with Done and Skip, in place of the one before; None: none.

        The sliders go where the question's place says. ``question.answer`` is called with what
        the person chose.
        """
        raise NotImplementedError(f"{self.name} can ask and does not say how")

    def name_values(self, names: Mapping[str, Mapping[str, str]]) -> None:  # noqa: B027 - a hook
        """Some values have names from now on: ``{"channel": {"1": "DAPI"}}``.

        Called before the layers of the same tick are shown. An item's own names are in
        ``SceneLayer.infos`` as well: ``{"channel name": "DAPI"}``.
        """

    def describe(self) -> dict[str, Any]:
        """More about this viewer for `openhcs-stream status`: JSON-able."""
        return {}
