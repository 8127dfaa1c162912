"""One image or label layer as one window of ImageJ: a hyperstack that grows in place."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.viewer import channel_colormap
from openhcs_stream_fiji._looks import label_lut, lut
from openhcs_stream_fiji._pixels import form_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from openhcs_stream.messages import LayerSpec, Mode
    from openhcs_stream.viewer import Coords, SceneLayer
    from openhcs_stream_fiji._java import Java
    from openhcs_stream_fiji._pixels import Form, JavaPlanes, Keeper

    PlaceValue = int | str

__all__ = ["Extent", "Hyperstack", "Position"]

#: Channel, slice and frame, counted from 1, as ImageJ counts.
Position = tuple[int, int, int]

#: Per cent of pixels that may be saturated: ImageJ's own default (Process > Enhance Contrast).
SATURATED: Final = 0.35
#: ImageJ blends no more channels than these; from there on it shows one at a time.
MOST_BLENDED: Final = 8
#: Planes of an arrival that are looked at for one that is not of one flat value.
_MOST_LOOKED_AT: Final = 8
#: Planes of which the Info property tells; each slice's label has all about that slice.
_MOST_TOLD: Final = 500

_COMPOSITE: Final = 1
_DIMENSION_OF_MODE: Final[Mapping[Mode, str]] = {"channel": "C", "slice": "Z", "frame": "T"}


class Extent:
    """Which of ImageJ's three dimensions each component is, and its values so far.

    Several components in one dimension follow each other as digits do: the first is the slowest.
    A component that is stacked is a frame, and z a slice.

    Attributes
    ----------
    components : tuple of str
    values : dict of str to tuple
        Of each component, in order.
    """

    def __init__(
        self, components: tuple[str, ...], modes: Mapping[str, Mode], *, has_channels: bool = True
    ) -> None:
        self.components = components
        self._dimensions: dict[str, str] = {}
        for component in components:
            default: Mode = "channel" if component == "channel" else "stack"
            mode = modes.get(component, default)
            found = _DIMENSION_OF_MODE.get(mode) or ("Z" if component == "z" else "T")
            self._dimensions[component] = "T" if found == "C" and not has_channels else found
        self._members = {
            dimension: tuple(c for c in components if self._dimensions[c] == dimension)
            for dimension in "CZT"
        }
        self.values: dict[str, tuple[PlaceValue, ...]] = dict.fromkeys(components, ())
        self._ranks: dict[str, dict[PlaceValue, int]] = {c: {} for c in components}
        self._offsets: list[dict[PlaceValue, int]] | None = None

    def copy(self) -> Extent:
        """As it is now; it may grow without this one."""
        copied = Extent.__new__(Extent)
        copied.__dict__.update(self.__dict__, values=dict(self.values), _ranks=dict(self._ranks))
        return copied

    def grow(self, places: Iterable[Coords], axes: Mapping[str, Sequence[PlaceValue]]) -> bool:
        """Take in new places; whether there is a new value. `axes` has all values in order."""
        found: dict[str, set[PlaceValue]] = {}
        for coords in places:
            for component, value in zip(self.components, coords, strict=True):
                if value not in self._ranks[component]:
                    found.setdefault(component, set()).add(value)
        for component, new in found.items():
            new.update(self.values[component])
            values = self.values[component] = tuple(v for v in axes[component] if v in new)
            self._ranks[component] = {value: rank for rank, value in enumerate(values)}
        if found:
            self._offsets = None
        return bool(found)

    def members(self, dimension: str) -> tuple[str, ...]:
        """The components of one dimension."""
        return self._members[dimension]

    @property
    def shape(self) -> Position:
        """Numbers of channels, slices and frames."""
        channels, slices, frames = (
            math.prod(len(self.values[component]) for component in self._members[dimension])
            for dimension in "CZT"
        )
        return channels, slices, frames

    def position(self, coords: Coords) -> Position:
        """Where a place is."""
        at = dict(zip(self.components, coords, strict=True))
        channel, z, t = (self._number(dimension, at) for dimension in "CZT")
        return channel + 1, z + 1, t + 1

    def _number(self, dimension: str, at: Mapping[str, PlaceValue]) -> int:
        number = 0
        for component in self._members[dimension]:
            ranks = self._ranks[component]
            number = number * len(ranks) + ranks[at[component]]
        return number

    def place(self, position: Position) -> dict[str, PlaceValue]:
        """The values at a position: {component: value}."""
        at: dict[str, PlaceValue] = {}
        for dimension, number in zip("CZT", position, strict=True):
            rest = number - 1
            for component in reversed(self._members[dimension]):
                rest, digit = divmod(rest, len(self.values[component]))
                at[component] = self.values[component][digit]
        return at

    def positions(self, at: Mapping[str, PlaceValue]) -> list[Position]:
        """Where something at these values belongs: 0 in a dimension of which it says nothing.

        It may lack components; where it lacks one of several that share a dimension, it belongs to
        all of that one's values. Empty: a value of it is not here (yet).
        """
        numbers: list[list[int]] = []
        for dimension in "CZT":
            members = self._members[dimension]
            if not any(component in at for component in members):
                numbers.append([0])
                continue
            if any(c in at and at[c] not in self._ranks[c] for c in members):
                return []
            choices = [(at[c],) if c in at else self.values[c] for c in members]
            numbers.append(
                [
                    1 + self._number(dimension, dict(zip(members, picks, strict=True)))
                    for picks in product(*choices)
                ]
            )
        return [(c, z, t) for t in numbers[2] for z in numbers[1] for c in numbers[0]]

    def slot(self, coords: Coords) -> int:
        """The number of a place's slice in the stack, from 0: channels are the fastest."""
        if self._offsets is None:
            offsets: dict[str, dict[PlaceValue, int]] = {}
            step = 1
            for dimension in "CZT":
                for component in reversed(self._members[dimension]):
                    ranks = self._ranks[component]
                    offsets[component] = {value: rank * step for value, rank in ranks.items()}
                    step *= len(ranks)
            self._offsets = [offsets[component] for component in self.components]
        return sum([offset[value] for offset, value in zip(self._offsets, coords, strict=True)])


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
            return plane.array
        return self._keeper.convert(np.asarray(plane), self._form)

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
        here = before.place((imp.getChannel(), imp.getSlice(), imp.getFrame()))
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
        words = [str(v) if isinstance(v, str) else f"{c} {v}" for c, v in at.items()]
        facts = {**at, **self.layer.infos.get(coords, {})}
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
        now = self.extent.place((imp.getChannel(), imp.getSlice(), imp.getFrame()))
        for component, value in at.items():
            if component in now and value in self.extent.values[component]:
                now[component] = value
        imp.setPosition(*self.extent.position(tuple(now[c] for c in self.layer.components)))

    def close(self) -> None:
        """Close the window and forget the pixels."""
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
