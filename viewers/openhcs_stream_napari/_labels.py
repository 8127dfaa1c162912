"""Labels: images of whole numbers, which a person may paint in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.viewer import Painting
from openhcs_stream_napari._array import LayerArray
from openhcs_stream_napari._hand import drop_drag
from openhcs_stream_napari._images import MULTISCALE_PX, Raster

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from openhcs_stream.viewer import Axis, Coords, Patch, PlaneStack, SceneLayer
    from openhcs_stream_napari._shown import Shown, View

__all__ = ["Labels", "paintings"]


class Labels(Raster):
    EXACT = True

    def _make(self, view: View, arrived: Sequence[Coords], others: Iterable[Shown]) -> Any:
        from napari.layers import Labels as Native

        #: What was painted since it was last reported.
        self._patches: list[Patch] = []
        #: Where napari could undo something.
        self._undoable: set[Coords] = set()
        self._axes = view.axes
        self._refuse_floats()
        self._levels = self._count_levels()
        if self._levels > 1:
            self.notice = (
                f"{self.layer.title}: labels of {MULTISCALE_PX} pixels or more can't be painted in."
            )
        native = Native(
            self._data(),
            multiscale=self._levels > 1,
            **self._common(view, opacity=0.6, blending="translucent"),
            **self._geometry(view),
        )
        native.bind_key("M", self.take_new_label, overwrite=True)
        return native

    def _level(self, stack: PlaneStack, stride: int) -> LayerArray:
        # napari paints in no pyramid, and what is only shown need not be copied.
        if self._levels > 1:
            return super()._level(stack, stride)
        return LayerArray(stack, on_write=self._on_write)

    def fit(self, view: View) -> bool:
        self._refuse_floats()
        if not _only_grew(self._axes, view.axes):
            self._forget_undo()  # it counts planes, which have other numbers now
        self._axes = view.axes
        return super().fit(view)

    def update(self, view: View, arrived: Sequence[Coords]) -> None:
        self._refuse_floats()
        self.gone(arrived)
        super().update(view, arrived)

    def gone(self, places: Sequence[Coords]) -> None:
        super().gone(places)
        self.finish()
        if not self._undoable.isdisjoint(places):
            # What was painted there is gone, and undo must not bring its pixels back.
            drop_drag(self.native)
            self._forget_undo()

    # --- painting -------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        # napari has no public word for a stroke that goes on between two presses of a button.
        return bool(self.native._block_history)  # noqa: SLF001

    def finish(self) -> None:
        patches, self._patches = self._patches, []
        for painting in paintings(self.layer, patches):
            self.view.report(painting)

    def _on_write(self, patches: list[Patch]) -> None:
        self._patches += patches
        self._undoable.update(patch.coords for patch in patches)
        self._touched()

    def _forget_undo(self) -> None:
        if self._undoable:
            self._undoable.clear()
            self.native._reset_history()  # noqa: SLF001 - napari has no public word for it

    def take_new_label(self, _: object = None) -> None:
        """Select a number that no label of the layer has: napari's own way needs one array."""
        from napari.layers.labels.labels import WrongSelectedLabelError
        from napari.utils.notifications import show_info

        planes = self.layer.stack.planes.values()
        number = 1 + max((int(np.max(plane, initial=0)) for plane in planes), default=0)
        try:
            self.native.selected_label = number
        except WrongSelectedLabelError:
            show_info(f"{self.native.dtype} holds no number above {number - 1}.")

    def _refuse_floats(self) -> None:
        dtype = self.layer.stack.dtype
        if dtype.kind not in "biu" or self.layer.stack.rgb:
            kind = "colour" if self.layer.stack.rgb else str(dtype)
            raise InvalidItem(
                f"labels {self.layer.title!r} are {kind}; napari's labels are whole numbers.",
                cure="Send labels.astype('uint32'), or send it as an image.",
            )


def paintings(layer: SceneLayer, patches: Sequence[Patch]) -> Iterator[Painting]:
    """Tell what patches, in the order in which they were written, changed: plane by plane.

    Each painting is the smallest region around the pixels that differ.
    """
    by_plane: dict[tuple[Coords, int], list[Patch]] = {}
    for patch in patches:
        by_plane.setdefault((patch.coords, id(patch.plane)), []).append(patch)
    for (coords, _), written in by_plane.items():
        plane = written[0].plane
        before = plane.copy()
        for patch in reversed(written):
            before[patch.region] = patch.before
        rows, columns = (
            slice(min(map(min, spans)), max(map(max, spans)) + 1)
            for spans in zip(*(_spans(patch) for patch in written), strict=True)
        )
        differ = np.argwhere(before[rows, columns] != plane[rows, columns])
        if len(differ):
            origin = np.array([rows.start, columns.start])
            top, left = (origin + differ.min(axis=0)).tolist()
            bottom, right = (origin + differ.max(axis=0) + 1).tolist()
            part = (slice(top, bottom), slice(left, right))
            yield Painting(layer, coords, top, left, before[part].copy(), plane[part].copy())


def _spans(patch: Patch) -> list[range]:
    """Rows and columns that a patch may have changed."""
    return [
        range(length)[part] for length, part in zip(patch.plane.shape, patch.region, strict=True)
    ]


def _only_grew(before: tuple[Axis, ...], after: tuple[Axis, ...]) -> bool:
    """Whether every value still has the number on its slider that it had."""
    return len(before) == len(after) and all(
        old.component == new.component and new.values[: len(old.values)] == old.values
        for old, new in zip(before, after, strict=True)
    )
