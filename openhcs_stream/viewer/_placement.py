"""Which layer, and which place on the sliders, an item goes to: decided once, for all viewers.

Pure functions: no viewer, thread or clock is involved, so that the same stream yields the same
structure everywhere. Raster items are cut into planes, (Y, X) or (Y, X, S), which are views of the
one array that the viewer kept; nothing is copied here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import AXES, COMPONENT_ORDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openhcs_stream.messages import Kind, LayerSpec, Mode

__all__ = [
    "AXIS_COMPONENTS",
    "DEFAULT_SPLITS",
    "MAX_PLANES",
    "RASTER_KINDS",
    "Axis",
    "Coords",
    "LayerKey",
    "PlaceValue",
    "PlacedItem",
    "Placement",
    "axis_component",
    "component_order",
    "layer_title",
    "place",
    "sort_key",
]

PlaceValue: TypeAlias = int | str
#: Values of a layer's stacked components, in the order of the layer's `components`.
Coords: TypeAlias = tuple[PlaceValue, ...]

#: Kinds that are made of planes; the others are lists of coordinates.
RASTER_KINDS: Final = frozenset({"image", "labels"})

#: Components that some array axes mean; any other letter means itself, in lower case.
AXIS_COMPONENTS: Final[Mapping[str, str]] = {"T": "time", "Z": "z", "C": "channel"}

#: Modes that make a layer for each value, in a viewer whose channels are layers, such as napari.
DEFAULT_SPLITS: Final[frozenset[Mode]] = frozenset({"split", "channel"})

#: Planes that one item may be cut into: each costs a place of its own in the layer.
MAX_PLANES: Final = 65_536

_DEFAULT_MODES: Final[Mapping[str, Mode]] = {"channel": "channel"}
_SPATIAL: Final = "YX"
#: Up to here a place's number is exact.
_FARTHEST: Final = 2**53
_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Axis:
    """One slider: a component and the values that it has so far, in natural order."""

    component: str
    values: tuple[PlaceValue, ...]


class LayerKey(NamedTuple):
    """What makes two items belong to the same layer."""

    source: str
    name: str
    kind: Kind
    split: tuple[tuple[str, PlaceValue], ...] = ()  #: (component, value), in component order


@dataclass(slots=True)
class PlacedItem:
    """One plane, or one list of coordinates, and where it goes."""

    key: LayerKey
    spec: LayerSpec
    components: tuple[str, ...]  #: stacked, in component order
    coords: Coords  #: one value for each of `components`
    payload: Any  #: raster: (Y, X) or (Y, X, S); rois: list of Roi; points, tracks: float64 array


class Placement:
    """How the items of one declared layer are placed: made once a layer, used for each item.

    Parameters
    ----------
    spec : LayerSpec
        What the layer's items have in common.
    modes : mapping of component to mode
        The viewer's own modes; those in ``spec.modes`` take precedence. A component that neither
        names is stacked, except ``channel``, which has mode "channel".
    splits : frozenset of mode
        The modes that make a layer (or window) for each value in this viewer.

    Attributes
    ----------
    spec : LayerSpec
        As given, with the viewer's own `modes` beside its own.
    components : tuple of str
        What the layer is stacked by, in component order.

    Raises
    ------
    InvalidItem
        Axes and components don't fit together; the text names them.
    """

    def __init__(
        self,
        spec: LayerSpec,
        *,
        modes: Mapping[str, Mode] | None = None,
        splits: frozenset[Mode] = DEFAULT_SPLITS,
    ) -> None:
        if modes:
            spec = msgspec.structs.replace(spec, modes={**modes, **spec.modes})
        self.spec = spec
        self._raster = spec.kind in RASTER_KINDS
        self._samples = self._raster and spec.axes.endswith("S")
        _check_axes(spec)
        #: Letters that are sliders, in the order of the array's axes (or columns).
        self._letters = (
            "" if spec.kind == "rois" else "".join(x for x in spec.axes if x not in "YXS")
        )
        from_axes = [axis_component(letter) for letter in self._letters]
        _check_components(spec, from_axes)
        if spec.kind == "tracks":
            # A track is one line through time: it stays whole, and the viewer aligns its columns.
            from_axes = []
        names = (*spec.components, *from_axes)
        chosen: dict[str, Mode] = {**_DEFAULT_MODES, **spec.modes}
        ordered = component_order(names, spec.order)
        self.components = tuple(c for c in ordered if chosen.get(c, "stack") not in splits)
        self._split = tuple(c for c in ordered if chosen.get(c, "stack") in splits)
        # Where in (*place values, *axis values) each component's value is found.
        self._stacked_at = tuple(names.index(c) for c in self.components)
        self._split_at = tuple(names.index(c) for c in self._split)
        self._keys: dict[Coords, LayerKey] = {}
        # How an item's axes become (sliders..., Y, X, S): None where they lie so already.
        wanted = self._letters + "".join(x for x in "YXS" if x in spec.axes)
        self._transpose = None if wanted == spec.axes else tuple(map(spec.axes.index, wanted))
        # What makes a plane of a row, a column or a single value.
        missing = [None if letter not in spec.axes else slice(None) for letter in _SPATIAL]
        self._expand = tuple(missing) if None in missing else None

    @property
    def depth(self) -> int:
        """How many sliders an item's own axes make."""
        return len(self._letters)

    def arrange(self, pixels: Any) -> Any:
        """Bring an image's axes into the order (sliders..., Y, X, and S where it has it): a view.

        A row becomes (1, X), a single value (1, 1), and labels of bool become uint8.

        Raises
        ------
        InvalidItem
            The image does not fit the layer's declaration.
        """
        spec = self.spec
        shape = pixels.shape
        if len(shape) != len(spec.axes):
            raise InvalidItem(
                f"{spec.name!r} has shape {tuple(shape)}, which has not the axes {spec.axes!r}.",
                cure="Give one letter for each dimension.",
            )
        if 0 in shape:
            raise InvalidItem(
                f"{spec.name!r} is empty: shape {tuple(shape)}.", cure="Leave it out."
            )
        if self._samples and shape[-1] not in (3, 4):
            raise InvalidItem(
                f"{spec.name!r} has {shape[-1]} samples in each pixel (axis S).",
                cure="Use 3 (RGB) or 4 (RGBA), or name the axis C for channels.",
            )
        if spec.kind == "labels":
            if pixels.dtype.kind not in "biu":
                raise InvalidItem(
                    f"the label image {spec.name!r} has dtype {pixels.dtype}.",
                    cure="Labels are whole numbers: use astype('int32'), or send it as an image.",
                )
            if pixels.dtype.kind == "b":
                pixels = pixels.view(np.uint8)
        if len(shape) > 2:
            _check_planes(spec, math.prod(shape[spec.axes.index(each)] for each in self._letters))
        if self._transpose is not None:
            pixels = pixels.transpose(self._transpose)
        if self._expand is not None:
            pixels = pixels[(slice(None),) * len(self._letters) + self._expand]
        return pixels

    def cut(self, values: tuple[PlaceValue, ...], planes: Any) -> tuple[PlacedItem, ...]:
        """Take an image that `arrange` arranged apart into its planes, each with its place.

        Parameters
        ----------
        values : tuple
            One for each of ``spec.components``.
        planes : array, or what the viewer made of one
            (sliders..., Y, X), or with S at the end.
        """
        self._check_values(values)
        if not self._letters:
            return (self._item(values, planes),)
        item = self._item
        return tuple(
            item((*values, *index), planes[index])
            for index in product(*map(range, planes.shape[: len(self._letters)]))
        )

    def place(self, values: tuple[PlaceValue, ...], payload: Any) -> tuple[PlacedItem, ...]:
        """Cut one item into what is stacked, each with its place.

        Parameters
        ----------
        values : tuple
            One for each of ``spec.components``.
        payload : array or list
            What the viewer kept: one axis for each of ``spec.axes`` (image, labels); a list of Roi
            (rois); (N, D) with a column for each of ``spec.axes`` (points); (N, D + 1) with the
            track's number first (tracks).

        Raises
        ------
        InvalidItem
            The payload or the values don't fit the layer's declaration.
        """
        if self._raster:
            return self.cut(values, self.arrange(payload))
        spec = self.spec
        self._check_values(values)
        match spec.kind:
            case "points":
                return self._place_points(values, payload)
            case "tracks":
                columns = _columns(spec, payload, len(spec.axes) + 1)
                order = [0, *(1 + spec.axes.index(x) for x in "TZYX" if x in spec.axes)]
                return (self._item(values, columns[:, order]),)
            case _:
                return (self._item(values, payload),)

    def _check_values(self, values: tuple[PlaceValue, ...]) -> None:
        spec = self.spec
        if len(values) != len(spec.components):
            raise InvalidItem(
                f"{spec.name!r} has {len(values)} place values {values!r} for the "
                f"{len(spec.components)} components {spec.components!r}.",
                cure="Give one value for each component.",
            )

    def _item(self, values: Coords, payload: Any) -> PlacedItem:
        split = tuple([values[i] for i in self._split_at])
        key = self._keys.get(split)
        if key is None:
            key = self._keys[split] = LayerKey(
                self.spec.source,
                self.spec.name,
                self.spec.kind,
                tuple(zip(self._split, split, strict=True)),
            )
        coords = tuple([values[i] for i in self._stacked_at])
        return PlacedItem(key, self.spec, self.components, coords, payload)

    def _place_points(self, values: Coords, payload: Any) -> tuple[PlacedItem, ...]:
        axes = self.spec.axes
        points = _columns(self.spec, payload, len(axes))
        yx = points[:, [axes.index(letter) for letter in _SPATIAL]]
        if not self._letters:
            return (self._item(values, yx),)
        if not len(points):
            return ()
        at = np.rint(points[:, [axes.index(letter) for letter in self._letters]])
        if (np.abs(at) > _FARTHEST).any():
            raise InvalidItem(
                f"the points {self.spec.name!r} lie at {float(np.abs(at).max()):g} along an axis.",
                cure="Give coordinates in pixels.",
            )
        planes, which = np.unique(at.astype(np.int64), axis=0, return_inverse=True)
        _check_planes(self.spec, len(planes))
        # All points of a plane next to each other: looking for each plane's would take for ever.
        order = np.argsort(which.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(which.ravel()))[:-1]
        return tuple(
            self._item((*values, *place), rows)
            for place, rows in zip(planes.tolist(), np.split(yx[order], ends), strict=True)
        )


