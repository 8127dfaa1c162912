"""Pixels in the JVM: copied there once, at a memory copy's speed, one Java array for each plane.

ImageJ has 8-bit and 16-bit unsigned whole numbers, 32-bit floats and RGB. Other types become
floats where every value is kept exactly.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.errors import InvalidItem, OutOfSpace

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec
    from openhcs_stream_fiji._java import Java

__all__ = ["Form", "JavaPlanes", "Keeper", "form_of"]

#: Whole numbers up to here are exact in 32-bit floats.
_EXACT: Final = 1 << 24
#: Rows are checked and converted in pieces of some such size, which stay in the cache.
_PIECE_NBYTES: Final = 1 << 20
#: Memory that is never given to pixels: ImageJ draws with it, and Java itself needs some to go on.
_RESERVE_NBYTES: Final = 96 << 20
#: Java's arrays have no more elements.
_MOST_PIXELS: Final = 2**31 - 16

#: How each of ImageJ's types is called, and what numpy has for it.
_OF_JAVA: Final[dict[str, np.dtype[Any]]] = {
    "byte": np.dtype(np.uint8),
    "short": np.dtype(np.uint16),
    "float": np.dtype(np.float32),
    "int": np.dtype(np.int32),
}


@dataclass(frozen=True, slots=True)
class Form:
    """What all planes of one of ImageJ's stacks have in common."""

    java: str  #: "byte", "short", "float"; "int" is RGB
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    @property
    def itemsize(self) -> int:
        return _OF_JAVA[self.java].itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """What numpy has for it."""
        return _OF_JAVA[self.java]

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize


def form_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
    """The form of planes of this shape, (Y, X) or (Y, X, S), and type."""
    if len(shape) == 3:
        java = "int"
    elif dtype.kind == "b" or dtype == np.uint8:
        java = "byte"
    elif dtype == np.uint16:
        java = "short"
    else:
        java = "float"
    return Form(java, shape[0], shape[1])


class JavaPlanes:
    """Java arrays, one a plane, in the shape of the item that they were copied from.

    Parameters
    ----------
    keeper : Keeper
    arrays : list of Java arrays
        In C order.
    leading : tuple of int
        How many planes along each slider; empty: this is one plane.
    plane_shape : tuple of int
        (Y, X) or (Y, X, 3).
    dtype : dtype
        Of the item; Java's arrays may be of another that holds the same values.
    """

    __slots__ = ("__weakref__", "_keeper", "arrays", "dtype", "form", "leading", "plane_shape")

    def __init__(
        self,
        keeper: Keeper,
        arrays: list[Any],
        leading: tuple[int, ...],
        plane_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        form: Form,
    ) -> None:
        self._keeper = keeper
        self.arrays = arrays
        self.leading = leading
        self.plane_shape = plane_shape
        self.dtype = dtype
        self.form = form

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.leading, *self.plane_shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the JVM."""
        return len(self.arrays) * self.form.nbytes

    @property
    def array(self) -> Any:
        """The Java array of this one plane."""
        (array,) = self.arrays
        return array

    def __getitem__(self, index: tuple[int, ...]) -> JavaPlanes:
        """One plane: as many integers as there are sliders."""
        number = int(np.ravel_multi_index(index, self.leading))
        return JavaPlanes(
            self._keeper, [self.arrays[number]], (), self.plane_shape, self.dtype, self.form
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The values, read back from Java."""
        if copy is False:
            raise ValueError("pixels in the JVM can't be seen from here without a copy.")
        found = np.empty(self.shape, self.dtype)
        planes = found.reshape(-1, *self.plane_shape)
        for plane, array in zip(planes, self.arrays, strict=True):
            plane[...] = self._keeper.read(array, self.form, self.dtype)
        return found if dtype is None else found.astype(dtype, copy=False)


