"""The shapes in a napari layer, which ROI each of them shows, and what a person made of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois import follow_napari, from_napari
from openhcs_stream_napari._shape import (
    STROKE,
    Shape,
    can_fill,
    fills_are_cheap,
    forget_dump,
    hex_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from openhcs_stream.rois import Roi

__all__ = ["Reading", "Sheet"]

_log = logging.getLogger(__name__)

#: napari makes a new object of a shape that gets a vertex which its type can't have.
_TURNS_INTO = {("rectangle", "polygon"), ("line", "path")}
#: Among more shapes than these such a one is not looked for.
_MOST_TURNED = 64


@dataclass(slots=True)
class _Entry:
    """One ROI and the shape that shows it, as that was when nobody had touched it."""

    at: int  #: where in the list
    roi: Roi
    shape: Any  #: napari's own object: the same while it is moved, reshaped and recoloured
    type: str
    data: npt.NDArray[Any]
    stroke: bytes
    fill: bytes
    width: float


@dataclass(slots=True)
class Reading:
    """What the list is now.

    Attributes
    ----------
    kept : dict of int to Roi
        Of each place in the list that is shown: the very object where nobody touched it.
    removed : set of int
        Places in the list of what is not there any more.
    added : list of Roi
    lost : list of str
        What of a ROI could not be kept.
    is_stale : bool
        napari shows something else than it would be given now.
    """

    kept: dict[int, Roi] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    added: list[Roi] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    is_changed: bool = False
    is_stale: bool = False


class Sheet:
    """One napari shapes layer.

    Parameters
    ----------
    native : napari.layers.Shapes
    title : str
        For messages.
    width : float
        Of strokes that have none of their own, pixels.
    """

    def __init__(self, native: Any, title: str, width: float) -> None:
        self._native = native
        self._title = title
        self.width = width
        self._entries: list[_Entry] = []

    # --- to napari ------------------------------------------------------------------------------

    def fill(self, rois: Sequence[tuple[int, Roi]]) -> None:
        """Show these ROIs, each with its place in the list, and nothing else."""
        native = self._native
        native.selected_data = set()
        native.current_edge_width = self.width
        if native.nshapes:
            native.data = []
        if rois:
            filled, faces = fills_are_cheap(), can_fill(roi for _, roi in rois)
            if not faces:
                _log.info("%s: too much to fill: areas are drawn as outlines", self._title)
            try:
                self._add(
                    [Shape.of(roi, self.width, filled=filled, faces=faces) for _, roi in rois]
                )
            except RuntimeError as error:
                # napari could not cut a polygon into triangles, as one that crosses itself. One
                # such must not take the others with it: draw outlines alone, which can't fail.
                forget_dump(str(error))
                _log.info("%s: areas are drawn as outlines: %s", self._title, error)
                native.data = []
                self._add([Shape.of(roi, self.width, filled=False, faces=False) for _, roi in rois])
        self._take_note(rois)

    def _add(self, shapes: Sequence[Shape]) -> None:
        self._native.add(
            [shape.data for shape in shapes],
            shape_type=[shape.type for shape in shapes],
            edge_width=[shape.width for shape in shapes],
            edge_color=[shape.edge for shape in shapes],
            face_color=[shape.face for shape in shapes],
        )

    def _take_note(self, rois: Sequence[tuple[int, Roi]]) -> None:
        """Remember how each shape looks, in napari's own numbers; name them."""
        native = self._native
        self._entries = [
            _Entry(at, roi, shape, type_, data.copy(), stroke.tobytes(), fill.tobytes(), width)
            for (at, roi), shape, type_, data, stroke, fill, width in zip(
                rois, self._shapes(), native.shape_type, native.data, native.edge_color,
                native.face_color, native.edge_width, strict=True,
            )
        ]  # fmt: skip
        names, kinds = [roi.name for _, roi in rois], [roi.kind for _, roi in rois]
        if not all(_column(native, key) == now for key, now in (("name", names), ("kind", kinds))):
            columns = {"name": names, "kind": kinds}
            native.features = {key: np.array(now, object) for key, now in columns.items()}
        # Else what is drawn next would have the last one's name.
        native.feature_defaults = {"name": "", "kind": ""}

    def _shapes(self) -> list[Any]:
        # napari has no public word for what tells its shapes apart.
        return list(self._native._data_view.shapes)  # noqa: SLF001

    def rebase(self, order: Sequence[Roi], places: dict[int, int]) -> None:
        """Take what was read for what is shown from now on.

        Parameters
        ----------
        order : sequence of Roi
            The whole list, as it is now: those that were added are at its end.
        places : dict of int to int
            Where each place of the list before is now.
        """
        known = {id(each.shape): each for each in self._entries}
        shapes = self._shapes()
        n_added = sum(id(shape) not in known for shape in shapes)
        added = iter(range(len(order) - n_added, len(order)))
        rois = []
        for shape in shapes:
            entry = known.get(id(shape))
            at = next(added) if entry is None else places[entry.at]
            rois.append((at, order[at]))
        self._take_note(rois)

    def is_renamed(self) -> bool:
        """Whether a name in napari's table is not the one that was put there."""
        names = self._names()
        return names is not None and names != [entry.roi.name for entry in self._entries]

    # --- from napari ----------------------------------------------------------------------------

    def read(self) -> Reading:
        """Tell what a person has done since napari was filled, or `rebase` was called."""
        native, reading = self._native, Reading()
        shapes, types, data = self._shapes(), native.shape_type, native.data
        strokes, fills = native.edge_color, native.face_color
        widths, names = native.edge_width, self._names()
        # napari forgets to remove the colours and the name of a shape that lost its last vertices.
        knows_looks = len(strokes) == len(fills) == len(shapes)
        reading.is_stale = not knows_looks or (names is None and bool(shapes))
        entries = self._matched(shapes, types, data)
        for number, entry in enumerate(entries):
            look: dict[str, Any] = {}
            if names is not None:
                look["name"] = names[number]
            if knows_looks:
                stroke, fill = strokes[number], fills[number]
                if entry is None or stroke.tobytes() != entry.stroke:
                    look["stroke_color"] = hex_of(stroke)
                if entry is None or fill.tobytes() != entry.fill:
                    look["fill_color"] = hex_of(fill) if fill[3] else ""
            if entry is None or widths[number] != entry.width:
                look["stroke_width"] = float(widths[number])
            if entry is None:
                self._read_new(reading, types[number], data[number], look)
            else:
                self._read_known(reading, entry, types[number], data[number], look)
                if entry.shape is not shapes[number]:
                    entry.shape = shapes[number]
        there = {entry.at for entry in entries if entry is not None}
        reading.removed = {entry.at for entry in self._entries if entry.at not in there}
        reading.is_changed |= bool(reading.removed or reading.added)
        return reading

    def _names(self) -> list[str] | None:
        names = _column(self._native, "name")
        if names is None or len(names) != self._native.nshapes:
            return None
        # What a person left empty in the table is no text.
        return [str(name) if isinstance(name, str) else "" for name in names]  # numpy's too

    def _read_known(
        self, reading: Reading, entry: _Entry, type_: str, data: Any, look: dict[str, Any]
    ) -> None:
        roi = entry.roi
        try:
            made, lost = follow_napari(roi, entry.type, entry.data, type_, data)
        except InvalidItem as error:
            _log.info("%s: an edit of %r is undone: %s", self._title, roi.name, error)
            made, lost, reading.is_stale = roi, "", True
        if lost:
            reading.lost.append(f"{roi.kind} {roi.name!r}: {lost}" if roi.name else lost)
        if made is not roi and not Shape.of(made, self.width, filled=True).looks_like(data):
            reading.is_stale = True
        if made == roi:
            made = roi
        look = {name: value for name, value in look.items() if getattr(made, name) != value}
        if look:
            made = made.replace(**look)
        reading.kept[entry.at] = made
        reading.is_changed |= made is not roi

    def _read_new(self, reading: Reading, type_: str, data: Any, look: dict[str, Any]) -> None:
        for entry in self._entries:
            if (
                entry.type == type_
                and entry.roi.name == look.get("name")
                and np.array_equal(entry.data, data)
            ):
                reading.added.append(entry.roi)  # it was copied and pasted
                return
        # What a shape has because nobody chose is no colour and no width of its own.
        if look.get("stroke_color") == STROKE:
            del look["stroke_color"]
        if look.get("stroke_width") == self.width:
            del look["stroke_width"]
        try:
            reading.added.append(from_napari(type_, data).replace(**look))
        except InvalidItem as error:
            reading.lost.append(f"a {type_} that was drawn can't be kept: {error.what}")
            reading.is_stale = True

    def _matched(
        self, shapes: Sequence[Any], types: Sequence[str], data: Sequence[npt.NDArray[Any]]
    ) -> list[_Entry | None]:
        """Which of the ROIs each shape shows; None: a person added it."""
        known = {id(entry.shape): entry for entry in self._entries}
        found = [known.get(id(shape)) for shape in shapes]
        left = _without(self._entries, found)
        unknown = [number for number, entry in enumerate(found) if entry is None]
        if not left or not unknown:
            return found
        if len(unknown) == len(shapes) == len(self._entries):  # all were made anew, as by a script
            return list(self._entries)
        same = {(entry.type, entry.data.tobytes()): entry for entry in reversed(left)}
        for number in unknown:
            found[number] = same.pop((types[number], data[number].tobytes()), None)
        left = _without(left, found)
        unknown = [number for number in unknown if found[number] is None]
        if max(len(left), len(unknown)) <= _MOST_TURNED:
            for number in unknown:
                for entry in left:
                    if (entry.type, types[number]) in _TURNS_INTO and (
                        _common_rows(entry.data, data[number]) >= len(entry.data) - 1
                    ):
                        found[number] = entry
                        left.remove(entry)
                        break
        return found


def _column(native: Any, name: str) -> list[Any] | None:
    return list(native.features[name]) if name in native.features else None


def _without(entries: Iterable[_Entry], found: Iterable[_Entry | None]) -> list[_Entry]:
    taken = {id(entry) for entry in found}
    return [entry for entry in entries if id(entry) not in taken]


def _common_rows(some: npt.NDArray[Any], others: npt.NDArray[Any]) -> int:
    there = {row.tobytes() for row in others}
    return sum(row.tobytes() in there for row in some)
