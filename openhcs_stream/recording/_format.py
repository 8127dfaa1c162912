"""A recording: one file, append-only, that is whole up to its last item whenever its writer dies.

The file begins with eight bytes, ``OHSREC1\\n``, and fifty-six zeros. Records follow, each at a
multiple of 64 bytes::

    0   4  "REC1"
    4   4  length of the header, in bytes            (all numbers are little-endian)
    8   8  length of the payload, in bytes
    16  4  CRC-32 of the header
    20  4  CRC-32 of the payload
    24  n  header: MessagePack, an array whose first element says what it is
        -  zeros up to a multiple of 64
        m  payload: the item's bytes as they travel, in C order
        -  zeros up to a multiple of 64

Headers are ``begin`` (once, first), ``layer`` (before the first item of each), ``item`` and
``end`` (where the recorder was stopped, not killed). The records are the index: each says where
the next one begins, so reading the headers alone, without any pixels, tells what is where. A
record that was not written whole is the last one, and is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import zlib
from dataclasses import dataclass
from struct import Struct as Layout
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct

from openhcs_stream.errors import OutOfSpace, StreamError, UsageError
from openhcs_stream.messages import (
    DTYPES,
    MAX_NDIM,
    Count,
    LayerSpec,
    PlaceValue,
    Text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["DamagedRecording", "Entry", "Recording", "Summary", "Writer"]

_MAGIC = b"OHSREC1\n"
_RECORD = b"REC1"
_ALIGN = 64
_HEAD = Layout("<4sIQII")
#: Bytes of one header: a place, a shape and metadata fit in well.
_MAX_HEADER = 1 << 22
_MAX_PAYLOAD = 1 << 40
#: Layers of one recording.
_MAX_LAYERS = 1 << 20
#: What is read at once where a payload is only checked.
_STEP = 8 << 20


class DamagedRecording(StreamError):
    """A file is no recording, or its bytes are not those that were written."""


# --- headers --------------------------------------------------------------------------------------


class _Header(Struct, frozen=True, array_like=True):
    """Base of all; fields are only ever added at the end, with a default."""


class _Begin(_Header, tag="begin", frozen=True):
    program: Text  #: who wrote it: "openhcs-stream 0.1.0"
    started: float  #: seconds since 1970 (UTC)


class _Layer(_Header, tag="layer", frozen=True):
    number: Count
    stream: Text  #: what its worker called itself
    spec: LayerSpec


class _Item(_Header, tag="item", frozen=True):
    layer: Count
    time_s: float  #: since the beginning
    place: Annotated[tuple[PlaceValue, ...], Meta(max_length=32)]
    shape: Annotated[tuple[Count, ...], Meta(max_length=MAX_NDIM + 1)]
    dtype: Annotated[str, Meta(max_length=4)]
    info: dict[Text, str | int | float | bool | None] = {}


class _End(_Header, tag="end", frozen=True):
    items: Count


_Any: TypeAlias = _Begin | _Layer | _Item | _End
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Any] = msgspec.msgpack.Decoder(_Any)


# --- writing --------------------------------------------------------------------------------------


class Writer:
    """Writes a recording; for one thread. A context manager, that ends it whole.

    Parameters
    ----------
    path : Path
        Not there yet.
    program : str
        Who writes it.

    Raises
    ------
    UsageError
        The file is there already, or can't be made.
    """

    def __init__(self, path: Path, *, program: str) -> None:
        self.path = path
        self.items = 0
        self.nbytes = 0
        self._layers: dict[tuple[str, bytes], int] = {}
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except FileExistsError as error:
            raise UsageError(
                f"{path} is there already.", cure="Choose another name, or remove it first."
            ) from error
        except OSError as error:
            raise UsageError(
                f"{path} can't be written: {error.strerror}.", cure="Choose another place."
            ) from error
        self._size = 0
        self._append(_MAGIC.ljust(_ALIGN, b"\0"))
        self._started = time.monotonic()
        self._record(_Begin(program, time.time()))

    def add(
        self,
        stream: str,
        spec: LayerSpec,
        place: tuple[PlaceValue, ...],
        array: npt.NDArray[Any],
        info: Mapping[str, Any],
    ) -> None:
        """Write one item.

        Parameters
        ----------
        stream : str
            What its worker calls itself.
        spec : LayerSpec
            Its layer.
        place : tuple
            A value for each of ``spec.components``.
        array : ndarray
            Its bytes as they travel.
        info : mapping
            Its metadata.

        Raises
        ------
        OutOfSpace
            The disk is full; the recording stays whole, without this item.
        OSError
            It can't be written for another reason; the same.
        """
        told = time.monotonic() - self._started
        key = (stream, _encoder.encode(spec))
        number = self._layers.get(key)
        if number is None:
            if len(self._layers) >= _MAX_LAYERS:
                raise OutOfSpace(f"a recording has room for {_MAX_LAYERS} layers.")
            number = len(self._layers)
            self._record(_Layer(number, stream, spec))
            self._layers[key] = number
        array = np.ascontiguousarray(array)
        header = _Item(number, told, place, array.shape, array.dtype.str, dict(info))
        self._record(header, array.reshape(-1).view(np.uint8).data)
        self.items += 1
        self.nbytes += array.nbytes

    def close(self) -> None:
        """End the recording and see that it is on the disk. Idempotent."""
        if self._fd < 0:
            return
        try:
            with contextlib.suppress(OutOfSpace):  # without its end it is as whole
                self._record(_End(self.items))
            os.fsync(self._fd)
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, header: _Any, payload: memoryview | bytes = b"") -> None:
        body = _encoder.encode(header)
        head = _HEAD.pack(_RECORD, len(body), len(payload), zlib.crc32(body), zlib.crc32(payload))
        self._append(head, body, _zeros(len(head) + len(body)), payload, _zeros(len(payload)))

    def _append(self, *pieces: bytes | memoryview) -> None:
        """Write all of it, or nothing that stays."""
        left = [memoryview(piece) for piece in pieces if len(piece)]
        nbytes = sum(map(len, left))
        try:
            while left:
                written = os.writev(self._fd, left)
                while left and written >= len(left[0]):
                    written -= len(left.pop(0))
                if left:
                    left[0] = left[0][written:]
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            if error.errno in _FULL:
                raise OutOfSpace(
                    f"there is no room for {nbytes} bytes more in {self.path}.",
                    cure="Make room on that disk; the items before are kept.",
                ) from error
            raise
        self._size += nbytes


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One item of a recording; its bytes stay in the file until they are asked for.

    Attributes
    ----------
    stream : str
        What its worker called itself.
    spec : LayerSpec
        Its layer.
    time_s : float
        When it came, seconds since the recording began.
    place : tuple
        A value for each of ``spec.components``.
    shape, dtype : tuple of int, str
        Of its array.
    info : dict
        Its metadata.
    nbytes : int
        Of its array.
    """

    stream: str
    spec: LayerSpec
    time_s: float
    place: tuple[PlaceValue, ...]
    shape: tuple[int, ...]
    dtype: str
    info: dict[str, Any]
    nbytes: int
    _fd: int
    _offset: int
    _crc: int

    def read(self) -> npt.NDArray[Any]:
        """Its array, in memory of its own.

        Raises
        ------
        DamagedRecording
            Its bytes are not those that were written.
        """
        array = np.empty(self.shape, self.dtype)
        self.read_into(array)
        return array

    def read_into(self, array: npt.NDArray[Any]) -> None:
        """Fill an array of its shape and dtype, in C order.

        Raises
        ------
        DamagedRecording
            Its bytes are not those that were written.
        """
        if array.nbytes != self.nbytes:
            raise ValueError(f"an array of {array.nbytes} bytes is not one of {self.nbytes}")
        view = array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")
        at, crc = 0, 0
        while at < len(view):
            got = os.preadv(self._fd, [view[at : at + _STEP]], self._offset + at)
            if not got:
                break
            crc = zlib.crc32(view[at : at + got], crc)
            at += got
        self._check(at, crc)

    def check(self) -> None:
        """Read it and throw it away.

        Raises
        ------
        DamagedRecording
            Its bytes are not those that were written.
        """
        at, crc = 0, 0
        while at < self.nbytes:
            piece = os.pread(self._fd, min(_STEP, self.nbytes - at), self._offset + at)
            if not piece:
                break
            crc = zlib.crc32(piece, crc)
            at += len(piece)
        self._check(at, crc)

    def _check(self, nbytes: int, crc: int) -> None:
        if nbytes != self.nbytes or crc != self._crc:
            raise DamagedRecording(
                f"{self.spec.kind} {self.spec.name!r} at {self.time_s:.3f} s is damaged: its "
                f"{self.nbytes} bytes at {self._offset} are not those that were recorded.",
                cure="The other items can be replayed; take the file from a copy if there is one.",
            )


