"""Images that stay in their file: what is shown is read, when it is shown.

A viewer never opens a file by a name that it was told. It reads of a descriptor that the sender
had and passed on, so that no message makes it read what its sender can't.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem, OutOfSpace, StreamError
from openhcs_stream.pixels import numpy_dtype
from openhcs_stream.viewer._beneath import Handle
from openhcs_stream.viewer._descriptors import RESERVE, spare_descriptors
from openhcs_stream.viewer._zarr_levels import has_zarr, open_levels

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.messages import FileShown

__all__ = ["FileImage", "FilePlane", "formats", "open_image"]

logger = logging.getLogger(__name__)

Part = int | slice
_ALL: Final = slice(None)


def formats() -> tuple[str, ...]:
    """What this process can read: "raw", and "zarr" where that is installed."""
    if sys.platform == "win32":
        return ()
    return ("raw", "zarr") if has_zarr() else ("raw",)


class _Source(ABC):
    """Where pixels are read from."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def read(
        self, index: tuple[int, ...], rows: slice, columns: slice, stride: int
    ) -> npt.NDArray[Any]:
        """Read a part of one plane: (Y, X) or (Y, X, S), every so many pixels.

        Parameters
        ----------
        index : tuple of int
            Of the plane.
        rows, columns : slice
            Within the plane, with a start and a stop, and no step.
        stride : int
            Every how many of these pixels; 1: each.
        """


