"""When a person changed ROIs or points in ImageJ: found, and waited for until it is done.

ImageJ tells of little: the ROI Manager of nothing at all. So it is looked at with each tick: the
order and identity of what the list holds as a whole (a millisecond for 100 000 ROIs), what is
selected or dragged one by one, and of all the rest some with each tick in turn.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import StreamError
from openhcs_stream_fiji._settle import Settler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from openhcs_stream.viewer import Change, LayerKey
    from openhcs_stream_fiji._annotations import Annotations
    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._entries import Entry
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._manager import Manager

__all__ = ["QUIET_S", "EditWatch"]

logger = logging.getLogger(__name__)

#: A burst of changes (a drag, arrow keys) is one edit: it ends when nothing changes for so long.
QUIET_S: Final = 0.4
#: Time of each tick for looking at ROIs that nothing points to, and how many at once.
_LOOK_S: Final = 0.001
_AT_ONCE: Final = 500
#: ROIs whose owners are remembered.
_MOST_OWNERS: Final = 1000
#: `ij.gui.Roi.NORMAL`: it is not being drawn, moved or reshaped.
_AT_REST: Final = 3


class EditWatch:
    """Finds what a person changed; belongs to AWT's event thread.

    Parameters
    ----------
    java : Java
    bulk : Bulk
    manager : Manager
    annotations : Annotations
    images : mapping of LayerKey to Hyperstack
    report : callable
        Takes each `Change`.
    """

    def __init__(
        self,
        java: Java,
        bulk: Bulk,
        manager: Manager,
        annotations: Annotations,
        images: Mapping[LayerKey, Hyperstack],
        report: Callable[[Change], None],
    ) -> None:
        self._java = java
        self._bulk = bulk
        self._manager = manager
        self._annotations = annotations
        self._images = images
        self._settler = Settler(java, bulk, manager, annotations, images, report)
        #: Of the list: as it was when all was reported, and as it was seen last.
        self._structure = self._seen = 0
        #: Digests of what is not as it was, by entry and index.
        self._touched: dict[Entry, dict[int, int]] = {}
        self._changed_at = 0.0
        self._settling = False
        self._turn: Iterator[tuple[Entry, int]] = iter(())
        #: Owners that were looked for, and the number of each by the ROI.
        self._owners: list[tuple[Entry, int] | None] = []
        self._asked: Any = java.IdentityHashMap()
        annotations.before = self.before
        annotations.after = self.after

    def look(self) -> None:
        """With each tick: report what is finished."""
        if not (self._follow() or self._annotations.layers):
            return
        now = time.monotonic()
        structure = self._manager.structure()
        if structure != self._seen:
            self._seen, self._changed_at = structure, now
        held = self._look_at_chosen(now)
        self._look_around(now)
        if not self._is_pending:
            self._annotations.put_back()
        elif not held and now - self._changed_at >= QUIET_S:
            self._settle()

    def finish(self) -> None:
        """Report now all that was changed."""
        self._follow()
        for entry in list(self._annotations.entries):
            self._check(entry)
        self._seen = self._manager.structure()
        if self._is_pending:
            self._settle()

    def before(self, entries: Sequence[Entry]) -> None:
        """Report what was changed, before entries are replaced or the list is written."""
        if self._settling:
            return
        for entry in entries:
            self._check(entry)
        self._seen = self._manager.structure()
        if self._seen != self._structure or any(entry in self._touched for entry in entries):
            self._settle()

    def after(self) -> None:
        """Take the list as it is for unchanged."""
        self._structure = self._seen = self._manager.structure()
        self._forget_owners()

    @property
    def _is_pending(self) -> bool:
        return bool(self._touched) or self._seen != self._structure

    def _settle(self) -> None:
        self._settling = True
        try:
            touched = {entry: list(indices) for entry, indices in self._touched.items()}
            self._settler.settle(touched, listed_otherwise=self._seen != self._structure)
        except (StreamError, self._java.jpype.JException):
            logger.exception("what was done to ROIs in ImageJ can't be told")
            for entry in self._annotations.entries:
                entry.keep()
        finally:
            self._touched.clear()
            self._settling = False
            self.after()

    def _follow(self) -> bool:
        """A person may close the ROI Manager, which takes nothing away, and open another."""
        manager = self._manager
        if manager.is_another():
            manager.forget()
            self.after()
            if manager.is_open:
                # Whatever the new one has is new. It is kept as if it were nobody's, while ours
                # are written to it.
                own = self._annotations.own
                self._annotations.own = list(manager.natives())
                self._annotations.list_anew()
                self._annotations.own = own
                self._structure = ~self._structure
        return manager.is_open

    # --- looking --------------------------------------------------------------------------------

    def _look_at_chosen(self, now: float) -> bool:
        """What is selected on images and in the list; whether one is just being changed."""
        held = False
        chosen: dict[Entry, list[int]] = {}
        natives = [self._manager.native(index) for index in self._manager.selected()]
        active = [image.imp.getRoi() for image in self._images.values() if image.is_open]
        for native in (*natives, *active):
            owner = self._owner(native) if native is not None else None
            if owner is None:
                continue
            entry, index = owner
            self._settler.belonging.last = entry
            chosen.setdefault(entry, []).append(index)
            held |= int(native.getState()) != _AT_REST
        for entry, indices in chosen.items():
            self._check(entry, indices, now)
        return held

    def _look_around(self, now: float) -> None:
        """Some of all, in turn."""
        until = time.perf_counter() + _LOOK_S
        begun = False
        while time.perf_counter() < until:
            found = next(self._turn, None)
            if found is not None:
                entry, start = found
                self._check(entry, slice(start, start + _AT_ONCE), now)
                continue
            if begun:
                return
            begun = True
            self._turn = iter(
                [
                    (each, first)
                    for each in self._annotations.entries
                    for first in range(0, len(each.digests), _AT_ONCE)
                ]
            )

    def _check(
        self, entry: Entry, indices: slice | list[int] = slice(None), now: float | None = None
    ) -> None:
        """Note which of an entry's ROIs are not as they were."""
        known, found = entry.digests[indices], entry.digest(indices)
        touched = self._touched.get(entry)
        if touched is None and np.array_equal(known, found):
            return
        touched = self._touched.setdefault(entry, {})
        chosen = np.arange(len(entry.digests))[indices]
        for at in np.flatnonzero(known != found).tolist():
            index, digest = int(chosen[at]), int(found[at])
            if touched.get(index) != digest:
                touched[index] = digest
                self._changed_at = time.monotonic() if now is None else now
        for index in chosen[known == found].tolist():
            touched.pop(index, None)  # it may be as it was again
        if not touched:
            del self._touched[entry]

    def _owner(self, native: Any) -> tuple[Entry, int] | None:
        """Whose a ROI is: its entry, and which of what that lists."""
        number = self._asked.get(native)
        if number is not None:
            return self._owners[int(number)]
        found = None
        for entry in self._annotations.entries:
            index = entry.index(native)
            if index >= 0:
                found = (entry, index)
                break
        if len(self._owners) >= _MOST_OWNERS:
            self._forget_owners()
        self._asked.put(native, self._java.jpype.JInt(len(self._owners)))
        self._owners.append(found)
        return found

    def _forget_owners(self) -> None:
        self._asked.clear()
        self._owners.clear()
