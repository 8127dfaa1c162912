"""A layer's pixels as one array that is a dictionary of planes.

A plane that arrives is put into the dictionary under its place; nothing that stands is moved,
copied or rebuilt, whatever value comes late. napari asks for one plane at a time, mostly as a slice
of length 1, and gets a view of it.
"""

from __future__ import annotations

import operator
from bisect import insort
from dataclasses import dataclass
from itertools import product
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.viewer._files import FilePlane
from openhcs_stream.viewer._placement import Axis, component_order, sort_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from openhcs_stream.viewer._placement import Coords, PlaceValue

__all__ = ["Patch", "PlaneStack", "World"]


@dataclass(frozen=True, slots=True)
class Patch:
    """A part of one plane that was written to.

    Attributes
    ----------
    coords : tuple
        Of the plane.
    plane : array
        That was written to; the stack may hold another one by now.
    region : tuple of slice
        Where in it.
    before : array
        What was there.
    """

    coords: Coords
    plane: npt.NDArray[Any]
    region: tuple[slice, ...]
    before: npt.NDArray[Any]


class World:
    """The sliders that all layers share: components in order, each with its sorted values.

    Attributes
    ----------
    components : tuple of str
        Slowest first.
    version : int
        Increases when a component or a value is added or removed.
    """

    def __init__(self) -> None:
        self.components: tuple[str, ...] = ()
        self.version = 0
        self._order: tuple[str, ...] = ()
        self._values: dict[str, list[PlaceValue]] = {}
        self._known: dict[str, set[PlaceValue]] = {}
        self._axes: tuple[int, tuple[Axis, ...]] = (0, ())

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All components with their values, slowest first."""
        version, axes = self._axes
        if version != self.version:
            axes = tuple(Axis(name, tuple(self._values[name])) for name in self.components)
            self._axes = (self.version, axes)
        return axes

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each component has."""
        return tuple([len(self._values[name]) for name in self.components])

    def values(self, component: str) -> list[PlaceValue]:
        """The sorted values of one component; not to be changed."""
        return self._values[component]

    def prefer(self, order: tuple[str, ...]) -> None:
        """Order components so. The first order that is given stays: sliders do not jump about."""
        self._order = self._order or order

    def add(self, components: tuple[str, ...], coords: Coords) -> None:
        """Make sure that there is a place with these values."""
        for component, value in zip(components, coords, strict=True):
            known = self._known.get(component)
            if known is None:
                known = self._known[component] = set()
                self._values[component] = []
                self.components = component_order(self._values, self._order)
            if value not in known:
                known.add(value)
                insort(self._values[component], value, key=sort_key)
                self.version += 1

    def rebuild(self, used: Iterable[tuple[tuple[str, ...], Iterable[Coords]]]) -> None:
        """Keep only the places that are used: (components, their coords) of each layer."""
        self.version += 1
        self.components, self._values, self._known = (), {}, {}
        for components, places in used:
            for coords in places:
                self.add(components, coords)
        if not self._values:
            self._order = ()