@dataclass(frozen=True)
class Summary:
    """What is in a recording."""

    program: str  #: who wrote it
    started: float  #: seconds since 1970 (UTC)
    duration_s: float  #: from its beginning to the last item
    items: int
    nbytes: int
    streams: dict[str, dict[str, int]]  #: of each stream the layers, and how many items each has
    complete: bool  #: False: its recorder was killed, or is still at it
    torn_nbytes: int  #: behind the last whole record


class Recording:
    """Reads a recording, also one that is being written. A context manager.

    Nothing but the headers is read before it is asked for, and nothing is kept but the layers.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UsageError
        The file can't be opened.
    DamagedRecording
        It is no recording, or one of a later version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UsageError(
                f"{path} can't be read: {error.strerror}.", cure="Check the name."
            ) from error
        try:
            begin = next(self._records(), None)
            if begin is None or not isinstance(begin[0], _Begin):
                raise DamagedRecording(f"{path} has no beginning.", cure=_NO_RECORDING)
            self._begin = begin[0]
        except BaseException:
            self.close()
            raise

    def entries(self) -> Iterator[Entry]:
        """The items in the order in which they came.

        Raises
        ------
        DamagedRecording
            What is at some place is no record; the items before were given.
        """
        layers: dict[int, tuple[str, LayerSpec]] = {}
        for header, offset, nbytes, crc in self._records():
            match header:
                case _Layer(number=number, stream=stream, spec=spec):
                    layers[number] = (stream, spec)
                case _Item():
                    yield self._entry(header, layers, offset, nbytes, crc)
                case _:
                    pass

    def summary(self) -> Summary:
        """What is in it, by its headers alone.

        Raises
        ------
        DamagedRecording
            As `entries`.
        """
        streams: dict[str, dict[str, int]] = {}
        count, total, last_s, end, complete = 0, 0, 0.0, _ALIGN, False
        layers: dict[int, tuple[str, LayerSpec]] = {}
        for header, offset, nbytes, crc in self._records():
            end = _aligned(offset + nbytes)
            complete = isinstance(header, _End)
            if isinstance(header, _Layer):
                layers[header.number] = (header.stream, header.spec)
            elif isinstance(header, _Item):
                entry = self._entry(header, layers, offset, nbytes, crc)
                names = streams.setdefault(entry.stream, {})
                name = f"{entry.spec.kind} {entry.spec.name}"
                names[name] = names.get(name, 0) + 1
                count, total, last_s = count + 1, total + nbytes, entry.time_s
        size = os.fstat(self._fd).st_size
        return Summary(self._begin.program, self._begin.started, last_s, count, total, streams,
                       complete, max(0, size - end))  # fmt: skip

    def close(self) -> None:
        """Close the file; entries can't be read any more. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _records(self) -> Iterator[tuple[_Any, int, int, int]]:
        """Each whole record: its header, and where its payload is, how long, with which sum."""
        size = os.fstat(self._fd).st_size
        if os.pread(self._fd, len(_MAGIC), 0) != _MAGIC:
            raise DamagedRecording(f"{self.path} is no recording.", cure=_NO_RECORDING)
        at = _ALIGN
        while at + _HEAD.size <= size:
            magic, length, nbytes, crc, payload_crc = _HEAD.unpack(
                os.pread(self._fd, _HEAD.size, at)
            )
            if magic != _RECORD or length > _MAX_HEADER or nbytes > _MAX_PAYLOAD:
                raise self._damaged(at)
            offset = _aligned(at + _HEAD.size + length)
            if offset + nbytes > size:
                return  # its writer was killed at it, or is still writing
            body = os.pread(self._fd, length, at + _HEAD.size)
            if zlib.crc32(body) != crc:
                raise self._damaged(at)
            try:
                header = _decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise self._damaged(at) from error
            yield header, offset, nbytes, payload_crc
            at = _aligned(offset + nbytes)

    def _entry(
        self,
        item: _Item,
        layers: Mapping[int, tuple[str, LayerSpec]],
        offset: int,
        nbytes: int,
        crc: int,
    ) -> Entry:
        if item.layer not in layers or item.dtype not in DTYPES:
            raise self._damaged(offset)
        count = 1
        for length in item.shape:
            count *= length
        stream, spec = layers[item.layer]
        fits = count * np.dtype(item.dtype).itemsize == nbytes
        if not fits or len(item.place) != len(spec.components):
            raise self._damaged(offset)
        return Entry(stream, spec, item.time_s, item.place, item.shape, item.dtype, item.info,
                     nbytes, self._fd, offset, crc)  # fmt: skip

    def _damaged(self, at: int) -> DamagedRecording:
        return DamagedRecording(
            f"what {self.path} has at byte {at} is no record.",
            cure="What comes before it can be replayed; take the file from a copy if there is one.",
        )


_NO_RECORDING = "Make one with `openhcs-stream record FILE`."
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN


def _zeros(nbytes: int) -> bytes:
    return b"\0" * (-nbytes % _ALIGN)
