"""A list of ROIs as one block of bytes: columns, not one record for each shape.

The block is one MessagePack array (see `_Block`), so that msgspec checks every type. Numbers lie in
it as little-endian binary columns; a column that is all default is left out.

Vertices go as float32 where that loses nothing (all that ImageJ holds does), and else, exactly as
well, as float64, up to 8 MiB of them. Of a larger list they go as float32 from an origin for each
ROI, whole numbers next to its first vertex: a coordinate is then off by at most 2**-24 (a
16-millionth) of how far from its origin it lies, and a rectangle keeps its corners in their order.

What some kinds have besides vertices are maps with a "type" and its fields: "corners" (diameter),
"path" (segments: one byte each, 0 move to, 1 line to, 2 and 3 quadratic and cubic curve, 4 close;
they take 1, 1, 2, 3 and 0 vertices), "arrow" (style, head_size, outline, double_headed), "text"
(text, font, size, bold, italic, justification, angle in degrees, draw_string), "markers" (shape,
size, labels, counters, slices) and "spline" (none). Rounded rectangles, composites, arrows and
texts have theirs; a field that is missing has its default.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct

from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.rois._details import Details, misfit
from openhcs_stream.rois._model import BOXES, KEPT_OPTIONS, KINDS, KINDS_BY_CODE, Roi, is_color
from openhcs_stream.rois._properties import NO_PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

__all__ = ["BLOCK_VERSION", "MAX_ROIS", "decode", "encode", "estimated_nbytes"]

BLOCK_VERSION: Final = 3
#: ROIs that one block may hold.
MAX_ROIS: Final = 1 << 24

#: Coordinates of a list that go as float64 where float32 would lose something, bytes.
MAX_EXACT_NBYTES: Final = 8 << 20

_COUNT: Final = np.dtype("<u4")
_WIDE: Final = np.dtype("<f8")
_NARROW: Final = np.dtype("<f4")
_GROUP: Final = np.dtype("<u2")
_OPTIONS: Final = np.dtype("<u2")
_FLAG: Final = np.dtype("u1")


_Texts = Annotated[tuple[str, ...], Meta(max_length=MAX_ROIS)]

#: What a ROI costs besides its coordinates, and at most each byte of names, colours and the like.
_ROI_NBYTES: Final = 300
_REST_FACTOR: Final = 32


class _Head(Struct, frozen=True, array_like=True, gc=False):
    """As much of a block as tells how large it will be; the rest is not looked at."""

    version: int
    n: Annotated[int, Meta(ge=0, le=MAX_ROIS)]
    kinds: msgspec.Raw
    counts: msgspec.Raw
    itemsize: int
    coordinates: msgspec.Raw
    origins: msgspec.Raw = msgspec.Raw(b"\xc4\0")


class _Block(Struct, frozen=True, array_like=True, gc=False):
    """The columns; those with a default are empty where every ROI has the default."""

    version: int
    n: Annotated[int, Meta(ge=0, le=MAX_ROIS)]
    kinds: memoryview  #: n bytes: the codes of `KINDS`
    counts: memoryview  #: n uint32: vertices of each ROI
    itemsize: Annotated[int, Meta(ge=4, le=8)]  #: 4 (float32) or 8 (float64)
    coordinates: memoryview  #: x, y of all vertices, in the order of the ROIs
    #: n times x, y: float64, to be added to the ROI's coordinates; empty: they are the numbers
    origins: memoryview = memoryview(b"")
    names: _Texts = ()
    stroke_colors: _Texts = ()
    fill_colors: _Texts = ()
    stroke_widths: memoryview = memoryview(b"")  #: n float64
    groups: memoryview = memoryview(b"")  #: n uint16
    positions: memoryview = memoryview(b"")  #: n times c, z, t: uint32
    properties: Annotated[tuple[dict[str, str], ...], Meta(max_length=MAX_ROIS)] = ()
    #: by the ROI's number, from 0; for the kinds that have more than coordinates
    details: dict[int, Details] = {}
    flat_positions: memoryview = memoryview(b"")  #: n bytes: 1 where z counts in a plain stack
    imagej_options: memoryview = memoryview(b"")  #: n uint16


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Block)
_head_decoder = msgspec.msgpack.Decoder(_Head)


def encode(rois: Iterable[Roi]) -> bytes:
    """Encode a list of ROIs.

    Their coordinates are kept exactly where float32 holds them, or as float64 they take up to
    `MAX_EXACT_NBYTES`. Those of larger lists are off by at most 2**-24 of how far they lie from
    the first vertex of their ROI, or from the next whole number beside that.
    """
    rois = list(rois)
    n = len(rois)
    coordinates = (
        np.concatenate([roi.coordinates for roi in rois]) if rois else np.empty((0, 2), np.float64)
    )
    counts = np.array([len(roi.coordinates) for roi in rois], _COUNT)
    packed, origins = _packed_coordinates(coordinates, counts)
    return _encoder.encode(
        _Block(
            version=BLOCK_VERSION,
            n=n,
            kinds=memoryview(bytes(KINDS[roi.kind].code for roi in rois)),
            counts=memoryview(counts.tobytes()),
            itemsize=packed.itemsize,
            coordinates=memoryview(packed.tobytes()),
            origins=memoryview(origins.tobytes()),
            names=_column([roi.name for roi in rois]),
            stroke_colors=_column([roi.stroke_color for roi in rois]),
            fill_colors=_column([roi.fill_color for roi in rois]),
            stroke_widths=_packed(_column([roi.stroke_width for roi in rois]), _WIDE),
            groups=_packed(_column([roi.group for roi in rois]), _GROUP),
            positions=_packed(
                [n for roi in rois for n in roi.position]
                if any(any(r.position) for r in rois)
                else (),
                _COUNT,
            ),
            properties=_column([roi.properties for roi in rois]),
            details={i: roi.details for i, roi in enumerate(rois) if roi.details is not None},
            flat_positions=_packed(_column([roi.flat_position for roi in rois]), _FLAG),
            imagej_options=_packed(_column([roi.imagej_options for roi in rois]), _OPTIONS),
        )
    )


def _packed_coordinates(
    coordinates: npt.NDArray[np.float64], counts: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Choose the numbers in which coordinates travel, and the origins that are taken off them."""
    none = np.empty(0, _WIDE)
    # A number beyond float32 becomes infinite here and is then found unequal.
    with np.errstate(over="ignore"):
        narrow = coordinates.astype(_NARROW)
        if np.array_equal(narrow, coordinates):
            return narrow, none
        if coordinates.nbytes > MAX_EXACT_NBYTES:
            firsts = np.cumsum(counts, dtype=np.int64) - counts
            origins = np.rint(coordinates[firsts])
            narrow = (coordinates - np.repeat(origins, counts, axis=0)).astype(_NARROW)
            if np.isfinite(narrow).all():
                return narrow, origins.astype(_WIDE)
    return coordinates.astype(_WIDE), none


