"""The viewer's side: arenas of one session, each mapped once and read-only."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openhcs_stream.errors import OutOfSpace, ProtocolViolation
from openhcs_stream.pixels._arena import MAX_ARENA_NBYTES
from openhcs_stream.pixels._dtypes import numpy_dtype
from openhcs_stream.pixels._memory import PAGE_NBYTES, SIZE_SEALS, Mapping, seals_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.messages import Part

__all__ = ["MappedArenas"]

#: Arenas that one peer may have mapped at the same time; the system allows a process 65530
#: mappings, whoever wants them.
_MAX_ARENAS = 1024

_CURE = "Make sure that both ends are openhcs-stream, and of the same major version."


class MappedArenas:
    """The arenas that one peer has offered.

    Each is mapped once, read-only, and stays mapped until it is retired and the last view of it is
    gone. Nothing that the peer says is taken on trust: an arena must be as large as it says and
    sealed against shrinking, so that reading it can't end in SIGBUS, and every part must lie
    within its arena.

    Attributes
    ----------
    nbytes : int
        Of the arenas that are mapped and not retired.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._arenas: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        """Return how many arenas are mapped and not retired."""
        return len(self._arenas)

    def add(self, arena: int, nbytes: int, fd: int) -> None:
        """Map an arena.

        Parameters
        ----------
        arena : int
            Its number.
        nbytes : int
            How large its owner says that it is.
        fd : int
            Its descriptor, which is closed in every case.

        Raises
        ------
        ProtocolViolation
            The number is taken, the file is smaller, it could still shrink, or it is no ordinary
            memory.
        OutOfSpace
            The system would not map it.
        """
        try:
            if arena in self._arenas:
                raise ProtocolViolation(f"the peer offered arena {arena} twice.", cure=_CURE)
            if len(self._arenas) >= _MAX_ARENAS:
                raise ProtocolViolation(
                    f"the peer offered more than {_MAX_ARENAS} arenas.", cure=_CURE
                )
            if not 0 < nbytes <= MAX_ARENA_NBYTES:
                raise ProtocolViolation(
                    f"the peer offered an arena of {nbytes} bytes; 1 to {MAX_ARENA_NBYTES} can be.",
                    cure=_CURE,
                )
            # The seals first: only then is the size a fact that stays. They also tell memory from
            # files, folders, sockets and devices, which have none.
            if seals_of(fd) & SIZE_SEALS != SIZE_SEALS:
                raise ProtocolViolation(
                    f"the peer offered arena {arena} without the seals that keep its size.",
                    cure=_CURE,
                )
            # Huge pages are kept in a store of their own, and reading one that its owner has given
            # back there ends in SIGBUS, too.
            page = os.fstatvfs(fd).f_bsize
            if page != PAGE_NBYTES:
                raise ProtocolViolation(
                    f"the peer offered arena {arena} in pages of {page} bytes, not {PAGE_NBYTES}.",
                    cure=_CURE,
                )
            size = os.fstat(fd).st_size
            if size < nbytes:
                raise ProtocolViolation(
                    f"the peer offered {nbytes} bytes as arena {arena}, which has {size}.",
                    cure=_CURE,
                )
            try:
                mapping = Mapping(fd, nbytes, writable=False)
            except OSError as error:
                raise OutOfSpace(
                    f"the system would not map arena {arena} of {nbytes} bytes: {error.strerror}.",
                    cure="Raise the limit on address space (ulimit -v) or close other streams.",
                ) from error
            self._arenas[arena] = np.asarray(mapping)
            self.nbytes += nbytes
        finally:
            os.close(fd)

    def view(self, part: Part) -> npt.NDArray[np.uint8]:
        """Return the bytes of a part, read-only, as long as its lease is not released.

        Returns
        -------
        (nbytes,) uint8

        Raises
        ------
        ProtocolViolation
            No such arena, or the part does not lie within it.
        """
        memory = self._memory_of(part)
        return memory[part.offset : part.offset + part.nbytes]

    def array(self, part: Part, shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
        """Return a part as an array in C order, read-only, as long as its lease is not released.

        Parameters
        ----------
        part : Part
            Where the bytes are.
        shape : sequence of int
            Lengths of the axes, in C order.
        dtype : str
            One of `openhcs_stream.messages.DTYPES`.

        Raises
        ------
        ProtocolViolation
            No such arena or dtype, the part does not lie within its arena, or shape and dtype do
            not make its bytes.
        """
        memory = self._memory_of(part)
        known = numpy_dtype(dtype)
        # Python's integers: a product that overflows must not look like a match.
        nbytes = math.prod(shape) * known.itemsize
        if nbytes != part.nbytes:
            raise ProtocolViolation(
                f"shape {tuple(shape)} of {dtype} makes {nbytes} bytes, the part has "
                f"{part.nbytes}.",
                cure=_CURE,
            )
        try:
            return np.ndarray(shape, known, buffer=memory, offset=part.offset)
        except (ValueError, TypeError, OverflowError) as error:
            raise ProtocolViolation(
                f"shape {tuple(shape)} of {dtype} is no array: {error}.", cure=_CURE
            ) from error

    def retire(self, arena: int) -> None:
        """Forget an arena; unknown ones are ignored. Its memory goes with the last view of it."""
        memory = self._arenas.pop(arena, None)
        if memory is not None:
            self.nbytes -= memory.nbytes

    def close(self) -> None:
        """Forget all arenas."""
        self._arenas.clear()
        self.nbytes = 0

    def _memory_of(self, part: Part) -> npt.NDArray[np.uint8]:
        memory = self._arenas.get(part.arena)
        if memory is None:
            raise ProtocolViolation(
                f"the peer named arena {part.arena}, which it has not offered or has retired.",
                cure=_CURE,
            )
        if part.offset < 0 or part.nbytes < 0 or part.offset + part.nbytes > memory.nbytes:
            raise ProtocolViolation(
                f"bytes {part.offset} to {part.offset + part.nbytes} lie outside of arena "
                f"{part.arena}, which has {memory.nbytes}.",
                cure=_CURE,
            )
        return memory
