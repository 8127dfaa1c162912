"""How much a viewer keeps, counted by what is alive, and what it may keep."""

from __future__ import annotations

import re
import weakref
from collections import deque
from typing import Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.pixels import memory_limit_nbytes

__all__ = [
    "PLACE_NBYTES",
    "Budget",
    "check_memory",
    "default_memory_nbytes",
    "owner_of",
    "parse_memory",
]

#: What one plane or list costs besides its data: its place, its metadata, its entry in the layer.
PLACE_NBYTES: Final = 1024
#: Less than this is of no use to any viewer.
LEAST_NBYTES: Final = 16 << 20
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([KMGT])i?B?|%|B)?", re.IGNORECASE)
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Budget:
    """Counts memory from its making to its end, whoever holds it then.

    `reserve` and `used_nbytes` belong to one thread. Memory may end on any thread, in the middle
    of anything.

    Parameters
    ----------
    limit_nbytes : int
        What may be kept.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self.limit_nbytes = limit_nbytes
        self._used = 0
        #: What ended since it was last counted: a finalizer may only append.
        self._ended: deque[int] = deque()

    @property
    def used_nbytes(self) -> int:
        """What is kept or reserved now."""
        while self._ended:
            self._used -= self._ended.popleft()
        return self._used

    @property
    def counted_nbytes(self) -> int:
        """As `used_nbytes` was when it was asked for last; from any thread."""
        return self._used

    @property
    def left_nbytes(self) -> int:
        """What may still be kept; negative where more is kept than that."""
        return self.limit_nbytes - self.used_nbytes

    def reserve(self, nbytes: int) -> bool:
        """Count memory that is to be made; False: there is no room for it, nothing is counted."""
        if nbytes > self.left_nbytes:
            return False
        self._used += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """What was reserved was not made, or is gone. From any thread."""
        self._ended.append(nbytes)

    def hold(self, owner: Any, nbytes: int) -> None:
        """Count what was reserved until `owner` is gone.

        Parameters
        ----------
        owner : object
            What the memory lives and dies with; it must take weak references.
        nbytes : int
            As it was reserved.
        """
        weakref.finalize(owner, self._ended.append, nbytes).atexit = False


def owner_of(kept: Any) -> Any:
    """What some memory lives and dies with: of an array the one that it is a view of."""
    while isinstance(getattr(kept, "base", None), np.ndarray):
        kept = kept.base
    return kept


def default_memory_nbytes() -> int:
    """What a viewer keeps where nobody says how much: half of what this process may use."""
    return max(memory_limit_nbytes() // 2, LEAST_NBYTES)


def parse_memory(text: str) -> int:
    """Read an amount of memory as people write it.

    Examples
    --------
    >>> parse_memory("4G"), parse_memory("512 MiB"), parse_memory("16777216")
    (4294967296, 536870912, 16777216)

    Raises
    ------
    InvalidItem
        It is none, or less than a viewer can live with.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidItem(
            f"{text!r} is no amount of memory.", cure="Write 4G, 512M or 25% (of the machine's)."
        )
    number = float(match[1])
    if text.strip().endswith("%"):
        nbytes = int(memory_limit_nbytes() * number / 100)
    else:
        nbytes = int(number * _UNITS.get((match[2] or "").upper(), 1))
    return check_memory(nbytes)


def check_memory(nbytes: int) -> int:
    """Return an amount of memory that a viewer can live with.

    Raises
    ------
    InvalidItem
        It can't.
    """
    if nbytes < LEAST_NBYTES:
        raise InvalidItem(
            f"{nbytes} bytes are too few for a viewer.",
            cure=f"Give at least {LEAST_NBYTES >> 20}M.",
        )
    return nbytes
