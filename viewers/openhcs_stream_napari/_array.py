"""What a napari layer holds: a window onto the scene's stack that changes shape only when told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.viewer import Patch, PlaneStack
    from openhcs_stream_napari._pyramid import Pyramid

__all__ = ["LayerArray"]


class LayerArray:
    """Duck array in front of a `PlaneStack`: (axes..., Y, X) or (axes..., Y, X, S).

    The scene's stack takes its new shape at once when a value or an axis is added, for all layers
    together; napari learns of it layer by layer. Between the two, napari may slice any layer, and
    a layer whose data has another number of axes than the layer itself takes the window down. So
    each layer holds one of these: it has the shape of the moment when it was made, and answers
    with nothing (zeros, no memory) while the stack behind it no longer fits.

    Parameters
    ----------
    stack : PlaneStack
        The scene's stack of this layer; read at each access, never copied.
    stride : int
        Every how many pixels of Y and X are seen: a level of a pyramid.
    pyramid : Pyramid, optional
        Where better levels than that come from, for planes of which it has them.
    on_write : callable, optional
        Makes the array one that can be painted in; it is told what each writing replaced. What is
        read is a copy then: napari paints into what it has read before it writes that back.

    Notes
    -----
    bool becomes uint8 and float16 becomes float32, a plane at a time, when they are looked at:
    napari's textures have neither.
    """

    __slots__ = (
        "_behind", "_behind_dtype", "_cast", "_on_write", "_pyramid", "_stack", "_stride", "dtype",
        "rgb", "shape",
    )  # fmt: skip

    def __init__(
        self,
        stack: PlaneStack,
        *,
        stride: int = 1,
        pyramid: Pyramid | None = None,
        on_write: Callable[[list[Patch]], None] | None = None,
    ) -> None:
        self._stack = stack
        self._stride = stride
        self._pyramid = pyramid
        self._on_write = on_write
        self._behind_dtype: np.dtype[Any] = stack.dtype
        self.rgb: bool = bool(stack.rgb)
        casts: dict[str, np.dtype[Any]] = {"|b1": np.dtype(np.uint8), "<f2": np.dtype(np.float32)}
        self._cast = casts.get(stack.dtype.str)
        self.dtype: np.dtype[Any] = self._cast or stack.dtype
        self._take_shape()

    def _take_shape(self) -> None:
        self._behind: tuple[int, ...] = tuple(self._stack.shape)
        shape = list(self._behind)
        for axis in self._spatial:
            shape[axis] = -(-shape[axis] // self._stride)
        #: As it was when napari was last told.
        self.shape: tuple[int, ...] = tuple(shape)

    def lengthen(self) -> bool:
        """Take the stack's shape, if nothing but the lengths of its sliders has grown.

        Returns
        -------
        bool
            False where more has changed: napari needs a new array then.
        """
        now, was = tuple(self._stack.shape), self._behind
        sliders = self._spatial[0]
        if (
            len(now) != len(was)
            or now[sliders:] != was[sliders:]
            or self._stack.dtype != self._behind_dtype
            or any(new < old for new, old in zip(now, was, strict=True))
        ):
            return False
        self._take_shape()
        return True

    @property
    def _spatial(self) -> tuple[int, int]:
        first = len(self._behind) - (3 if self.rgb else 2)
        return first, first + 1

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stack(self) -> PlaneStack:
        return self._stack

    def is_current(self) -> bool:
        """Whether the stack still has the shape and dtype that it had when this was made."""
        stack = self._stack
        return tuple(stack.shape) == self._behind and stack.dtype == self._behind_dtype

    def __len__(self) -> int:
        return self.shape[0]

    def _fits(self) -> bool:
        """Whether an index that was meant for this array means the same in the stack."""
        now = tuple(self._stack.shape)
        return len(now) == len(self._behind) and all(
            new >= old for new, old in zip(now, self._behind, strict=True)
        )

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        if not self._fits():
            nothing: npt.NDArray[Any] = np.broadcast_to(np.zeros((), self.dtype), self.shape)
            return np.asarray(nothing[key])
        if self._stride == 1:
            found = np.asarray(self._stack[key])
        else:
            leading, spatial = self._split(key)
            small = self._stack.read_strided(leading, self._stride)
            if small is None:
                small = self._smaller(np.asarray(self._stack[leading]))
            found = small[(..., *spatial)]
        if self._cast is not None:
            return found.astype(self._cast)
        return found if self._on_write is None else found.copy()

    def _smaller(self, planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Planes at this level; Y and X are at the end, after any number of leading axes."""
        shape = planes.shape[-3:] if self.rgb else planes.shape[-2:]
        if self._pyramid is not None and planes.size == np.prod(shape, dtype=np.int64):
            number = self._stride.bit_length() - 1
            level = self._pyramid.level(planes.reshape(shape), number)
            if level is not None:
                return level.reshape(planes.shape[: -len(shape)] + level.shape)
        step = (slice(None, None, self._stride),) * 2
        return planes[(..., *step, *((slice(None),) if self.rgb else ()))]

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._on_write is None:
            raise TypeError("this array is shown only: nothing can be written to it.")
        if self._fits():  # else what was meant is not there any more
            self._on_write(self._stack.write(key, value))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        found = self[(slice(None),) * self.ndim]
        return np.array(found, dtype=dtype) if copy else np.asarray(found, dtype=dtype)

    def _split(self, key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """An index as (that of the leading axes, that of Y, X and S)."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            missing = self.ndim - (len(keys) - 1)
            keys[at : at + 1] = [slice(None)] * missing
        keys += [slice(None)] * (self.ndim - len(keys))
        first = self._spatial[0]
        return tuple(keys[:first]), tuple(keys[first:])