class Keeper:
    """Copies pixels into Java and back.

    Parameters
    ----------
    java : Java
    rounds : bool
        Round what 32-bit floats can't hold, instead of refusing it.
    """

    def __init__(self, java: Java, *, rounds: bool = False) -> None:
        self._java = java
        self._rounds = rounds
        self._native_order = java.ByteOrder.nativeOrder()
        self._make: dict[str, Any] = {
            "byte": java.bytes, "short": java.shorts, "float": java.floats, "int": java.ints,
        }  # fmt: skip
        #: What gives a buffer's numbers in bulk.
        self._views = {"short": "asShortBuffer", "float": "asFloatBuffer", "int": "asIntBuffer"}

    # --- numpy to Java ------------------------------------------------------------------------

    def keep(
        self, pixels: npt.NDArray[Any], recycled: JavaPlanes | None, spec: LayerSpec
    ) -> JavaPlanes:
        """Copy an item: see `Viewer.keep`.

        Raises
        ------
        InvalidItem
            ImageJ has no type that holds these values.
        OutOfSpace
            They don't fit into Java's memory.
        """
        samples = spec.axes.endswith("S")
        depth = pixels.ndim - (3 if samples else 2)
        leading = pixels.shape[:depth]
        plane_shape = pixels.shape[depth:]
        if samples:
            if pixels.dtype != np.uint8:
                raise InvalidItem(
                    f"the colour image {spec.name!r} has dtype {pixels.dtype}; ImageJ's RGB is of "
                    "8 bits.",
                    cure="Send astype('uint8'), or its samples as channels: name the axis C.",
                )
            plane_shape = (*plane_shape[:2], 3)  # ImageJ has no alpha
        form = form_of(plane_shape, pixels.dtype)
        if form.size > _MOST_PIXELS:
            raise InvalidItem(
                f"a plane of {spec.name!r} has {form.height} x {form.width} pixels; ImageJ's have "
                f"at most {_MOST_PIXELS}.",
                cure="Send it in pieces, or smaller.",
            )
        if form.java == "float" and pixels.dtype.str not in _HARMLESS and not self._rounds:
            for index in np.ndindex(leading):
                _check_exact(pixels[index], spec)
        if isinstance(recycled, JavaPlanes) and recycled.form == form:
            arrays = recycled.arrays
        else:
            recycled = None
            arrays = self._allocate(form, math.prod(leading), spec)
        # Without sliders the one index is (), and gives the whole.
        for array, index in zip(arrays, product(*map(range, leading)), strict=True):
            self._fill(array, pixels[index], form)
        return recycled or JavaPlanes(self, arrays, leading, plane_shape, pixels.dtype, form)

    def convert(self, plane: npt.NDArray[Any], form: Form) -> Any:
        """A new Java array of a plane, brought to a larger size or a wider type."""
        array = self.blank(form)
        if plane.shape[:2] != (form.height, form.width):
            padded = np.zeros((form.height, form.width, *plane.shape[2:]), plane.dtype)
            padded[: plane.shape[0], : plane.shape[1]] = plane
            plane = padded
        self._fill(array, plane, form)
        return array

    def write(self, array: Any, plane: npt.NDArray[Any], form: Form) -> None:
        """Copy a plane of the form's size into its Java array."""
        self._fill(array, plane, form)

    def plane(self, array: Any, dtype: np.dtype[Any], form: Form) -> JavaPlanes:
        """One plane of values of `dtype`, in a Java array that holds them already."""
        return JavaPlanes(self, [array], (), (form.height, form.width), dtype, form)

    def blank(self, form: Form) -> Any:
        """A new Java array of zeros: black."""
        try:
            array = self._make[form.java](form.size)
            if form.java == "int":
                self._java.Arrays.fill(array, -0x1000000)
        except self._java.OutOfMemoryError as error:
            raise self._full(form.nbytes) from error
        return array

    def _allocate(self, form: Form, count: int, spec: LayerSpec) -> list[Any]:
        nbytes = form.nbytes * count
        free, most = self._java.free_nbytes()
        if nbytes + _RESERVE_NBYTES > free:
            if nbytes + _RESERVE_NBYTES <= most:
                self._java.System.gc()
                free, most = self._java.free_nbytes()
            if nbytes + _RESERVE_NBYTES > free:
                raise self._full(nbytes, f"{spec.name!r}: ")
        make = self._make[form.java]
        try:
            return [make(form.size) for _ in range(count)]
        except self._java.OutOfMemoryError as error:
            raise self._full(nbytes, f"{spec.name!r}: ") from error

    def _full(self, nbytes: int, what: str = "") -> OutOfSpace:
        free, most = self._java.free_nbytes()
        free = max(0, free - _RESERVE_NBYTES)
        return OutOfSpace(
            f"{what}{_in_mib(nbytes)} of pixels don't fit into ImageJ's memory: "
            f"{_in_mib(free)} of {_in_mib(most)} are free.",
            cure="Close images, or start the viewer with more: --option memory=12g.",
        )

    def _fill(self, array: Any, plane: npt.NDArray[Any], form: Form) -> None:
        java = form.java
        if java == "int":
            self._copy(array, _packed(plane), java)
        elif plane.dtype.kind == "b":
            # ImageJ's masks are 0 and 255, also among planes of wider types.
            self._copy(array, np.multiply(plane, 255, dtype=_OF_JAVA[java], casting="unsafe"), java)
        elif plane.dtype == _OF_JAVA[java]:
            self._copy(array, np.ascontiguousarray(plane), java)
        else:
            with np.errstate(over="ignore"):  # only where it was allowed to round
                converted = plane.astype(_OF_JAVA[java], order="C")
            self._copy(array, converted, java)

    def _copy(self, array: Any, plane: npt.NDArray[Any], java: str) -> None:
        """Copy a plane, contiguous and of Java's own type, without looking at its numbers."""
        buffer = self._direct(plane)
        (buffer if java == "byte" else getattr(buffer, self._views[java])()).get(array)

    def _direct(self, plane: npt.NDArray[Any]) -> Any:
        """A Java buffer over an array's memory; good for as long as the array is.

        JPype's own conversion goes number by number, at 0.2 to 0.6 GB/s; a bulk copy from a buffer
        runs at 10 GB/s. JPype takes writable memory only, and shared memory is not, so the way
        leads over the bare address. Java only reads there, or only writes to arrays of ours.
        """
        memory = (ctypes.c_char * plane.nbytes).from_address(plane.ctypes.data)
        # A buffer of bytes whatever the numbers are.
        buffer = self._java.jpype.nio.convertToDirectBuffer(memoryview(memory).cast("B"))
        return buffer.order(self._native_order)

    # --- Java to numpy ------------------------------------------------------------------------

    def read(self, array: Any, form: Form, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Values of a Java array as a plane of `dtype`: (Y, X), or (Y, X, 3) for RGB."""
        raw = np.empty((form.height, form.width), _OF_JAVA[form.java])
        buffer = self._direct(raw)
        (buffer if form.java == "byte" else getattr(buffer, self._views[form.java])()).put(array)
        if form.java == "int":
            return raw.view(np.uint8).reshape(form.height, form.width, 4)[..., 2::-1]
        with np.errstate(invalid="ignore"):  # of what was rounded beyond its type
            return raw if dtype == raw.dtype else raw.astype(dtype)

    def read_rgb(self, array: Any, form: Form) -> npt.NDArray[np.uint8]:
        """Values of a Java array of RGB: (Y, X, 3)."""
        return np.asarray(self.read(array, form, np.dtype(np.uint8)), np.uint8)


#: Types that 32-bit floats hold exactly.
_HARMLESS: Final = frozenset({"<f4", "<f2", "|i1", "<i2"})


def _check_exact(plane: npt.NDArray[Any], spec: LayerSpec) -> None:
    """Refuse a plane with a value that a 32-bit float can't hold."""
    for piece in _pieces(plane):
        if piece.dtype.kind in "iu":
            largest = max(int(piece.max()), -int(piece.min()))
            if largest <= _EXACT:
                continue
            # Exact are whole numbers of at most 24 binary digits, whatever zeros follow them:
            # without its lowest set bit's zeros the number must be that small.
            magnitude = np.abs(piece).astype(np.uint64)  # the least negative one wraps to itself
            lowest = magnitude & (~magnitude + np.uint64(1))
            same = magnitude // np.maximum(lowest, 1) <= _EXACT
        else:
            with np.errstate(over="ignore"):
                same = (piece.astype(np.float32) == piece) | np.isnan(piece)
        if same.all():
            continue
        value = piece[tuple(np.argwhere(~same)[0])]
        if spec.kind == "labels":
            raise InvalidItem(
                f"the label image {spec.name!r} has the label {value}; ImageJ holds labels up to "
                f"{_EXACT} exactly.",
                cure="Number them anew: skimage.segmentation.relabel_sequential(labels).",
            )
        raise InvalidItem(
            f"{spec.name!r} ({plane.dtype}) has the value {value}, which ImageJ's 32-bit floats "
            "can't hold exactly.",
            cure="Send astype('float32') to round it yourself, or start the viewer with "
            "--option round=yes.",
        )


def _pieces(plane: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    rows = max(1, _PIECE_NBYTES // max(1, plane[:1].nbytes))
    return (plane[start : start + rows] for start in range(0, plane.shape[0], rows))


def _packed(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """(Y, X, 3 or 4) as ImageJ has it: one int a pixel, 0xffRRGGBB."""
    packed = np.empty((*plane.shape[:2], 4), np.uint8)
    packed[..., 0] = plane[..., 2]
    packed[..., 1] = plane[..., 1]
    packed[..., 2] = plane[..., 0]
    packed[..., 3] = 255
    return packed.view(np.int32)[..., 0]


def _in_mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
