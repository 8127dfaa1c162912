"""The half of a napari viewer that deals with what a person does; the other half shows."""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openhcs_stream.errors import UsageError
from openhcs_stream.messages import LayerSpec
from openhcs_stream.viewer import Arrival, Placement, Viewer, save_places

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from openhcs_stream.messages import Kind, PlaceValue
    from openhcs_stream.viewer import Change, Coords, LayerKey, Painting, Question, SceneLayer
    from openhcs_stream_napari._hand import Hand
    from openhcs_stream_napari._shown import Shown, View

__all__ = ["Corrections"]

_log = logging.getLogger(__name__)


class Corrections(Viewer):
    """Finds out what a person changed, reports and saves it, and goes where a question is about."""

    reads_files: ClassVar[bool] = True

    #: The `napari.components.ViewerModel` (or `napari.Viewer`) that is shown in.
    model: Any
    _hand: Hand
    _view: View
    _shown: dict[LayerKey, Shown]
    #: Places that a person changed, in the order in which they did.
    _edited: dict[tuple[LayerKey, Coords], None]

    @abstractmethod
    def go_to(self, **place: PlaceValue) -> None:
        """Move the sliders to values."""

    @abstractmethod
    def native_layer(self, layer: SceneLayer) -> Any:
        """The napari layer that shows `layer`, or None."""

    @abstractmethod
    def _quiet(self) -> AbstractContextManager[None]:
        """While we change things ourselves, napari's events are not the person's doing."""

    @abstractmethod
    def _write_place(self) -> None:
        """Say in words where the sliders stand, and what is to be known."""

    def settle(self) -> None:
        """Report what a person has finished, and draw what the camera came to; once a tick."""
        self._finish(self._hand.finished())
        for shown in list(self._shown.values()):
            try:
                with self._quiet():
                    looked = shown.look()
            except Exception:
                # Neither the other layers nor what arrives must end with it.
                _log.exception("what is in view of %s can't be drawn", shown.layer.title)
            else:
                if looked:
                    self._write_place()

    def finish_edits(self) -> None:
        # What the mouse drags just now is reported when it is let go of.
        if not self._hand.is_down:
            self._finish([each for each in self._shown.values() if not each.is_busy])

    def finish_drawing(self) -> None:
        """Report everything, also what is drawn by half: the person says that it is done."""
        with self._quiet():
            for shown in self._shown.values():
                shown.finish_drawing()
        self._finish(list(self._shown.values()))

    def _go_where(self, question: Question) -> None:
        """Show what a question is about: its place, as far as there are such sliders; its layer."""
        known = {axis.component: axis.values for axis in self._view.axes}
        place = {c: value for c, value in question.place.items() if value in known.get(c, ())}
        if place:
            self.go_to(**place)
        for shown in self._shown.values():
            split = dict(shown.layer.key.split)
            if shown.layer.key.name in question.names and all(
                question.place.get(component, value) == value for component, value in split.items()
            ):
                native = self.native_layer(shown.layer)
                if native is not None:
                    native.visible = True
                    self.model.layers.selection.active = native
                    return

    def tell(self, text: str) -> None:
        """Say something to the person; here, to whoever reads the log."""
        _log.info("%s", text)

    def _report(self, change: Change | Painting) -> None:
        self._edited.setdefault((change.layer.key, change.coords))
        self.report_edit(change)

    @property
    def n_edited(self) -> int:
        """At how many places something was changed."""
        return len(self._edited)

    def save(self, folder: Path | str, *, everything: bool = False) -> list[Path]:
        """Write what stands now to a folder: see `openhcs_stream.viewer.save_places`.

        Parameters
        ----------
        folder : path
            Is made where it does not exist.
        everything : bool
            All outlines, labels and points, and not only places that a person changed.

        Raises
        ------
        UsageError
            The folder can't be written to.
        """
        self.finish_drawing()
        layers = {key: shown.layer for key, shown in self._shown.items()}
        chosen = (
            [(layer, coords) for layer in layers.values() for coords in layer.places]
            if everything
            else [(layers[key], coords) for key, coords in self._edited if key in layers]
        )
        return save_places(folder, chosen)

    def new_layer(self, kind: Kind, name: str = "") -> SceneLayer:
        """Make an empty layer for a person to draw in; workers can read it by its name.

        It has all sliders that there are, and the source "".

        Parameters
        ----------
        kind : str
            "rois", "points" or "labels".
        name : str
            By default "outlines", "points" or "labels", numbered where that is taken.

        Raises
        ------
        UsageError
            No receiver serves this viewer.
        """
        if self.receiver is None:
            raise UsageError(
                "no receiver serves this viewer.", cure="Start receiving, then add the layer."
            )
        scene = self.receiver.scene
        taken = {key.name for key in scene.layers}
        base = name or {"rois": "outlines"}.get(kind, kind)
        names = itertools.chain((base,), (f"{base} {number}" for number in itertools.count(2)))
        components = tuple(axis.component for axis in self._view.axes)
        like = next((x.layer for x in self._shown.values() if x.layer.kind == "image"), None)
        spec = LayerSpec(
            kind=kind,
            name=next(each for each in names if each not in taken),
            axes="" if kind == "rois" else "YX",
            components=components,
            modes=dict.fromkeys(components, "stack"),
            pixel_size=like.spec.pixel_size[-2:] if like else (),
            unit=like.spec.unit if like else "",
        )
        payload: Any = []
        if kind == "points":
            payload = np.zeros((0, 2))
        elif kind == "labels":
            payload = np.zeros(like.stack.plane_shape[:2] if like else (512, 512), np.uint16)
        placed = Placement(spec, splits=self.splits).place(
            tuple(self._view.here[component] for component in components), payload
        )
        changes = scene.commit([Arrival(None, placed)])
        for key, coords in changes.layers.items():
            self.show_layer(scene.layers[key], coords)
            layer = scene.layers[key]
        native = self.native_layer(layer)
        self.model.layers.selection.active = native
        return layer

    def _before_press(self) -> None:
        self._finish(self._hand.finished(early=True))

    def _finish(self, layers: Iterable[Shown]) -> None:
        for shown in layers:
            try:
                with self._quiet():
                    shown.finish()
            except Exception:
                # The other layers' edits must not be lost with it.
                _log.exception("what was changed in %s can't be told", shown.layer.title)