class PlaneStack:
    """A lazy array of a layer's planes: the world's axes, then Y, X, and S where they are RGB(A).

    A component that the layer lacks repeats it at all its values; places where no plane arrived
    are zeros; planes of unequal size are padded with zeros at the bottom and right; unequal dtypes
    are promoted to their common one. Integers and slices of length 1 give views, anything else
    that spans several planes a new array.

    Attributes
    ----------
    components : tuple of str
        What the layer is stacked by.
    planes : dict of coords to plane
        What has arrived, as it arrived, or was painted; change it with `put` and `write` only.
    """

    def __init__(self, world: World, components: tuple[str, ...]) -> None:
        self.components = components
        self.planes: dict[Coords, Any] = {}
        self._own: set[Coords] = set()  # planes that were copied to be written to
        self._world = world
        self._changes = 0
        self._nbytes = 0
        self._height = self._width = 1
        self._samples = 0
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        self._blank: npt.NDArray[Any] | None = None

    # --- what an array tells ------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The world's lengths, then the largest height and width, then 3 or 4 for RGB(A)."""
        return (*self._world.shape, *self.plane_shape)

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """(Y, X) or (Y, X, S) of every plane."""
        if self._samples:
            return (self._height, self._width, self._samples)
        return (self._height, self._width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The common dtype of all planes."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._world.components) + (3 if self._samples else 2)

    @property
    def size(self) -> int:
        """Number of elements, those of missing planes included."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of the planes that are kept."""
        return self._nbytes

    @property
    def rgb(self) -> bool:
        """Whether the last axis is samples: red, green, blue (alpha)."""
        return self._samples > 0

    @property
    def version(self) -> int:
        """A number that increases on each change of a plane or of the sliders."""
        return self._changes + self._world.version

    def __len__(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Go along the first axis."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<PlaneStack {self.shape} {self.dtype}, {len(self.planes)} planes>"

    # --- growing ------------------------------------------------------------------------------

    def refusal(self, plane: Any) -> str:
        """Tell why a plane can't be put here; empty where it can."""
        samples = plane.shape[2] if len(plane.shape) == 3 else 0
        if self.planes and samples != self._samples:
            return (
                f"a plane of shape {tuple(plane.shape)} does not go with planes of shape "
                f"{self.plane_shape}"
            )
        return ""

    def take_off(self, coords: Coords) -> bool:
        """Let go of the plane at a place; whether there was one. The world is the scene's care."""
        plane = self.planes.pop(coords, None)
        if plane is None:
            return False
        self._own.discard(coords)
        self._changes += 1
        self._nbytes -= plane.nbytes
        return True

    def put(self, coords: Coords, plane: Any) -> None:
        """Put a plane at its place, or replace the one that is there."""
        old = self.planes.get(coords)
        self.planes[coords] = plane
        self._own.discard(coords)
        self._changes += 1
        self._nbytes += plane.nbytes
        if old is not None:
            self._nbytes -= old.nbytes
            if old.shape != plane.shape or old.dtype != plane.dtype:
                self._measure()
            return
        height, width, *samples = plane.shape
        if len(self.planes) == 1:
            self._height, self._width, self._dtype = height, width, plane.dtype
            self._samples = samples[0] if samples else 0
            return
        if height > self._height:
            self._height = height
        if width > self._width:
            self._width = width
        if plane.dtype != self._dtype:
            self._dtype = np.result_type(self._dtype, plane.dtype)

    def _measure(self) -> None:
        planes = self.planes.values()
        self._height = max(plane.shape[0] for plane in planes)
        self._width = max(plane.shape[1] for plane in planes)
        self._dtype = np.result_type(*{plane.dtype for plane in planes})

    # --- reading ------------------------------------------------------------------------------

    def plane(self, coords: Coords) -> npt.NDArray[Any]:
        """One plane at the stack's size and dtype: the kept one itself wherever it fits.

        Parameters
        ----------
        coords : tuple
            One value for each of this layer's `components`. Zeros, read-only, where none arrived.
        """
        kept = self.planes.get(coords)
        shape, dtype = self.plane_shape, self._dtype
        if kept is None:
            blank = self._blank
            if blank is None or blank.shape != shape or blank.dtype != dtype:
                blank = self._blank = np.zeros(shape, dtype)
                blank.setflags(write=False)
            return blank
        if kept.shape == shape and kept.dtype == dtype:
            return np.asarray(kept)
        padded = np.zeros(shape, dtype)
        padded[: kept.shape[0], : kept.shape[1]] = kept
        return padded

    def __getitem__(self, key: Any) -> Any:
        """Index as a numpy array is indexed, with integers, slices, arrays, None and Ellipsis."""
        entries = self._entries(key)
        depth = len(self._world.components)
        quick: list[Any] = []
        steps: list[int] = []
        for axis, entry in enumerate(entries):
            if not isinstance(entry, (int, slice)):
                break
            if axis >= depth:
                quick.append(entry)
                continue
            length = len(self._world.values(self._world.components[axis]))
            if isinstance(entry, int):
                steps.append(_wrapped(entry, length, axis))
            elif len(span := range(length)[entry]) == 1:
                steps.append(span[0])
                quick.append(None)
            else:
                break
        else:
            coords = self._coords(steps)
            in_file = self._in_file(coords)
            if in_file is None:
                return self.plane(coords)[tuple(quick)]
            part = tuple(entries[depth:])
            return in_file.read(part)[tuple([None] * (len(quick) - len(part)) + [...])]
        needed, pushed, final = self._plan(entries, depth)
        return self._block(needed, pushed)[final]

    def read_strided(self, leading: tuple[Any, ...], stride: int) -> npt.NDArray[Any] | None:
        """Read every so many pixels of Y and X of a plane that is in a file, and no more.

        Parameters
        ----------
        leading : tuple
            An index for each of the world's axes.
        stride : int
            Every how many pixels.

        Returns
        -------
        ndarray or None
            As indexing gives it; None: it is not one plane, or not in a file.
        """
        lengths = self._world.shape
        steps: list[int] = []
        for axis, (entry, length) in enumerate(zip(leading, lengths, strict=True)):
            span = range(length)[entry] if isinstance(entry, slice) else entry
            if isinstance(span, range):
                if len(span) != 1:
                    return None
                span = span[0]
            if not isinstance(span, int):
                return None
            steps.append(_wrapped(span, length, axis))
        in_file = self._in_file(self._coords(steps))
        if in_file is None:
            return None
        kept = [None for each in leading if isinstance(each, slice)]
        return in_file.read(stride=stride)[(*kept, ...)]

    def glance(self, coords: Coords, longest: int = 1024) -> npt.NDArray[Any]:
        """One plane as it arrived; of one that is in a file no more than so many pixels a side."""
        kept = self.planes[coords]
        if isinstance(kept, FilePlane):
            return kept.read(stride=max(1, 2 ** (max(kept.shape[:2]) // longest).bit_length()))
        return np.asarray(kept)

    def _in_file(self, coords: Coords) -> FilePlane | None:
        """The plane, where it is in a file and as the stack wants it."""
        kept = self.planes.get(coords)
        if not isinstance(kept, FilePlane):
            return None
        fits = kept.shape == self.plane_shape and kept.dtype == self._dtype
        return kept if fits else None

    # --- writing ------------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write as into a numpy array: see `write`."""
        self.write(key, value)

    def write(self, key: Any, value: Any) -> list[Patch]:
        """Write as into a numpy array, for instance when a person paints labels.

        A plane is copied before it is written to for the first time: what arrived may lie in
        memory that the next image of its place is written to. A place where nothing had arrived
        gets a plane of its own. Where a layer is repeated along an axis, its one plane takes what
        was changed in any of the repetitions.

        Returns
        -------
        list of Patch
            What was there before: one for each plane that was written to.
        """
        needed, pushed, final = self._plan(self._entries(key), len(self._world.components))
        block = self._block(needed, pushed)
        was = block.copy()
        block[final] = value
        if block.size == 0:
            return []
        cut = block.shape[len(needed) :]
        patches = []
        for coords, at in self._places(needed):
            old, *_ = was[at].reshape(-1, *cut)
            new, *others = block[at].reshape(-1, *cut)
            for other in others:
                new = np.where(other != old, other, new)
            plane, region = self._writable(coords, new, pushed)
            inside = plane[region]
            patches.append(Patch(coords, plane, region, inside.copy()))
            inside[...] = new[tuple(map(slice, inside.shape))]
        self._changes += 1
        return patches

    def _writable(
        self, coords: Coords, values: npt.NDArray[Any], part: tuple[slice, ...]
    ) -> tuple[npt.NDArray[Any], tuple[slice, ...]]:
        """Give a plane that is this stack's alone and can hold the values, and where they go."""
        kept = self.planes.get(coords)
        plane = self.plane(coords) if kept is None else np.asarray(kept)
        if plane.dtype != self._dtype and (values.astype(plane.dtype) != values).any():
            plane = plane.astype(self._dtype)
        if plane.shape != self.plane_shape:
            # Smaller than others: it grows where something is painted beside it.
            beside = np.ones(self.plane_shape, bool)
            beside[tuple(map(slice, plane.shape))] = False
            if any((each.step or 1) != 1 for each in part) or values[beside[part]].any():
                grown = np.zeros(self.plane_shape, plane.dtype)
                grown[tuple(map(slice, plane.shape))] = plane
                plane = grown
        if plane is kept and coords in self._own and plane.flags.writeable:
            return plane, part
        if plane is kept or not plane.flags.writeable or plane.base is not None:
            plane = plane.copy()
        self.planes[coords] = plane
        self._own.add(coords)
        self._nbytes += plane.nbytes - (0 if kept is None else kept.nbytes)
        return plane, part

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """All planes in one new array.

        Raises
        ------
        ValueError
            ``copy=False`` was asked for: the planes don't lie together.
        """
        if copy is False:
            raise ValueError("a stack of planes can't become one array without a copy.")
        everything = (slice(None),) * self.ndim
        block = self._block(*self._plan(list(everything), len(self._world.components))[:2])
        return block if dtype is None else block.astype(dtype, copy=False)

    # --- indexing, step by step ---------------------------------------------------------------

    def _entries(self, key: Any) -> list[Any]:
        """One int, slice or int array for each axis, no mask, with any None between them."""
        given = [_entry(entry) for entry in (key if isinstance(key, tuple) else (key,))]
        spans = [_axes_taken(entry) for entry in given]
        dots = [i for i, entry in enumerate(given) if entry is Ellipsis]
        if len(dots) > 1:
            raise IndexError("an index can only have a single ellipsis ('...').")
        if sum(spans) > self.ndim:
            raise IndexError(f"too many indices: {sum(spans)} for {self.ndim} dimensions.")
        at = dots[0] if dots else len(given)
        filling: list[Any] = [slice(None)] * (self.ndim - sum(spans))
        # An Ellipsis that stands for no axis still parts the index arrays on its two sides.
        given[at : at + 1] = filling or ([Ellipsis] if dots else [])
        entries: list[Any] = []
        axis = 0
        for entry in given:
            if isinstance(entry, np.ndarray) and entry.dtype.kind == "b":
                covered = self.shape[axis : axis + entry.ndim]
                if entry.shape != covered:
                    raise IndexError(
                        f"a mask of shape {entry.shape} is not for axes of lengths {covered}."
                    )
                entries.extend(entry.nonzero())  # as numpy does
            else:
                entries.append(entry)
            axis += _axes_taken(entry)
        return entries

    def _plan(
        self, entries: list[Any], depth: int
    ) -> tuple[list[list[int]], tuple[slice, ...], tuple[Any, ...]]:
        """What to gather, and how to index it then so that numpy's own rules give the result.

        Returns
        -------
        needed : list of list of int
            For each world axis the positions that are needed.
        pushed : tuple of slice
            What each plane is cut to before it is gathered.
        final : tuple
            The index into the gathered block.
        """
        shape = self.shape
        needed: list[list[int]] = []
        pushed: list[slice] = []
        final: list[Any] = []
        axis = 0
        for entry in entries:
            if entry is None or entry is Ellipsis:
                final.append(entry)
                continue
            length = shape[axis]
            if isinstance(entry, int):
                position = _wrapped(entry, length, axis)
                final.append(0)
                if axis < depth:
                    needed.append([position])
                else:
                    pushed.append(slice(position, position + 1))
            elif isinstance(entry, slice):
                final.append(slice(None))
                if axis < depth:
                    needed.append(list(range(length)[entry]))
                else:
                    pushed.append(entry)
            else:
                if entry.size and not -length <= entry.min() <= entry.max() < length:
                    raise IndexError(f"an index is out of bounds for axis {axis} of size {length}.")
                if axis < depth:
                    positions, which = np.unique(entry % length, return_inverse=True)
                    needed.append(positions.tolist())
                    final.append(which.reshape(entry.shape))
                else:
                    pushed.append(slice(None))
                    final.append(entry)
            axis += 1
        return needed, tuple(pushed), tuple(final)

    def _block(self, needed: list[list[int]], pushed: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Gather the needed planes, each cut, into one new array."""
        cut = [len(range(n)[part]) for n, part in zip(self.plane_shape, pushed, strict=True)]
        block = np.zeros((*map(len, needed), *cut), self._dtype)
        for coords, at in self._places(needed):
            if coords in self.planes:
                block[at] = self.plane(coords)[pushed]
        return block

    def _places(self, needed: list[list[int]]) -> Iterable[tuple[Coords, tuple[Any, ...]]]:
        """The layer's coords at these world positions, and where in the block each goes."""
        axes = [self._world.components.index(component) for component in self.components]
        at: list[Any] = [slice(None)] * len(needed)
        for picks in product(*(enumerate(needed[axis]) for axis in axes)):
            coords: list[PlaceValue] = []
            for axis, component, (number, position) in zip(
                axes, self.components, picks, strict=True
            ):
                at[axis] = number
                coords.append(self._world.values(component)[position])
            yield tuple(coords), tuple(at)

    def _coords(self, steps: list[int]) -> Coords:
        world = self._world
        return tuple(
            [world.values(name)[steps[world.components.index(name)]] for name in self.components]
        )


def _wrapped(index: int, length: int, axis: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for axis {axis} of size {length}.")
    return index % length


def _entry(entry: Any) -> Any:
    """One part of an index as None, Ellipsis, a slice, an int, or an array of ints or bools."""
    if entry is None or isinstance(entry, (slice, EllipsisType)) or type(entry) is int:
        return entry
    array = np.asarray(entry)
    if array.ndim == 0 and array.dtype.kind in "iu":
        return operator.index(entry)
    if array.size == 0 and array.dtype.kind == "f":  # an empty list
        return array.astype(np.intp)
    if array.ndim == 0 or array.dtype.kind not in "iub":
        raise IndexError(
            f"a stack of planes can't be indexed with {type(entry).__name__} {entry!r}."
        )
    return array


def _axes_taken(entry: Any) -> int:
    if entry is None or entry is Ellipsis:
        return 0
    if isinstance(entry, np.ndarray) and entry.dtype.kind == "b":
        return entry.ndim
    return 1
