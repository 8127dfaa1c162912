"""What a person paints in label images: noticed, waited for until it is done, reported."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.viewer import Painting
from openhcs_stream_fiji._watch import QUIET_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.viewer import Coords, LayerKey
    from openhcs_stream_fiji._hyperstack import Hyperstack
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._pixels import Keeper

__all__ = ["PaintWatch"]

logger = logging.getLogger(__name__)

#: Time of each tick for comparing planes that were not in view when something was painted.
_LOOK_S: Final = 0.003
#: `InputEvent.BUTTON1_MASK`, in a canvas's modifiers.
_BUTTON: Final = 16
#: A button that is held for longer without any change was let go of unseen.
_HELD_S: Final = 5.0


class PaintWatch:
    """Finds painted labels; belongs to AWT's event thread, where ImageJ's own events may not be.

    ImageJ tells that an image changed, and not where. So the planes are compared with copies of
    what they were: first the one in view, then the others, as some commands change a whole stack.

    Parameters
    ----------
    java : Java
    keeper : Keeper
    images : mapping of LayerKey to Hyperstack
    report : callable
        Takes each `Painting`.
    """

    def __init__(
        self,
        java: Java,
        keeper: Keeper,
        images: Mapping[LayerKey, Hyperstack],
        report: Callable[[Painting], None],
    ) -> None:
        self._java = java
        self._keeper = keeper
        self._images = images
        self._report = report
        #: Slices (from 0) in view when something was changed, by the image's ID, and when.
        self._changed: dict[int, tuple[list[int], float]] = {}
        #: What is still to be compared.
        self._waiting: dict[int, list[Coords]] = {}
        self._own_thread: int | None = None
        self._listener: Any = java.jpype.JProxy(
            "ij.ImageListener",
            dict={
                "imageOpened": _nothing, "imageClosed": _nothing, "imageUpdated": self._updated,
            },
        )  # fmt: skip
        java.ImagePlus.addImageListener(self._listener)

    def close(self) -> None:
        """Hear of nothing more."""
        self._java.ImagePlus.removeImageListener(self._listener)

    @contextmanager
    def own(self) -> Iterator[None]:
        """What is drawn meanwhile on this thread is not a person's doing."""
        before, self._own_thread = self._own_thread, threading.get_ident()
        try:
            yield
        finally:
            self._own_thread = before

    def _updated(self, imp: Any) -> None:
        """ImageJ says that an image changed; from any thread."""
        if threading.get_ident() == self._own_thread:
            return
        slices, _ = self._changed.get(int(imp.getID()), ([], 0.0))
        here = int(imp.getCurrentSlice()) - 1
        if here not in slices:
            slices = [*slices, here]
        self._changed[int(imp.getID())] = (slices, time.monotonic())

    # --- when -----------------------------------------------------------------------------------

    def look(self) -> None:
        """With each tick: report what is finished."""
        if not (self._changed or self._waiting):
            return
        now = time.monotonic()
        for image in list(self._images.values()):
            if not (image.can_be_painted and image.is_open):
                continue
            number = int(image.imp.getID())
            _, at = self._changed.get(number, ([], now))
            if now - at >= QUIET_S and not self._is_held(image, now - at):
                self._begin(image)
            waiting = self._waiting.get(number)
            until = time.perf_counter() + _LOOK_S
            while waiting and number not in self._changed and time.perf_counter() < until:
                self._compare(image, waiting.pop(0))
        self._forget()

    def finish(self, image: Hyperstack | None = None, also: Sequence[Coords] = ()) -> None:
        """Report now all that was painted; or all on one image, and whatever is at some places."""
        for each in list(self._images.values()) if image is None else [image]:
            if not (each.can_be_painted and each.is_open):
                continue
            self._begin(each)
            left = self._waiting.pop(int(each.imp.getID()), [])
            for coords in dict.fromkeys([*left, *also]):
                self._compare(each, coords)
        self._forget()

    def _begin(self, image: Hyperstack) -> None:
        """Compare what was in view; the rest waits."""
        number = int(image.imp.getID())
        slices, _ = self._changed.pop(number, ([], 0.0))
        if not slices or not image.is_as_made:
            return
        self._take_blank(image, slices)
        here = [coords for coords in image.paintable if image.extent.slot(coords) in slices]
        for coords in here:
            self._compare(image, coords)
        self._waiting[number] = [coords for coords in image.paintable if coords not in here]

    def _is_held(self, image: Hyperstack, quiet_s: float) -> bool:
        """Whether a mouse button is down: a person pauses in the middle of a stroke."""
        return bool(int(image.imp.getCanvas().getModifiers()) & _BUTTON) and quiet_s < _HELD_S

    def _forget(self) -> None:
        """Images that are closed, or none of ours, and what is done."""
        known = {int(each.imp.getID()) for each in self._images.values() if each.is_open}
        for number in [*self._changed]:
            if number not in known:
                self._changed.pop(number, None)
        for number in [*self._waiting]:
            if number not in known or not self._waiting[number]:
                del self._waiting[number]

    # --- what -----------------------------------------------------------------------------------

    def _compare(self, image: Hyperstack, coords: Coords) -> None:
        """Report what was painted at one place."""
        kept = image.paintable.get(coords)
        if kept is None or not image.is_as_made:
            return
        plane, was = kept
        array = image.array_at(coords)
        if self._java.Arrays.equals(array, was):
            return
        form = image.form
        found = self._keeper.read(array, form, form.dtype)
        before = self._keeper.read(was, form, form.dtype)
        region = _region(found, before)
        after = _as_labels(found, plane.dtype)
        as_shown = after.astype(form.dtype)
        if not np.array_equal(as_shown, found):
            # ImageJ paints fractions into floats: what is shown is what is reported.
            self._keeper.write(array, as_shown, form)
            with self.own():
                image.redraw()
            region = _region(as_shown, before)
        image.paintable[coords] = (plane, array.clone())
        if region is None:
            return
        rows, columns = region
        if image.layer.stack.planes.get(coords) is plane:
            # Else newer data came, and what was painted on the older is told all the same.
            height, width = plane.shape
            if plane.form != form:
                if rows.stop <= height and columns.stop <= width:
                    cut = np.ascontiguousarray(after[:height, :width])
                    self._keeper.write(plane.array, cut, plane.form)
                else:
                    plane = self._keeper.plane(array, plane.dtype, form)
                    image.layer.stack.put(coords, plane)
                    image.paintable[coords] = (plane, image.paintable[coords][1])
            elif not _is_same(self._java, array, plane.array):
                self._keeper.write(plane.array, after, form)
        self._tell(image, coords, region, _as_labels(before, plane.dtype), after)

    def _take_blank(self, image: Hyperstack, slices: Sequence[int]) -> None:
        """A person painted where nothing had arrived: there is a plane now."""
        empty = [slot for slot in slices if image.empty_place(slot) is not None]
        if not empty:
            return
        form, stack = image.form, image.layer.stack
        found = self._keeper.read(image.blank, form, form.dtype)
        after = _as_labels(found, stack.dtype)
        before = np.zeros_like(after)
        region = _region(after, before)
        if region is None:
            return
        coords = image.empty_place(empty[-1])
        assert coords is not None
        array = image.blank
        self._keeper.write(array, after.astype(form.dtype), form)
        plane = self._keeper.plane(array, stack.dtype, form)
        with self.own():
            image.fill_blank(coords, plane)
            image.redraw()
        stack.put(coords, plane)
        self._tell(image, coords, region, before, after)

    def _tell(
        self,
        image: Hyperstack,
        coords: Coords,
        region: tuple[slice, slice],
        before: npt.NDArray[Any],
        after: npt.NDArray[Any],
    ) -> None:
        rows, columns = region
        self._report(
            Painting(image.layer, coords, rows.start, columns.start, before[region], after[region])
        )


def _region(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[slice, slice] | None:
    """The rows and columns where two planes differ; None: nowhere."""
    differs = one != other
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _as_labels(pixels: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Whole numbers of a type: fractions are rounded, what is beyond it becomes its nearest."""
    if pixels.dtype == dtype:
        return pixels
    limits = np.iinfo(dtype)
    whole = np.rint(np.nan_to_num(pixels.astype(np.float64), posinf=limits.max, neginf=limits.min))
    low, high = float(limits.min), float(limits.max)
    made = np.clip(whole, low, high)
    # The largest 64-bit number is no float64: its nearest is beyond it.
    inside = made < high
    return np.where(inside, np.where(inside, made, 0).astype(dtype), dtype.type(limits.max))


def _is_same(java: Java, one: Any, other: Any) -> bool:
    identity = java.System.identityHashCode
    return bool(identity(one) == identity(other))


def _nothing(_: Any) -> None:
    """That images come and go is known."""
