"""One image or label layer as one window of ImageJ: a hyperstack that grows in place."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.viewer import channel_colormap
from openhcs_stream_fiji._extent import Extent
from openhcs_stream_fiji._looks import label_lut, lut
from openhcs_stream_fiji._pixels import form_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from openhcs_stream.messages import LayerSpec
    from openhcs_stream.viewer import Coords, SceneLayer
    from openhcs_stream_fiji._extent import Position
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._pixels import Form, JavaPlanes, Keeper

    PlaceValue = int | str

__all__ = ["Hyperstack"]

#: Per cent of pixels that may be saturated: ImageJ's own default (Process > Enhance Contrast).
SATURATED: Final = 0.35
#: ImageJ blends no more channels than these; from there on it shows one at a time.
MOST_BLENDED: Final = 8
#: Planes of an arrival that are looked at for one that is not of one flat value.
_MOST_LOOKED_AT: Final = 8
#: Planes of which the Info property tells; each slice's label has all about that slice.
_MOST_TOLD: Final = 500

_COMPOSITE: Final = 1


class Hyperstack:
    """One `ImagePlus`, and its window where there are windows.

    All methods belong to AWT's event thread, where there is one.

    Parameters
    ----------
    java : Java
    keeper : Keeper
    layer : SceneLayer
        Of images or labels.
    windows : Windows or None
        Where windows are opened; None: without.
    """

    def __init__(self, java: Java, keeper: Keeper, layer: SceneLayer, windows: Any) -> None:
        self._java = java
        self._keeper = keeper
        self._windows = windows
        self.layer = layer
        #: The `ij.ImagePlus`, or `ij.CompositeImage` where there are channels.
        self.imp: Any = None
        self._window: Any = None
        self._start_over()

    def _start_over(self) -> None:
        self.extent = Extent(
            self.layer.components, self.layer.spec.modes, has_channels=not self.layer.stack.rgb
        )
        self._form: Form | None = None
        self._slots: dict[Coords, int] = {}
        self._lines: dict[Coords, str] = {}
        self._spec: LayerSpec | None = None
        #: Channels (or, without, the one image) whose contrast the data has said nothing about.
        self._flat: set[tuple[PlaceValue, ...]] = set()
        self._limits: dict[tuple[PlaceValue, ...], tuple[float, float] | None] = {}
        self._channel_names: list[tuple[PlaceValue, ...]] = []
        self._colormaps: dict[tuple[PlaceValue, ...], str] = {}
        self._highest_label = 255.0
        #: What a person may paint over: each plane, and its pixels as they were.
        self.paintable: dict[Coords, tuple[JavaPlanes, Any]] = {}
        #: Channel, slice and frame where we left it, until somebody looked for a place of it.
        self._left_at: Position | None = (1, 1, 1)

    @property
    def can_be_painted(self) -> bool:
        """Whether what a person paints is looked for: in the windows of label images."""
        return self._windows is not None and self.layer.kind == "labels"

    @property
    def is_open(self) -> bool:
        """Whether it stands; a person may have closed the window."""
        if self.imp is None:
            return False
        return self._windows is None or self.imp.getWindow() is not None

    def is_from(self, folder: str) -> bool:
        """Whether its images come from a folder, or one below, as far as was told."""
        folder = folder.rstrip("/\\")
        if self.layer.spec.images_dir.rstrip("/\\") == folder:
            return True
        paths = (str(info.get("path", "")) for info in self.layer.infos.values())
        return any(path.startswith((folder + "/", folder + "\\")) for path in paths)

    def update(self, arrived: Sequence[Coords], axes: Mapping[str, Sequence[PlaceValue]]) -> bool:
        """Take in what arrived and draw it where it is in view; whether places moved or grew."""
        if not self.is_open:
            self._start_over()  # the first time, or after a person closed it: everything
            arrived = list(self.layer.stack.planes)
        elif self._was_looked_at():
            self._left_at = None
        places = list(dict.fromkeys(arrived))
        stack = self.layer.stack
        form = form_of(stack.plane_shape, stack.dtype)
        before = self.extent.copy()
        moved = self.extent.grow(places, axes)
        is_new = self._form is None
        changed = form != self._form
        if is_new or moved or changed:
            self._rebuild(form, before, places)
        else:
            native = self.imp.getStack()
            for coords in places:
                self._put(native, coords)
        self._dress(places, fresh=is_new or changed)
        self._tell(places)
        if is_new:
            self._open()
        if self._left_at is not None:
            self._go_to_first(places, is_new=is_new)
        self._draw(places, everything=is_new or moved or changed)
        self.imp.changes = False  # else ImageJ asks whether to save when the window is closed
        return moved or is_new

    # --- pixels -------------------------------------------------------------------------------

    def _put(self, native: Any, coords: Coords) -> None:
        slot = self._slots.get(coords)
        if slot is None:
            slot = self._slots[coords] = self.extent.slot(coords)
        array = self._array(coords)
        native.setPixels(array, slot + 1)
        native.setSliceLabel(self._label(coords), slot + 1)
        if slot + 1 == self.imp.getCurrentSlice():
            # ImageJ writes the processor's array back into the stack when the slice changes.
            processor = self.imp.getProcessor()
            processor.setPixels(array)
            processor.setSnapshotPixels(None)

    def _array(self, coords: Coords) -> Any:
        plane: JavaPlanes = self.layer.stack.planes[coords]
        assert self._form is not None
        if plane.form == self._form:
            array = plane.array
        else:
            array = self._keeper.convert(np.asarray(plane), self._form)
        if self.can_be_painted:
            self.paintable[coords] = (plane, array.clone())
        return array

    def _rebuild(self, form: Form, before: Extent, places: Sequence[Coords]) -> None:
        """Arrange the same arrays anew: no pixel is copied, unless size or type changed."""
        java = self._java
        same_form = form == self._form
        self._form = form
        count = math.prod(self.extent.shape)
        native = java.ImageStack(form.width, form.height, count)
        arrays, labels = native.getImageArray(), native.getSliceLabels()
        if not same_form:
            self._blank = self._keeper.blank(form)
        java.Arrays.fill(arrays, self._blank)
        old, self._slots = self._slots, {}
        if same_form:
            # The arrays that stand, in runs that stay together: mostly there is one.
            was = self.imp.getStack()
            was_arrays, was_labels = was.getImageArray(), was.getSliceLabels()
            steps = []
            for coords, slot in old.items():
                to = self._slots[coords] = self.extent.slot(coords)
                steps.append((slot, to))
            for start, to, length in _runs(steps):
                java.System.arraycopy(was_arrays, start, arrays, to, length)
                java.System.arraycopy(was_labels, start, labels, to, length)
            if len(old) == 1:  # ImageJ may have forgotten the label of a single slice
                ((coords, _),) = old.items()
                labels[self._slots[coords]] = self._label(coords)
            new: Iterable[Coords] = places
        else:
            new = self.layer.stack.planes
        for coords in new:
            slot = self._slots[coords] = self.extent.slot(coords)
            native.setPixels(self._array(coords), slot + 1)
            labels[slot] = self._label(coords)
        native.setPixels(arrays[0], 1)  # from which the stack knows its type
        if self.imp is None or not self.is_open:
            self._make(native)
        else:
            self._exchange(native, before)

    def _make(self, native: Any) -> None:
        java = self._java
        imp = java.ImagePlus(self.layer.title, native)
        imp.setDimensions(*self.extent.shape)
        if self.extent.members("C"):
            imp = java.CompositeImage(imp, _COMPOSITE)
            imp.setDimensions(*self.extent.shape)
        imp.setOpenAsHyperStack(True)
        self.imp = imp

    def _exchange(self, native: Any, before: Extent) -> None:
        """Give the image its new stack; what a person looks at stays in view."""
        imp = self.imp
        here = before.place(self._here())
        luts = list(imp.getLuts()) if imp.isComposite() else []
        if not self.layer.stack.rgb:
            native.update(imp.getProcessor())  # lookup table and contrast
        was_shape = (imp.getWidth(), imp.getHeight())
        # ImageJ opens a new window for a stack of other dimensions, and forgets zoom and place.
        # So the window is let go of meanwhile, and told afterwards.
        imp.setWindow(None)
        try:
            imp.setStack(native, *self.extent.shape)
        finally:
            imp.setWindow(self._window)
        if self.extent.members("C") and not self.layer.stack.rgb:
            self._keep_luts(luts)
        found = self.extent.positions(here)
        position = found[0] if found else (1, 1, 1)
        if self._window is not None:
            self._windows.refit(
                imp, self.extent.shape, resized=was_shape != (imp.getWidth(), imp.getHeight())
            )
        imp.setPosition(*(max(1, number) for number in position))

    def _was_looked_at(self) -> bool:
        """Whether somebody moved a slider, pointed at the image, or selected something on it."""
        imp = self.imp
        canvas = imp.getCanvas()
        if canvas is not None:
            cursor = canvas.getCursorLoc()  # (0, 0) until the mouse was over it
            if (int(cursor.x), int(cursor.y)) != (0, 0):
                return True
        return imp.getRoi() is not None or self._here() != self._left_at

    def _here(self) -> Position:
        imp = self.imp
        return int(imp.getChannel()), int(imp.getSlice()), int(imp.getFrame())

    def _go_to_first(self, places: Sequence[Coords], *, is_new: bool) -> None:
        """So that windows whose planes came in another order show the same place."""
        slots = [self._slots[coords] for coords in places]
        if not is_new:
            slots.append(int(self.imp.getCurrentSlice()) - 1)
        first = self.imp.convertIndexToPosition(min(slots) + 1)
        position = (int(first[0]), int(first[1]), int(first[2]))
        if position != self._here():
            self.imp.setPosition(*position)
        self._left_at = position

    # --- what a person painted ------------------------------------------------------------------

    @property
    def form(self) -> Form:
        """Of all planes in ImageJ."""
        assert self._form is not None
        return self._form

    @property
    def is_as_made(self) -> bool:
        """Whether the planes are where they were put: nobody has cropped or converted the image."""
        imp, form = self.imp, self.form
        return (
            int(imp.getWidth()), int(imp.getHeight()), int(imp.getBitDepth()),
            int(imp.getStackSize()),
        ) == (form.width, form.height, 8 * form.itemsize, math.prod(self.extent.shape))  # fmt: skip

    def array_at(self, coords: Coords) -> Any:
        """The Java array that is shown at a place."""
        return self.array_of(self._slots[coords])

    def array_of(self, slot: int) -> Any:
        """The Java array of a slice, counted from 0."""
        if slot + 1 == int(self.imp.getCurrentSlice()):
            return self.imp.getProcessor().getPixels()
        return self.imp.getStack().getPixels(slot + 1)

    def empty_place(self, slot: int) -> Coords | None:
        """The place of a slice where nothing has arrived; None where something has."""
        if slot in self._slots.values():
            return None
        position = tuple(int(n) for n in self.imp.convertIndexToPosition(slot + 1))
        at = self.extent.place((position[0], position[1], position[2]))
        return tuple(at[component] for component in self.layer.components)

    @property
    def blank(self) -> Any:
        """What is shown where nothing has arrived: one array for all such places."""
        return self._blank

    def fill_blank(self, coords: Coords, plane: JavaPlanes) -> None:
        """Put a plane where nothing had arrived: the blank one, which a person painted on."""
        slot = self._slots[coords] = self.extent.slot(coords)
        self._blank = self._keeper.blank(self.form)
        native = self.imp.getStack()
        filled = set(self._slots.values())
        for number in range(math.prod(self.extent.shape)):
            if number not in filled:
                native.setPixels(self._blank, number + 1)
        native.setSliceLabel(self._label(coords), slot + 1)
        self.paintable[coords] = (plane, plane.array.clone())

    def redraw(self) -> None:
        """Draw the slice that is shown."""
        self.imp.updateAndDraw()

    # --- looks --------------------------------------------------------------------------------

    def _names(self) -> list[tuple[PlaceValue, ...]]:
        """Of the channels in order; () where the layer has none."""
        return list(product(*(self.extent.values[c] for c in self.extent.members("C"))))

    def _name_of(self, coords: Coords) -> tuple[PlaceValue, ...]:
        members = self.extent.members("C")
        return tuple(
            value
            for component, value in zip(self.layer.components, coords, strict=True)
            if component in members
        )

    def _keep_luts(self, luts: Sequence[Any]) -> None:
        """After the number or order of channels changed: those that were there keep their look."""
        known = dict(zip(self._channel_names, luts, strict=False))
        names = self._names()
        fallback = lut(self._java, "gray")
        self.imp.setLuts([known.get(name, fallback) for name in names])
        self._show_own_lut()

    def _show_own_lut(self) -> None:
        # ImageJ draws the current channel with the contrast of the processor, not of the table.
        self.imp.getProcessor().setLut(self.imp.getLuts()[self.imp.getC() - 1])

    def _dress(self, places: Sequence[Coords], *, fresh: bool) -> None:
        """Lookup tables and contrast: of new channels, and where a later declaration differs."""
        layer, imp, spec = self.layer, self.imp, self.layer.spec
        if fresh or self._spec is None or spec != self._spec:
            self._calibrate(spec)
        self._spec = spec
        if layer.stack.rgb:
            return
        if layer.kind == "labels":
            self._dress_labels(places, fresh=fresh)
            return
        new: dict[tuple[PlaceValue, ...], list[Coords]] = {}
        specs: dict[tuple[PlaceValue, ...], LayerSpec] = {}
        for coords in layer.stack.planes if fresh else places:
            name = self._name_of(coords)
            new.setdefault(name, []).append(coords)
            specs[name] = layer.specs.get(coords, spec)
        if fresh:
            self._limits.clear()
        known = set(self._channel_names) if not fresh else set()
        self._channel_names = self._names()
        for name, its in specs.items():
            index = self._channel_names.index(name) + 1
            if name not in known or (its.colormap and its.colormap != self._colormaps.get(name)):
                self._set_lut(index, name, its)
            limits = its.contrast_limits
            if limits is not None and limits != self._limits.get(name):
                self._set_range(index, *limits)
                self._flat.discard(name)
            elif limits is None and (name not in known or name in self._flat):
                self._stretch(index, name, new[name][:_MOST_LOOKED_AT])
            self._limits[name] = limits
        if imp.isComposite():
            self._show_own_lut()

    def _set_lut(self, index: int, name: tuple[PlaceValue, ...], spec: LayerSpec) -> None:
        colormap = spec.colormap
        if not colormap and name:
            taken = {other for key, other in self._colormaps.items() if key != name}
            colormap = channel_colormap(" ".join(map(str, name)), taken)
        self._colormaps[name] = colormap or "gray"
        table = lut(self._java, colormap or "gray")
        if self.imp.isComposite():
            old = self.imp.getLuts()[index - 1]
            table.min, table.max = old.min, old.max
            self.imp.setChannelLut(table, index)
        else:
            # Not the image's own setLut: it takes its stack from an image of a single slice.
            processor = self.imp.getProcessor()
            table.min, table.max = processor.getMin(), processor.getMax()
            processor.setLut(table)

    def _set_range(self, index: int, low: float, high: float) -> None:
        high = high if high > low else low + 1
        if self.imp.isComposite():
            table = self.imp.getLuts()[index - 1]
            table.min, table.max = low, high
            self.imp.setChannelLut(table, index)
        else:
            self.imp.setDisplayRange(low, high)

    def _stretch(self, index: int, name: tuple[PlaceValue, ...], places: Sequence[Coords]) -> None:
        """Contrast as ImageJ's own "Enhance Contrast" sets it, from the first plane that tells."""
        low, high = 0.0, 1.0
        self._flat.add(name)
        for coords in places:
            processor = self.imp.getStack().getProcessor(self._slots[coords] + 1)
            processor.resetMinAndMax()
            stats = processor.getStats()
            if stats.min < stats.max:
                self._flat.discard(name)
                self._java.ContrastEnhancer().stretchHistogram(processor, SATURATED)
                low, high = float(processor.getMin()), float(processor.getMax())
                break
            # One flat value (an empty well) says nothing: the next data may.
            if math.isfinite(stats.min):
                low, high = min(float(stats.min), 0.0), max(float(stats.max), 1.0)
        self._set_range(index, low, high)

    def _dress_labels(self, places: Sequence[Coords], *, fresh: bool) -> None:
        highest = self._highest_label
        for coords in self.layer.stack.planes if fresh else places:
            stats = self.imp.getStack().getProcessor(self._slots[coords] + 1).getStats()
            highest = max(highest, float(stats.max))
        if fresh:
            self.imp.getProcessor().setLut(label_lut(self._java))
        if fresh or highest > self._highest_label:
            # Labels up to 255 have each its own colour; more of them share colours.
            self.imp.setDisplayRange(0.0, highest)
        self._highest_label = highest

    def _calibrate(self, spec: LayerSpec) -> None:
        calibration = self.imp.getCalibration()
        if spec.pixel_size:
            *depth, height, width = spec.pixel_size if len(spec.pixel_size) > 1 else (
                spec.pixel_size * 2
            )  # fmt: skip
            calibration.pixelHeight, calibration.pixelWidth = height, width
            if depth:
                calibration.pixelDepth = depth[0]
            calibration.setUnit(spec.unit or "pixel")
        self.imp.setCalibration(calibration)

    # --- words --------------------------------------------------------------------------------

    def _label(self, coords: Coords) -> str:
        """A slice's label: its place on the first line, all that is known of it below."""
        at = dict(zip(self.layer.components, coords, strict=True))
        facts = {**at, **self.layer.infos.get(coords, {})}
        words = []
        for component, value in at.items():
            word = value if isinstance(value, str) else f"{component} {value}"
            name = facts.get(f"{component} name")
            words.append(word if name is None else f"{word} ({name})")
        lines = [f"{key}: {value}" for key, value in facts.items()]
        label = "\n".join([", ".join(words) or self.layer.key.name, *lines])
        return label

    def _tell(self, places: Sequence[Coords]) -> None:
        """The Info property: what the image is, and each plane's place and origin."""
        layer, stack = self.layer, self.layer.stack
        for coords in places:
            first, _, rest = self._label(coords).partition("\n")
            self._lines[coords] = f"{first} | {'; '.join(rest.splitlines())}"
        facts: dict[str, object] = {
            "title": layer.title,
            "source": layer.key.source,
            "name": layer.key.name,
            "kind": layer.kind,
            **dict(layer.key.split),
        }
        for dimension, word in zip("CZT", ("channels", "slices", "frames"), strict=True):
            members = self.extent.members(dimension)
            if members:
                facts[word] = " x ".join(members)
        facts["sent as"] = stack.dtype.name
        if len(stack.planes) == 1:
            (coords,) = stack.planes
            facts |= dict(zip(layer.components, coords, strict=True)) | layer.infos.get(coords, {})
        lines = [f"{key}: {value}" for key, value in facts.items() if value != ""]
        if len(stack.planes) > 1:
            told = list(self._lines.values())
            lines += ["", f"{len(told)} planes, in order of arrival:", *told[:_MOST_TOLD]]
            if len(told) > _MOST_TOLD:
                lines.append(f"... and {len(told) - _MOST_TOLD} more: see each slice's label")
        self.imp.setProperty("Info", "\n".join(lines))

    # --- the window ---------------------------------------------------------------------------

    def _open(self) -> None:
        if self._windows is not None:
            sliders = sum(bool(self.extent.members(dimension)) for dimension in "CZT")
            self._window = self._windows.open(self.imp, sliders=sliders)

    def _draw(self, places: Sequence[Coords], *, everything: bool) -> None:
        imp = self.imp
        if not everything:
            here = (imp.getChannel(), imp.getSlice(), imp.getFrame())
            blended = imp.isComposite() and imp.getCompositeMode() == _COMPOSITE
            if not any(self._is_seen(coords, here, blended) for coords in places):
                return
        if imp.isComposite():
            imp.reset()  # the blended channels' own references to the arrays
        imp.updateAndDraw()

    def _is_seen(self, coords: Coords, here: Position, blended: bool) -> bool:
        there = self.extent.position(coords)
        return there[1:] == here[1:] and (blended or there[0] == here[0])

    def show(self, at: Mapping[str, PlaceValue]) -> None:
        """Move the sliders to values, as far as they are here; the others stay."""
        imp = self.imp
        self._left_at = None
        now = self.extent.place(self._here())
        for component, value in at.items():
            if component in now and value in self.extent.values[component]:
                now[component] = value
        imp.setPosition(*self.extent.position(tuple(now[c] for c in self.layer.components)))

    def close(self) -> None:
        """Close the window and forget the pixels."""
        self.paintable.clear()
        imp, self.imp = self.imp, None
        self._window = None
        if imp is not None:
            imp.changes = False
            imp.close()
        self._slots.clear()


def _runs(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(from, to, length) of what moves together, from (from, to) of each."""
    runs: list[tuple[int, int, int]] = []
    for start, to in sorted(steps):
        if runs:
            last_start, last_to, length = runs[-1]
            if start == last_start + length and to == last_to + length:
                runs[-1] = (last_start, last_to, length + 1)
                continue
        runs.append((start, to, 1))
    return runs