def place(
    spec: LayerSpec,
    values: tuple[PlaceValue, ...],
    payload: Any,
    *,
    modes: Mapping[str, Mode] | None = None,
    splits: frozenset[Mode] = DEFAULT_SPLITS,
) -> tuple[PlacedItem, ...]:
    """Place one item: `Placement` in one call."""
    return Placement(spec, modes=modes, splits=splits).place(values, payload)


def axis_component(letter: str) -> str:
    """Name the component that an array axis means: "Z" is "z", "T" is "time"."""
    return AXIS_COMPONENTS.get(letter, letter.lower())


def component_order(names: Iterable[str], order: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Sort components, slowest first.

    Those in `order` come first, in its order; then those of `COMPONENT_ORDER`. Others, by name,
    come before ``channel``.
    """
    known = [*order, *(name for name in COMPONENT_ORDER if name not in order)]
    given = set(names)
    others = sorted(given.difference(known))
    at = known.index("channel")
    return tuple(name for name in (*known[:at], *others, *known[at:]) if name in given)


def sort_key(value: PlaceValue) -> tuple[Any, ...]:
    """Sort place values as people do: numbers first, by size, then texts with A2 before A10."""
    if isinstance(value, int):
        return (0, value)
    # Splitting by runs of digits gives text, digits, text...: like meets like at each position.
    parts = _NUMBERS.split(value)
    natural = tuple(int(part) if i % 2 else part for i, part in enumerate(parts))
    return (1, natural, value)


def layer_title(key: LayerKey) -> str:
    """What a person calls a layer: "source / name [values that it was split by]"."""
    title = f"{key.source} / {key.name}" if key.source else key.name
    if not key.split:
        return title
    # A bare number would not say what it counts.
    values = (str(v) if isinstance(v, str) else f"{component} {v}" for component, v in key.split)
    return f"{title} [{', '.join(values)}]"


def _check_axes(spec: LayerSpec) -> None:
    axes, name = spec.axes, spec.name
    if spec.kind == "rois":
        return
    for letter in axes:
        if letter not in AXES:
            raise InvalidItem(
                f"{name!r} has the axes {axes!r}, in which {letter!r} is unknown.",
                cure=f"Use the letters {AXES}: time, channel, z, y, x, samples, or any other.",
            )
    if len(set(axes)) != len(axes):
        raise InvalidItem(
            f"{name!r} has the axes {axes!r}, in which a letter comes twice.",
            cure="Name each axis with its own letter.",
        )
    if spec.kind in RASTER_KINDS:
        if "S" in axes[:-1]:
            raise InvalidItem(
                f"{name!r} has the axes {axes!r}: samples are not last.",
                cure="Move S to the end (numpy.moveaxis), or name the axis C for channels.",
            )
        if spec.kind == "labels" and "S" in axes:
            raise InvalidItem(
                f"the label image {name!r} has the axes {axes!r}.",
                cure="A label has one number in each pixel: leave out S.",
            )
        return
    if "S" in axes or not {"Y", "X"} <= set(axes):
        raise InvalidItem(
            f"the {spec.kind} {name!r} have the columns {axes!r}.",
            cure='Name one letter for each column, among them Y and X: "YX" or "ZYX".',
        )
    if spec.kind == "tracks" and ("T" not in axes or not set(axes) <= set("TZYX")):
        raise InvalidItem(
            f"the tracks {name!r} have the columns {axes!r} after the track's number.",
            cure='Use "TYX" or "TZYX".',
        )


def _check_planes(spec: LayerSpec, planes: int) -> None:
    if planes > MAX_PLANES:
        raise InvalidItem(
            f"{spec.name!r} has {planes} planes, and one item may have {MAX_PLANES}.",
            cure="Send it in several items, each with its place.",
        )


def _check_components(spec: LayerSpec, from_axes: list[str]) -> None:
    twice = [name for name in spec.components if spec.components.count(name) > 1]
    if twice:
        raise InvalidItem(
            f"the place of {spec.name!r} names {twice[0]!r} twice.", cure="Name it once."
        )
    for component in spec.components:
        if component in from_axes:
            raise InvalidItem(
                f"{spec.name!r} has {component!r} in its place and as an axis of {spec.axes!r}.",
                cure=f"Leave {component!r} out of the place, or give the axis another letter.",
            )


def _columns(spec: LayerSpec, payload: Any, wanted: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    columns = np.asarray(payload, np.float64)
    if columns.ndim != 2 or columns.shape[1] != wanted:
        raise InvalidItem(
            f"the {spec.kind} {spec.name!r} have shape {columns.shape}, not (N, {wanted}), "
            f"for the columns {spec.axes!r}.",
            cure="Pass one row for each point"
            + (", the track's number first." if spec.kind == "tracks" else "."),
        )
    if not np.isfinite(columns).all():
        raise InvalidItem(
            f"the {spec.kind} {spec.name!r} have coordinates that are infinite or no numbers.",
            cure="Leave out those rows.",
        )
    return columns
