"""ImageJ's ROI Manager: its list read and written whole, and its switches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream_fiji._bulk import Bulk
    from openhcs_stream_fiji._java import Java

__all__ = ["Manager"]

#: Selected ROIs that are kept selected, and looked at first.
_MOST_SELECTED: Final = 200


class Manager:
    """The one ROI Manager, open or not. All methods belong to AWT's event thread.

    ImageJ's own way into the list copies each ROI and draws all of them on whichever image is in
    front. So the list is written directly: what a person selected, and what is being dragged, stay
    the same objects.

    Parameters
    ----------
    java : Java
    bulk : Bulk
    """

    def __init__(self, java: Java, bulk: Bulk) -> None:
        self._java = java
        self._bulk = bulk
        self._fields: dict[str, Any] = {}
        for name in ("rois", "listModel", "list", "showAllCheckbox"):
            try:
                found = java.RoiManager.class_.getDeclaredField(name)
            except java.jpype.JException as error:
                raise UsageError(
                    f"the ROI Manager of ImageJ {java.IJ.getVersion()} has no {name!r}.",
                    cure="Use ImageJ 1.54p, or a Fiji with it.",
                ) from error
            found.setAccessible(True)
            self._fields[name] = found
        self._known: Any = None

    # --- the window -----------------------------------------------------------------------------

    @property
    def window(self) -> Any:
        """The open `ij.plugin.frame.RoiManager`, or None."""
        # The raw one: while a macro runs in batch mode, it has one of its own.
        return self._java.RoiManager.getRawInstance()

    def open(self) -> None:
        """Open it where it is not: at the right edge of the screen, and showing all."""
        if self.window is None:
            window = self._java.RoiManager()
            bounds = window.getGraphicsConfiguration().getBounds()
            window.setLocation(bounds.x + bounds.width - window.getWidth() - 8, bounds.y + 22)
            # ImageJ's own switch would draw each window's ROIs on the active one.
            self._field("showAllCheckbox").setState(True)
        self._known = self.window

    def close(self) -> None:
        """Close it, without the question what to do with its list."""
        if self.window is not None:
            self.write((), ())
            self.window.close()
        self._known = None

    def is_another(self) -> bool:
        """Whether a person closed the one that was known, or opened another."""
        window = self.window
        if window is None or self._known is None:
            return window is not self._known
        return not window.equals(self._known)

    def forget(self) -> None:
        """Take the one that is open now, or none, for the one that is known."""
        self._known = self.window

    @property
    def is_open(self) -> bool:
        return self.window is not None

    @property
    def shows_all(self) -> bool:
        """Whether ROIs are to be seen: a person may have switched them off."""
        return self.window is None or bool(self._field("showAllCheckbox").getState())

    # --- the list -------------------------------------------------------------------------------

    def natives(self) -> Any:
        """A Java array of the ROIs in the list."""
        return self._bulk.array(0) if self.window is None else self.window.getRoisAsArray()

    def structure(self) -> int:
        """A number that changes when ROIs come, go, are replaced or change their order."""
        return 0 if self.window is None else int(self._field("rois").hashCode())

    def labels(self) -> list[str]:
        """What the list shows."""
        return [str(label) for label in self._field("listModel").toArray()]

    def label(self, index: int) -> str:
        """What the list shows of one."""
        return str(self._field("listModel").getElementAt(index))

    def write(self, natives: Any, labels: Sequence[str]) -> None:
        """Replace the list; what was selected and is still there stays selected."""
        names, rois = self._field("list"), self._field("rois")
        model, window = self._field("listModel"), self.window
        selected = [rois.get(index) for index in names.getSelectedIndices()]
        # Else each change of the selection moves the sliders of the active image.
        names.removeListSelectionListener(window)
        try:
            rois.clear()
            model.removeAllElements()
            if len(labels):
                rois.addAll(self._java.Arrays.asList(natives))
                model.addAll(self._java.Arrays.asList(self._bulk.texts(labels)))
            found = [int(window.getRoiIndex(native)) for native in selected[:_MOST_SELECTED]]
            names.setSelectedIndices(self._java.ints([index for index in found if index >= 0]))
        finally:
            names.addListSelectionListener(window)

    def append(self, natives: Any, labels: Sequence[str]) -> None:
        """Add to the end of the list."""
        self._field("rois").addAll(self._java.Arrays.asList(natives))
        self._field("listModel").addAll(self._java.Arrays.asList(self._bulk.texts(labels)))

    def selected(self) -> list[int]:
        """Which ROIs are selected, the first of them where there are many."""
        if self.window is None:
            return []
        return [int(index) for index in self.window.getSelectedIndexes()[:_MOST_SELECTED]]

    def native(self, index: int) -> Any:
        """The ROI at a place in the list."""
        return self.window.getRoi(index)

    def _field(self, name: str) -> Any:
        return self._fields[name].get(self.window)
