"""Where the places of a layer are in a hyperstack: channel, slice and frame."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from openhcs_stream.messages import Mode
    from openhcs_stream.viewer import Coords

    PlaceValue = int | str

__all__ = ["Extent", "Position"]

#: Channel, slice and frame, counted from 1, as ImageJ counts.
Position = tuple[int, int, int]

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