class FileImage:
    """An image in a file: (sliders..., Y, X), or with S at the end. Indexing it gives planes.

    Attributes
    ----------
    shape : tuple of int
        All of it.
    dtype : numpy.dtype
        As planes come.
    """

    def __init__(self, source: _Source, planes: int) -> None:
        self.shape = source.shape
        self.dtype = source.dtype
        self._source = source
        self._sliders = planes
        self._told = False

    def __getitem__(self, index: tuple[int, ...]) -> FilePlane:
        return FilePlane(self, index)

    def plane(self) -> FilePlane:
        """Return the only plane of an image without sliders."""
        return FilePlane(self, ())

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Shape of each plane."""
        return self.shape[self._sliders :]

    def read(
        self, index: tuple[int, ...], rows: slice, columns: slice, stride: int
    ) -> npt.NDArray[Any]:
        """Read as `_Source.read`; zeros where the file has become unreadable."""
        try:
            return self._source.read(index, rows, columns, stride)
        except (OSError, StreamError, ValueError, RuntimeError) as error:
            # In the middle of drawing: an exception would take the window down.
            if not self._told:
                self._told = True
                logger.warning("an image's file can't be read any more: %s", error)
            height, width, *samples = self.plane_shape
            lengths = [
                len(range(*part.indices(length))[::stride])
                for part, length in ((rows, height), (columns, width))
            ]
            return np.zeros((*lengths, *samples), self.dtype)


class FilePlane:
    """One plane of an image in a file; numpy reads all of it.

    Attributes
    ----------
    shape : tuple of int
        (Y, X) or (Y, X, S).
    dtype : numpy.dtype
        As it is read.
    nbytes : int
        0: nothing of it is kept.
    """

    __slots__ = ("_image", "_index", "dtype", "shape")

    nbytes: Final = 0

    def __init__(self, image: FileImage, index: tuple[int, ...]) -> None:
        self._image = image
        self._index = index
        self.shape = image.plane_shape
        self.dtype = image.dtype

    def read(self, parts: tuple[Part, ...] = (), stride: int = 1) -> npt.NDArray[Any]:
        """Read a part of it, and nothing else.

        Parameters
        ----------
        parts : tuple of int or slice
            As for indexing.
        stride : int
            Every how many pixels of Y and X are wanted; `parts` then count these.
        """
        given = [*parts, *(_ALL,) * (len(self.shape) - len(parts))]
        lengths = [-(-length // stride) for length in self.shape[:2]]
        wanted: list[slice] = []
        rest: list[Any] = []
        for part, length in zip(given[:2], lengths, strict=True):
            if isinstance(part, slice):
                span = range(*part.indices(length))
                low, high = (min(span), max(span) + 1) if len(span) else (0, 0)
                rest.append(slice(None, None, span.step))
            else:
                low = part % length if -length <= part < length else length
                high = low + 1
                rest.append(0)
            wanted.append(slice(low * stride, (high - 1) * stride + 1 if high > low else low))
        rows, columns = wanted
        found = self._image.read(self._index, rows, columns, stride)
        return np.asarray(found[(*rest, *given[2:])])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("what is in a file can't become an array without being read.")
        return np.asarray(self.read(), dtype)


def open_image(message: FileShown, fd: int, sliders: int) -> FileImage:
    """Open an image whose descriptor was handed over.

    Parameters
    ----------
    message : FileShown
        What its sender says of it.
    fd : int
        The file, or the folder; it is closed with the last plane, or at once where this raises.
    sliders : int
        How many axes it has before Y and X.

    Raises
    ------
    InvalidItem
        It is not what its sender says.
    OutOfSpace
        Too many files are open.
    """
    handle = Handle(fd)
    item = message.item
    if spare_descriptors() < RESERVE:
        raise OutOfSpace(
            "the viewer has too many files open to keep another image's.",
            cure="Clear it, raise the limit on open files (ulimit -n), or send the pixels.",
        )
    dtype = numpy_dtype(item.dtype)
    if math.prod(item.shape) * dtype.itemsize != item.nbytes:
        raise InvalidItem(
            f"an image of shape {item.shape} and dtype {item.dtype} has not {item.nbytes} bytes."
        )
    if message.format == "zarr":
        levels = open_levels(handle, message.levels, item.shape, item.dtype)
        return FileImage(_Levels(levels, sliders, dtype), sliders)
    stored = dtype.newbyteorder(">") if message.swapped else dtype
    return FileImage(_Raw(handle, item.shape, stored, message.offset, sliders), sliders)


class _Raw(_Source):
    """Pixels that lie in a file as they lie in memory, in C order."""

    def __init__(
        self,
        handle: Handle,
        shape: tuple[int, ...],
        stored: np.dtype[Any],
        offset: int,
        sliders: int,
    ) -> None:
        super().__init__(shape, stored.newbyteorder("="))
        self._handle = handle
        self._stored = stored
        self._offset = offset
        self._sliders = sliders
        about = os.fstat(handle.fd)
        end = offset + math.prod(shape) * stored.itemsize
        if not stat.S_ISREG(about.st_mode) or about.st_size < end:
            raise InvalidItem(
                f"the image ends at byte {end} of a file that has {about.st_size}.",
                cure="Hand over the file itself, after it is written.",
            )

    def read(
        self, index: tuple[int, ...], rows: slice, columns: slice, stride: int
    ) -> npt.NDArray[Any]:
        height, width, *samples = self.shape[self._sliders :]
        number = 0
        for position, length in zip(index, self.shape, strict=False):
            number = number * length + position
        row_nbytes = width * math.prod(samples) * self._stored.itemsize
        start = self._offset + number * height * row_nbytes
        lines = range(*rows.indices(height))[::stride]
        block = np.empty((len(lines), width, *samples), self._stored)
        if stride == 1 and len(lines):
            self._fill(block, start + lines[0] * row_nbytes)
        else:
            for row, line in zip(block, lines, strict=True):
                self._fill(row, start + line * row_nbytes)
        block = block[:, columns][:, ::stride]
        return block.astype(self.dtype, copy=False)

    def _fill(self, out: npt.NDArray[Any], offset: int) -> None:
        view = out.reshape(-1).view(np.uint8).data
        while len(view):
            count = os.preadv(self._handle.fd, [view], offset)
            if not count:
                raise OSError(f"the file ends at byte {offset}, before the image does")
            view, offset = view[count:], offset + count


class _Levels(_Source):
    """The levels of an OME-Zarr image, the largest first."""

    def __init__(self, levels: list[Any], sliders: int, dtype: np.dtype[Any]) -> None:
        super().__init__(levels[0].shape, dtype)
        self._sliders = sliders
        height, width = self.shape[sliders : sliders + 2]
        #: By how much each is smaller, where that is a whole number, and the level.
        self._levels: dict[int, Any] = {1: levels[0]}
        for level in levels[1:]:
            factor = round(height / level.shape[sliders])
            small = tuple(level.shape)
            expected = [{length // factor, -(-length // factor)} for length in (height, width)]
            if small[:sliders] == self.shape[:sliders] and all(
                length in either
                for length, either in zip(small[sliders : sliders + 2], expected, strict=True)
            ):
                self._levels.setdefault(factor, level)

    def read(
        self, index: tuple[int, ...], rows: slice, columns: slice, stride: int
    ) -> npt.NDArray[Any]:
        factor = max(each for each in self._levels if stride % each == 0)
        level = self._levels[factor]
        step = stride // factor
        ask: list[slice] = []
        short: list[tuple[int, int]] = []
        for part, full, there in zip(
            (rows, columns),
            self.shape[self._sliders :],
            level.shape[self._sliders :],
            strict=False,
        ):
            wanted = range(*part.indices(full))[::stride]
            first = wanted[0] // factor if len(wanted) else 0
            stop = min(first + max(0, len(wanted) - 1) * step + 1, there) if len(wanted) else first
            ask.append(slice(first, stop))
            # A level that was rounded down lacks the last pixel: it is repeated.
            short.append((0, len(wanted) - len(range(first, stop)[::step])))
        found = np.asarray(level[(*index, *ask)])[::step, ::step]
        if any(lacking for _, lacking in short):
            found = np.pad(found, [*short, *[(0, 0)] * (found.ndim - 2)], mode="edge")
        return found.astype(self.dtype, copy=False)
