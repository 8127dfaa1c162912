"""Images that stay in their file: what is told of them, for the viewers to read them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import FileShown
from openhcs_stream.pixels import wire_dtype
from openhcs_stream.stream._payload import with_axes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from openhcs_stream.messages import Item

__all__ = ["ImageFile", "open_image_file"]

_PIXELS: Final = "Send the pixels themselves, with image()."
#: What describes an OME-Zarr image has no more bytes.
_MOST_TEXT: Final = 16 << 20
_ENDINGS: Final = (".ome.tiff", ".ome.tif", ".ome.zarr")


class ImageFile:
    """An image in an open file; closed with the last reference to this.

    Attributes
    ----------
    fd : int
        The file, or the folder of an OME-Zarr image.
    stem : str
        Its name without its ending.
    shape, dtype, nbytes
        As of an array; the dtype by its name on the wire.
    axes : str
        A letter for each dimension.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._close = os.close
        self.stem = _stem(path.name)
        self.format: Literal["raw", "zarr"] = "raw"
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.nbytes = 0
        self.axes = ""
        self.offset = 0
        self.swapped = False
        self.levels: tuple[str, ...] = ()

    def describe(self, shape: tuple[int, ...], dtype: np.dtype[Any], axes: str | None) -> None:
        """Note what it is.

        Raises
        ------
        InvalidItem
            No viewer could show it, or not without turning it.
        """
        self.shape, self.dtype = shape, wire_dtype(dtype)
        self.swapped = dtype.str[0] == ">"
        self.nbytes = math.prod(shape) * dtype.itemsize
        nothing = np.broadcast_to(np.zeros((), dtype), shape)
        _, self.axes = with_axes(nothing, axes)
        if len(shape) < 2 or (axes is not None and self.axes != axes) or dtype.kind == "b":
            raise InvalidItem(
                f"{self.path} has shape {shape}, axes {axes!r} and dtype {dtype}: viewers show "
                "planes of numbers from a file, with Y and X (and S) as their last axes.",
                cure=_PIXELS,
            )

    def lacks(self, files: Sequence[str]) -> str:
        """Why a viewer that reads such formats can't read this; empty: it can."""
        if self.format in files:
            return ""
        if files and self.format == "zarr":
            return "zarr is not installed there"
        return "it is on another machine or another user's, or has no way to show files"

    def message(self, item: Item) -> FileShown:
        """What is sent beside the descriptor."""
        whole = msgspec.structs.replace(item, nbytes=self.nbytes)
        return FileShown(whole, self.format, self.offset, self.swapped, self.levels)

    def __del__(self) -> None:
        self._close(self.fd)


def open_image_file(path: str | os.PathLike[str], axes: str | None) -> ImageFile:
    """Open an image and find out how it lies in its file.

    Parameters
    ----------
    path : path
        A TIFF that can be memory-mapped, or the folder of an OME-Zarr image.
    axes : str or None
        None: as the file says.

    Raises
    ------
    InvalidItem
        It is neither.
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidItem(
            f"{path} can't be opened: {error.strerror}.", cure="Give the path of an image."
        ) from error
    file = ImageFile(path, fd)
    if path.is_dir():
        _describe_zarr(file, axes)
    else:
        _describe_tiff(file, axes)
    return file


def _describe_tiff(file: ImageFile, axes: str | None) -> None:
    try:
        from tifffile import TiffFile, TiffFileError
    except ImportError as error:
        raise InvalidItem(
            "tifffile, which finds the pixels in a TIFF, is not installed.",
            cure='Install it: pip install "openhcs-stream[images]".',
        ) from error
    try:
        with (
            open(file.fd, "rb", closefd=False) as opened,
            TiffFile(opened, name=file.path.name) as tiff,
        ):
            series = tiff.series[0]
            offset = series.dataoffset
            dtype = series.dtype
            shape = tuple(map(int, series.shape))
            axes = axes or series.axes
            order = tiff.byteorder
    except (TiffFileError, IndexError, ValueError, OSError) as error:
        raise InvalidItem(
            f"{file.path} is no TIFF that can be shown: {error}.", cure=_PIXELS
        ) from error
    if offset is None or dtype is None:
        raise InvalidItem(
            f"the pixels of {file.path} are compressed, or don't lie together.", cure=_PIXELS
        )
    file.offset = int(offset)
    file.describe(shape, dtype.newbyteorder(order), axes)


def _describe_zarr(file: ImageFile, axes: str | None) -> None:
    told = _json(file, "zarr.json") or {}
    image = told.get("attributes", {}).get("ome") or _json(file, ".zattrs") or {}
    try:
        first = image["multiscales"][0]
        levels = tuple(str(each["path"]) for each in first["datasets"])
        names = [each["name"] if isinstance(each, dict) else each for each in first["axes"]]
        about = _json(file, f"{levels[0]}/zarr.json") or _json(file, f"{levels[0]}/.zarray") or {}
        shape = tuple(int(length) for length in about["shape"])
        dtype = np.dtype(about.get("data_type") or about["dtype"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidItem(
            f"{file.path} is no OME-Zarr image of version 0.4 or 0.5: {error!r}.", cure=_PIXELS
        ) from error
    file.format = "zarr"
    file.levels = levels
    file.describe(shape, dtype, axes or "".join(str(name)[:1].upper() for name in names))
    file.swapped = False  # zarr sees to it


def _json(file: ImageFile, name: str) -> dict[str, Any] | None:
    """What a file below the folder says; None: there is none."""
    try:
        with (file.path / name).open("rb") as opened:
            told = json.loads(opened.read(_MOST_TEXT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InvalidItem(f"{file.path / name} can't be read: {error}.", cure=_PIXELS) from error
    return told if isinstance(told, dict) else None


def _stem(name: str) -> str:
    for ending in _ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return Path(name).stem
