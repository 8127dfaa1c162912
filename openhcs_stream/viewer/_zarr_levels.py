"""OME-Zarr: the levels of an image, read through zarr below a folder that was handed over."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.pixels import MAX_ARENA_NBYTES, numpy_dtype
from openhcs_stream.viewer._beneath import read_beneath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from openhcs_stream.viewer._beneath import Handle

__all__ = ["has_zarr", "open_levels"]

#: What a chunk may have gone through. Others could run code of the sender's choice: pickle, say.
_CODECS: Final = frozenset(
    ["blosc", "bytes", "bz2", "crc32c", "delta", "gzip", "lz4", "lzma", "sharding_indexed",
     "shuffle", "transpose", "zlib", "zstd"]
)  # fmt: skip
_MAX_LEVELS: Final = 32


@cache
def has_zarr() -> bool:
    """Whether zarr is installed, of version 3 or later."""
    try:
        return importlib.util.find_spec("zarr.abc.store") is not None
    except ModuleNotFoundError:
        return False


def open_levels(
    handle: Handle, paths: Sequence[str], shape: tuple[int, ...], dtype: str
) -> list[Any]:
    """Open the arrays of an image, the largest first.

    Parameters
    ----------
    handle : Handle
        Of the folder.
    paths : sequence of str
        Of the arrays in it; the first has `shape`, the others are smaller in Y and X alone.
    shape : tuple of int
        As the sender says.
    dtype : str
        Its name on the wire.

    Returns
    -------
    list of zarr.Array
        Read-only.

    Raises
    ------
    InvalidItem
        They are not as the sender says, or need a codec that is not taken.
    ProtocolViolation
        A path leads out of the folder.
    """
    import zarr

    if not 0 < len(paths) <= _MAX_LEVELS:
        raise ProtocolViolation(f"an image came with {len(paths)} levels.")
    levels: list[Any] = []
    for path in paths:
        _check_codecs(handle, path)
        try:
            array = zarr.open_array(_store_class()(handle, path), mode="r")
        except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise _wrong(path, str(error)) from error
        chunk = math.prod(getattr(array, "shards", None) or array.chunks) * array.dtype.itemsize
        if array.dtype.newbyteorder("=") != numpy_dtype(dtype) or chunk > MAX_ARENA_NBYTES:
            raise _wrong(path, f"it has dtype {array.dtype} and chunks of {chunk} bytes")
        if len(array.shape) != len(shape) or (not levels and array.shape != shape):
            raise _wrong(path, f"it has shape {array.shape}, and {shape} was told")
        if any(small > large for small, large in zip(array.shape, shape, strict=True)):
            raise _wrong(path, f"it is larger than {shape}: {array.shape}")
        levels.append(array)
    return levels


def _wrong(path: str, what: str) -> InvalidItem:
    return InvalidItem(
        f"the array {path!r} of the OME-Zarr image can't be shown: {what}.",
        cure="Send the pixels themselves, with image().",
    )


def _check_codecs(handle: Handle, path: str) -> None:
    """Before zarr sees it: which codecs the array asks for."""
    for name in ("zarr.json", ".zarray"):
        found = read_beneath(handle.fd, f"{path}/{name}")
        if found is None:
            continue
        try:
            told = json.loads(found)
            asked = [
                *_ids(told.get("codecs") or []),
                *_ids([told.get("compressor")]),
                *_ids(told.get("filters") or []),
            ]
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise _wrong(path, f"{name} is not what it should be: {error}") from error
        wrong = sorted(set(asked) - _CODECS)
        if wrong:
            raise _wrong(path, f"it asks for {', '.join(wrong)}")
    # Where neither is there zarr says so.


def _ids(codecs: Iterable[Any]) -> list[str]:
    """Names of codecs, and of those that are inside of them."""
    found: list[str] = []
    for codec in codecs:
        if codec is None:
            continue
        if isinstance(codec, str):
            found.append(codec)
            continue
        found.append(str(codec.get("id", codec.get("name"))).removeprefix("numcodecs."))
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            found += _ids(inner.get(key) or [])
    return found


@cache
def _store_class() -> Any:
    """A zarr store that reads below a folder by `read_beneath`; zarr is imported here."""
    import asyncio

    from zarr.abc.store import (
        OffsetByteRequest,
        RangeByteRequest,
        Store,
        SuffixByteRequest,
    )

    class BeneathStore(Store):
        """Read-only; nothing is listed."""

        supports_writes = False
        supports_deletes = False
        supports_listing = False

        def __init__(self, handle: Handle, path: str) -> None:
            super().__init__(read_only=True)
            self._handle = handle
            self._path = path

        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = object.__hash__

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            start, stop = 0, None
            match byte_range:
                case RangeByteRequest():
                    start, stop = byte_range.start, byte_range.end
                case OffsetByteRequest():
                    start = byte_range.offset
                case SuffixByteRequest():
                    start = -byte_range.suffix
            path = f"{self._path}/{key}"
            data = await asyncio.to_thread(read_beneath, self._handle.fd, path, start, stop)
            return None if data is None else prototype.buffer.from_bytes(data)

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
            return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

        async def exists(self, key: str) -> bool:
            path = f"{self._path}/{key}"
            return await asyncio.to_thread(read_beneath, self._handle.fd, path, 0, 0) is not None

        async def set(self, key: str, value: Any) -> None:
            raise PermissionError(key)

        async def delete(self, key: str) -> None:
            raise PermissionError(key)

        async def _nothing(self, prefix: str = "") -> AsyncIterator[str]:
            if prefix is None:  # an iterator that gives nothing
                yield ""

        list = list_prefix = list_dir = _nothing

    return BeneathStore
