"""One change that a person made in a viewer, as a worker gets it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.pixels import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.messages import EditAction, EditRecord, Kind, PlaceValue

__all__ = ["Edit"]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What a person did in one layer, at one place.

    Attributes
    ----------
    action : "added", "changed", "removed", "renamed" or "painted"
        Changed is moved, reshaped or recoloured.
    kind : "rois", "points" or "labels"
    name : str
        Of the layer.
    source : str
        Of the layer: plate, pipeline or step.
    place : dict of component to value
        {"well": "A01", "z": 3}; of labels that were sent as a stack, the plane that was painted.
    before, after : list of Roi, (N, D) float64, or (height, width) array
        Of rois and points, those that were changed, one for one; nothing before what was added,
        nothing after what was removed. Of labels, the pixels of `region`.
    indices : tuple of int
        Where in the list each of them stood before; of added ones, where it stands now.
    region : tuple of two slices
        Of labels: rows and columns that were painted, ``labels[edit.region] = edit.after``.
    who : str
        The user whose viewer it is.
    viewer : str
        Name of the viewer: "napari".
    time : datetime
        When it was finished, in UTC.
    number : int
        Of the edit in its viewer, counting up.
    """

    action: EditAction
    kind: Kind
    name: str
    source: str
    place: Mapping[str, PlaceValue]
    before: Any
    after: Any
    indices: tuple[int, ...]
    region: tuple[slice, ...]
    who: str
    viewer: str
    time: datetime
    number: int

    @classmethod
    def of_record(cls, record: EditRecord, viewer: str) -> Edit:
        """Read what a viewer told.

        Raises
        ------
        ProtocolViolation
            Its parts contradict each other.
        """
        region: tuple[slice, ...] = ()
        if record.kind == "rois":
            from openhcs_stream import rois as roi_codecs

            before: Any = roi_codecs.decode(record.before)
            after: Any = roi_codecs.decode(record.after)
        elif record.kind == "labels":
            if len(record.region) != 4:
                raise ProtocolViolation(f"edit {record.number} has the region {record.region}.")
            top, left, height, width = record.region
            region = (slice(top, top + height), slice(left, left + width))
            before = _array(record, record.before, (height, width), record.dtype)
            after = _array(record, record.after, (height, width), record.dtype)
        else:
            before = _array(record, record.before, (-1, record.columns), "<f8")
            after = _array(record, record.after, (-1, record.columns), "<f8")
        return cls(
            record.action, record.kind, record.name, record.source, dict(record.place), before,
            after, record.indices, region, record.who, viewer,
            datetime.fromtimestamp(record.time_s, UTC), record.number,
        )  # fmt: skip

    def apply(self, to: Any) -> Any:
        """Do to your own data what the person did to what was shown.

        Parameters
        ----------
        to : list of Roi, (N, D) array, or (Y, X) array
            What the place held before this edit: ROIs or points in the order in which they were
            sent, with the edits before this one applied; or the plane of labels.

        Returns
        -------
        list, or array
            A corrected copy; labels in their own dtype.

        Raises
        ------
        InvalidItem
            This edit does not fit: the list is shorter, or the plane smaller, than what was shown.
        """
        if self.kind == "labels":
            return self._paint(np.asarray(to))
        entries = list(to)
        if self.action == "added":
            for at, entry in zip(self.indices, self.after, strict=True):
                entries.insert(min(at, len(entries)), entry)
        else:
            if self.indices and max(self.indices) >= len(entries):
                raise InvalidItem(
                    f"an edit of entry {max(self.indices)} of {self.kind} {self.name!r} does not "
                    f"fit a list of {len(entries)}.",
                    cure="Apply all edits of a place, in order, to what was sent for it.",
                )
            if self.action == "removed":
                gone = set(self.indices)
                entries = [entry for at, entry in enumerate(entries) if at not in gone]
            else:
                for at, entry in zip(self.indices, self.after, strict=True):
                    entries[at] = entry
        if self.kind == "rois":
            return entries
        width = self.before.shape[1] if len(self.before) else self.after.shape[1]
        return np.array(entries, dtype=np.float64).reshape(-1, width)

    def _paint(self, labels: Any) -> Any:
        rows, columns = self.region
        if labels.ndim != 2 or rows.stop > labels.shape[0] or columns.stop > labels.shape[1]:
            raise InvalidItem(
                f"an edit of rows {rows.start} to {rows.stop}, columns {columns.start} to "
                f"{columns.stop} does not fit labels of shape {labels.shape}.",
                cure=f"Apply it to the plane at {dict(self.place)}.",
            )
        corrected = labels.copy()
        corrected[self.region] = self.after
        return corrected

    def __str__(self) -> str:
        at = ", ".join(f"{component} {value}" for component, value in self.place.items())
        what = f"{self.kind} {self.name!r}"
        if self.kind == "labels":
            count = int(np.count_nonzero(self.before != self.after))
            what = f"{count} pixels of {what}"
        elif self.indices:
            what = f"{len(self.indices)} of {what}"
        return f"{self.action} {what}" + (f" at {at}" if at else "")


def _array(record: EditRecord, data: bytes, shape: tuple[int, int], dtype: str) -> Any:
    try:
        array = np.frombuffer(data, numpy_dtype(dtype)).reshape(shape)
    except ValueError as error:
        raise ProtocolViolation(
            f"edit {record.number} of {record.kind} {record.name!r} has {len(data)} bytes, which "
            f"are no array of shape {shape} and dtype {dtype}."
        ) from error
    return array