def estimated_nbytes(block: bytes) -> int:
    """Return about how much memory the list of a block takes, before it is decoded.

    Raises
    ------
    ProtocolViolation
        The bytes are no such block.
    """
    try:
        head = _head_decoder.decode(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _violation(f"its bytes can't be read: {error}") from error
    coordinates = len(memoryview(head.coordinates))
    rest = len(block) - coordinates - len(memoryview(head.origins))
    return head.n * _ROI_NBYTES + 2 * coordinates + _REST_FACTOR * rest


def decode(block: bytes | bytearray | memoryview | npt.NDArray[Any]) -> list[Roi]:
    """Decode a block, strictly. The coordinates are copied out: the block may be shared memory.

    Raises
    ------
    ProtocolViolation
        The bytes are no such block, are of another version, or a value is out of its bounds.
    """
    try:
        columns = _decoder.decode(memoryview(block))  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _violation(f"its bytes can't be read: {error}") from error
    if columns.version != BLOCK_VERSION:
        raise _violation(f"it has version {columns.version}, known is {BLOCK_VERSION}")
    n = columns.n
    counts = _unpacked(columns.counts, _COUNT, n, "counts").astype(np.int64)
    codes = _unpacked(columns.kinds, np.dtype("u1"), n, "kinds")
    least, most = _bounds()
    if (counts < least[codes]).any() or (counts > most[codes]).any():
        raise _violation("a kind is unknown, or a ROI has too few or too many vertices")
    if columns.itemsize not in (4, 8):
        raise _violation(f"its numbers have {columns.itemsize} bytes, not 4 or 8")
    total = int(counts.sum())
    narrow = _NARROW if columns.itemsize == 4 else _WIDE
    coordinates = _unpacked(columns.coordinates, narrow, total * 2, "coordinates")
    coordinates = coordinates.astype(np.float64).reshape(total, 2)
    if len(columns.origins):
        origins = _unpacked(columns.origins, _WIDE, n * 2, "origins").reshape(n, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            coordinates += np.repeat(origins, counts, axis=0)
    if not np.isfinite(coordinates).all():
        raise _violation("a coordinate is infinite or no number")
    ends = np.cumsum(counts)
    boxes = np.flatnonzero(np.isin(codes, _BOX_CODES))
    starts = (ends - counts)[boxes]
    if (coordinates[starts + 1] < coordinates[starts]).any():
        raise _violation("a rectangle, oval or text has a negative size")
    coordinates.setflags(write=False)
    widths = _optional(columns.stroke_widths, _WIDE, n, 0.0, "stroke_widths")
    if not all(0 <= width < float("inf") for width in set(widths)):
        raise _violation("a stroke width is negative, infinite or no number")
    groups = _optional(columns.groups, _GROUP, n, 0, "groups")
    names = _texts(columns.names, n, "", "names")
    stroke_colors = _texts(columns.stroke_colors, n, "", "stroke_colors")
    fill_colors = _texts(columns.fill_colors, n, "", "fill_colors")
    for color in {*stroke_colors, *fill_colors}:
        if not is_color(color):
            raise _violation(f"{color!r} is no colour")
    if columns.properties and len(columns.properties) != n:
        raise _violation(f"its properties are {len(columns.properties)}, not {n}")
    properties: Iterable[Mapping[str, str]] = columns.properties or repeat(NO_PROPERTIES, n)
    flat = _optional(columns.flat_positions, _FLAG, n, 0, "flat_positions")
    options = _optional(columns.imagej_options, _OPTIONS, n, 0, "imagej_options")
    if any(each & ~KEPT_OPTIONS for each in set(options)):
        raise _violation("its imagej_options have bits that are kept elsewhere")
    details = _checked_details(columns.details, codes, counts)
    details_of = map(details.get, range(n)) if details else repeat(None, n)
    with _no_collection():
        return [
            Roi.unchecked(
                kind, coordinates[start:end], name, stroke, fill, width, group, position,
                props, more, flag != 0, bits,
            )
            for
            kind, start, end, name, stroke, fill, width, group, position, props, more, flag, bits
            in zip(
                [KINDS_BY_CODE[code].kind for code in codes.tolist()], (ends - counts).tolist(),
                ends.tolist(), names, stroke_colors, fill_colors, widths, groups,
                _optional_positions(columns.positions, n), properties, details_of, flat, options,
                strict=True,
            )
        ]  # fmt: skip


@contextmanager
def _no_collection() -> Iterator[None]:
    """Rest the collector while many objects are made.

    It walks over all that there are again and again, and finds nothing: a third of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_BOX_CODES: Final = [row.code for row in KINDS.values() if row.kind in BOXES]
_NEED_DETAILS: Final = [row.code for row in KINDS.values() if row.needs_details]


def _checked_details(
    details: dict[int, Details], codes: npt.NDArray[Any], counts: npt.NDArray[np.int64]
) -> dict[int, Details]:
    """Check that details are where they must be, and fit. msgspec has checked their types."""
    for i, one in details.items():
        if not 0 <= i < len(codes):
            raise _violation(f"it has details of ROI {i} of {len(codes)}")
        row = KINDS_BY_CODE.get(int(codes[i]))
        if row is None or row.details is None or not isinstance(one, row.details):
            raise _violation(f"ROI {i} has details of another kind")
        wrong = misfit(one, int(counts[i]))
        if wrong:
            raise _violation(wrong)
    needed = np.flatnonzero(np.isin(codes, _NEED_DETAILS)).tolist()
    if not details.keys() >= set(needed):
        raise _violation("a ROI lacks its details")
    return details


def _bounds() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Vertices that a kind has at least and at most, by its code; impossible for unknown codes."""
    least = np.full(256, np.iinfo(np.int64).max)
    most = np.full(256, np.iinfo(np.int64).max)
    for row in KINDS.values():
        least[row.code] = row.least
        if row.most is not None:
            most[row.code] = row.most
    return least, most


def _column(values: list[Any]) -> tuple[Any, ...]:
    return tuple(values) if any(values) else ()


def _packed(values: Sequence[float], dtype: np.dtype[Any]) -> memoryview:
    return memoryview(np.array(values, dtype).tobytes())


def _unpacked(data: memoryview, dtype: np.dtype[Any], count: int, name: str) -> npt.NDArray[Any]:
    if len(data) != count * dtype.itemsize:
        raise _violation(f"its {name} have {len(data)} bytes, not {count * dtype.itemsize}")
    return np.frombuffer(data, dtype)


def _optional(
    data: memoryview, dtype: np.dtype[Any], n: int, default: float, name: str
) -> list[Any]:
    return _unpacked(data, dtype, n, name).tolist() if len(data) else [default] * n


def _optional_positions(data: memoryview, n: int) -> list[tuple[int, int, int]]:
    if not len(data):
        return [(0, 0, 0)] * n
    rows = _unpacked(data, _COUNT, n * 3, "positions").reshape(n, 3)
    if (rows >= 2**31).any():
        raise _violation("a position is too large")
    if (rows == rows[:1]).all():
        return [tuple(rows[0].tolist())] * n if n else []
    return list(zip(*rows.T.tolist(), strict=True))


def _texts(values: tuple[str, ...], n: int, default: str, name: str) -> tuple[str, ...]:
    if not values:
        return (default,) * n
    if len(values) != n:
        raise _violation(f"its {name} are {len(values)}, not {n}")
    return values


def _violation(what: str) -> ProtocolViolation:
    return ProtocolViolation(
        f"a list of ROIs can't be decoded: {what}.",
        cure="Make sure that both ends are openhcs-stream, and of the same version.",
    )
