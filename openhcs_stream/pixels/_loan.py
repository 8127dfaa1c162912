"""An array that lies in a slot: what a caller asks for, and how its end is noticed."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, NamedTuple

from openhcs_stream.errors import InvalidItem
from openhcs_stream.pixels._dtypes import wire_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.errors import StreamError
    from openhcs_stream.pixels._arena import Slot

__all__ = ["Form", "Loan", "form_of", "no_shape"]


class Form(NamedTuple):
    """An array that is to be made: its shape, its dtype's name on the wire, its bytes."""

    shape: tuple[int, ...]
    wire: str
    nbytes: int


class Loan:
    """Owner of an allocated array's memory; numpy keeps it alive as the base of all views."""

    __slots__ = ("__array_interface__", "_dropped", "slot")

    def __init__(
        self, slot: Slot, dropped: Callable[[Slot], None], shape: tuple[int, ...], wire: str
    ) -> None:
        self.slot = slot
        self._dropped = dropped
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": wire,
            "data": (slot.address, False),
        }

    def __del__(self) -> None:
        self._dropped(self.slot)


def form_of(shape: int | tuple[int, ...] | list[int], dtype: npt.DTypeLike) -> Form:
    """Check what a caller asks for.

    Raises
    ------
    InvalidItem
        No such shape, or a dtype that can't be sent.
    """
    wire = wire_dtype(dtype)
    try:
        if isinstance(shape, (tuple, list)):  # a union type would cost half a microsecond
            sizes = tuple(map(operator.index, shape))
        else:
            sizes = (operator.index(shape),)
    except TypeError as error:
        raise no_shape(shape) from error
    if sizes and min(sizes) < 0:
        raise no_shape(shape)
    return Form(sizes, wire, math.prod(sizes) * int(wire[2:]))  # a wire name ends in its bytes


def no_shape(shape: object) -> StreamError:
    """Make the error of a shape that no array has."""
    return InvalidItem(
        f"{shape!r} is no shape of an array.",
        cure="Give a tuple of at most 8 integers, none below 0.",
    )
