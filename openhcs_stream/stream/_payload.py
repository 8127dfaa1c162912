"""What a caller hands over, checked and made ready: an array with axes, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import AXES, MAX_NDIM, PlaceValue, canonical_component
from openhcs_stream.stream._device import DeviceArray, on_device

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream.messages import Kind

__all__ = [
    "InfoValue",
    "Place",
    "as_array",
    "as_info",
    "as_limits",
    "as_pixel_size",
    "as_place",
    "as_table",
    "default_axes",
    "with_axes",
]

#: Where an item belongs: ``{"well": "A01", "site": 1, "channel": "DAPI", "z": 3, "time": 0}``.
Place: TypeAlias = Mapping[str, PlaceValue]
InfoValue: TypeAlias = str | int | float | bool | None

#: What one item's metadata may have, so that its descriptor fits into a packet.
MAX_METADATA = 16_384
MAX_METADATA_ENTRIES = 256

_DEFAULT_AXES = ("", "X", "YX", "ZYX", "CZYX", "TCZYX", "ATCZYX", "BATCZYX", "EBATCZYX")
#: Bounds of a place's values: whole numbers that a double holds, and characters of text.
MAX_INT = 2**53
MAX_TEXT = 256
_COMPONENT_OF_AXIS = {"T": "time", "Z": "z", "C": "channel"}


def as_array(data: Any, *, what: str = "an image") -> Any:
    """Any array-like as a numpy array without a copy where there need be none, or a `DeviceArray`.

    torch, cupy and jax arrays are taken through DLPack or the array protocols; none of these
    packages is imported. What is on a device stays there: it is copied once, by `copy_into`.

    Returns
    -------
    ndarray or DeviceArray

    Raises
    ------
    InvalidItem
        It is no array, or has no numbers in it.
    """
    if isinstance(data, np.ndarray):
        return data
    if data is None or isinstance(data, (str, bytes, dict, set)):
        raise InvalidItem(
            f"{what} can't be made from {type(data).__name__}.",
            cure="Pass an array: numpy, torch, cupy, jax, or nested lists of numbers.",
        )
    try:
        there = on_device(data)
        if there is not None:
            return there
        array = _through_dlpack(data) if hasattr(data, "__dlpack_device__") else np.asarray(data)
    except InvalidItem:
        raise
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise InvalidItem(
            f"{what} can't be made from {type(data).__name__}: {error}.",
            cure="Convert it with numpy.asarray first.",
        ) from error
    if array.dtype == object:
        raise InvalidItem(
            f"{what} can't be made from {type(data).__name__}: its elements are Python objects.",
            cure="Convert it with numpy.asarray(..., dtype=...) to a numeric dtype.",
        )
    return array


def _through_dlpack(data: Any) -> npt.NDArray[Any]:
    """A foreign array by DLPack, as a view where it lies on the host."""
    if hasattr(data, "detach"):  # torch refuses to export what still records gradients
        data = data.detach()
    try:
        return np.from_dlpack(data)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        # Read-only or oddly typed exports, or a device that numpy can't read from: what the
        # array protocol gives may still do.
        return np.asarray(data)


def default_axes(shape: tuple[int, ...], *, is_uint8: bool) -> str:
    """The axes that an array without declared axes most likely has.

    ``YX``, ``ZYX``, ``CZYX``, ``TCZYX``, then A, B, E in front; a (Y, X, 3 or 4) uint8 array that
    is larger than 4 pixels on both sides is taken as RGB(A), ``YXS``.
    """
    if len(shape) == 3 and is_uint8 and shape[-1] in (3, 4) and min(shape[:2]) > 4:
        return "YXS"
    if len(shape) > MAX_NDIM:
        raise _too_many(shape)
    return _DEFAULT_AXES[len(shape)]


def with_axes(array: Any, axes: Any) -> tuple[Any, str]:
    """Check an image's axes and bring Y and X (and S) to its end.

    Parameters
    ----------
    array : ndarray or DeviceArray
        0 to 8 dimensions.
    axes : str or None
        One letter per dimension: T, C, Z, Y, X, S (samples of RGB(A)), or another of tifffile's
        letters. None: `default_axes`.

    Returns
    -------
    array, axes
        The same memory, transposed where Y, X, S did not come last in this order.

    Raises
    ------
    InvalidItem
        Unknown or repeated letters, a wrong number of them, an empty array, no Y or X, or S that
        is not 3 or 4 samples.
    """
    if not isinstance(axes, str | None):
        raise InvalidItem(
            f"axes={axes!r} is no text.", cure='Write one letter per dimension: axes="ZYX".'
        )
    ordered, order = _plan_axes(array.shape, axes, array.dtype == np.uint8)
    return (array if order is None else array.transpose(order)), ordered


@lru_cache(maxsize=1024)
def _plan_axes(
    shape: tuple[int, ...], axes: str | None, is_uint8: bool
) -> tuple[str, tuple[int, ...] | None]:
    """The axes in order, and how to transpose to them; remembered, as images come in series."""
    if axes is None:
        axes = default_axes(shape, is_uint8=is_uint8)
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise InvalidItem(
            f"axes={axes!r} has unknown letters {', '.join(map(repr, unknown))}.",
            cure=f"Use capital letters of {AXES}: T time, C channel, Z, Y, X, S samples (RGB).",
        )
    if len(axes) != len(shape):
        raise InvalidItem(
            f"axes={axes!r} names {len(axes)} axes, the array has {len(shape)}: {shape}.",
            cure="Give one letter per dimension, or leave axes out.",
        )
    if len(set(axes)) != len(axes):
        raise InvalidItem(f"axes={axes!r} names an axis twice.", cure="Use each letter once.")
    if len(shape) > MAX_NDIM:
        raise _too_many(shape)
    if 0 in shape:
        raise InvalidItem(
            f"an array of shape {shape} has no pixels.",
            cure="Send at least one pixel, or nothing.",
        )
    tail = "".join(letter for letter in "YXS" if letter in axes)
    if len(shape) >= 2 and not ("Y" in axes and "X" in axes):
        raise InvalidItem(
            f"axes={axes!r} has no {'Y' if 'X' in axes else 'X'}.",
            cure="Name the two axes of the picture Y and X.",
        )
    if "S" in axes and shape[axes.index("S")] not in (3, 4):
        raise InvalidItem(
            f"axes={axes!r} has {shape[axes.index('S')]} samples (S) per pixel.",
            cure="S is RGB or RGBA, 3 or 4 samples; use C for channels.",
        )
    if axes.endswith(tail):
        return axes, None
    order = "".join(letter for letter in axes if letter not in tail) + tail
    return order, tuple(axes.index(letter) for letter in order)


def _too_many(shape: tuple[int, ...]) -> InvalidItem:
    return InvalidItem(
        f"an array of {len(shape)} dimensions, shape {shape}, can't be shown.",
        cure=f"Send at most {MAX_NDIM} dimensions; index or reshape it first.",
    )


def as_table(data: Any, *, kind: Kind, axes: str | None) -> tuple[npt.NDArray[np.float64], str]:
    """Check a table of points or tracks.

    Parameters
    ----------
    data : array-like
        Points: (N, D), one coordinate per axis, in pixels. Tracks: (N, D + 1), the track's number
        first, then its coordinates.
    kind : str
        "points" or "tracks".
    axes : str or None
        Letters of the D coordinates; None: YX or ZYX for points, TYX or TZYX for tracks.
    """
    array = as_array(data, what=f"{kind}")
    if isinstance(array, DeviceArray):
        array = array.to_host()  # a table is small, and converted anyway
    extra = 1 if kind == "tracks" else 0
    if array.size == 0 and array.ndim < 2:
        array = np.empty((0, (len(axes) if axes else 2 + extra) + extra))
    if array.ndim != 2:
        raise InvalidItem(
            f"{kind} have shape {array.shape}; they are a table.",
            cure="Pass (N, D): one row each, one column per coordinate"
            + (", the track's number in front." if extra else "."),
        )
    columns = array.shape[1] - extra
    defaults = {2: "YX", 3: "ZYX"} if kind == "points" else {3: "TYX", 4: "TZYX"}
    if axes is None:
        axes = defaults.get(columns)
        if axes is None:
            raise InvalidItem(
                f"{kind} have {array.shape[1]} columns.",
                cure=f"Say what they are with axes=, or pass {' or '.join(defaults.values())}.",
            )
    unknown = sorted(set(axes) - set("TZYX"))
    if unknown or len(set(axes)) != len(axes) or not axes.endswith("YX"):
        raise InvalidItem(
            f"axes={axes!r} can't be the coordinates of {kind}.",
            cure="Use YX, ZYX, TYX or TZYX.",
        )
    if kind == "tracks" and "T" not in axes:
        raise InvalidItem(
            f"axes={axes!r} of tracks has no T.", cure="Tracks need a time column: TYX or TZYX."
        )
    if len(axes) != columns:
        raise InvalidItem(
            f"axes={axes!r} names {len(axes)} coordinates, {kind} have {columns} "
            f"(shape {array.shape}).",
            cure="Give one letter per coordinate column.",
        )
    try:
        table = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidItem(f"{kind} have dtype {array.dtype}.", cure="Pass numbers.") from error
    if not np.isfinite(table).all():
        raise InvalidItem(
            f"{kind} contain {np.count_nonzero(~np.isfinite(table))} values that are not finite.",
            cure="Leave out rows with NaN or infinity.",
        )
    return table, axes


def as_place(place: Any, axes: str) -> dict[str, PlaceValue]:
    """Check a place and write its components by their canonical names.

    Raises
    ------
    InvalidItem
        A value is neither a whole number nor text, or a component is an axis of the array too.
    """
    if not place:
        return {}
    if not isinstance(place, Mapping):
        raise InvalidItem(
            f"place={place!r} is no mapping.",
            cure='Write it as {"well": "A01", "site": 1, "channel": "DAPI", "z": 3, "time": 0}.',
        )
    components = _plan_place(tuple(place), axes)
    return {
        component: value
        if type(value) is str and 0 < len(value) <= MAX_TEXT
        else _as_value(name, value)
        for component, (name, value) in zip(components, place.items(), strict=True)
    }


@lru_cache(maxsize=1024)
def _plan_place(names: tuple[Any, ...], axes: str) -> tuple[str, ...]:
    """The canonical names of a place's components; remembered, as places come in series."""
    own = {_COMPONENT_OF_AXIS.get(letter, letter.lower()): letter for letter in axes}
    components: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name or len(name) > 64:
            raise InvalidItem(
                f"place has a component named {name!r}.", cure='Name components by text: "well".'
            )
        component = canonical_component(name)
        if component in components:
            raise InvalidItem(
                f"a place with {', '.join(map(repr, names))} gives {component!r} twice.",
                cure="Give each once.",
            )
        if component in own:
            raise InvalidItem(
                f"place gives {name!r}, and the array has an axis {own[component]} of its own.",
                cure=f"Leave {name!r} out of the place, or send one plane.",
            )
        components.append(component)
    return tuple(components)


def _as_value(name: str, value: Any) -> PlaceValue:
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and -MAX_INT <= value <= MAX_INT
    ):
        return int(value)
    if isinstance(value, str) and 0 < len(value) <= MAX_TEXT:
        return str(value)
    raise InvalidItem(
        f"place gives {name}={value!r} ({type(value).__name__}).",
        cure="Use whole numbers or short text.",
    )


def as_pixel_size(size: Any) -> tuple[float, ...]:
    """A pixel size as (Y, X) or (Z, Y, X); one number is both Y and X; None is ()."""
    if size is None:
        return ()
    values = (size, size) if isinstance(size, (int, float, np.number)) else size
    try:
        checked = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        checked = ()
    if len(checked) not in (2, 3) or not all(math.isfinite(v) and v > 0 for v in checked):
        raise InvalidItem(
            f"pixel_size={size!r} can't be used.",
            cure="Give (Y, X) or (Z, Y, X) as positive numbers, in the stream's unit.",
        )
    return checked


def as_limits(limits: Any) -> tuple[float, float] | None:
    """Contrast limits as (low, high), low < high; None: the viewer looks at the first data."""
    if limits is None:
        return None
    try:
        low, high = (float(value) for value in limits)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InvalidItem(
            f"contrast_limits={limits!r} can't be used.",
            cure="Give two numbers, the lower first: (0, 4095).",
        )
    return low, high


def as_info(metadata: Any) -> dict[str, InfoValue]:
    """Metadata of one item: text, numbers, booleans and None by name."""
    if not metadata:
        return {}
    info: dict[str, InfoValue] = {}
    for name, value in metadata.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(name, str) or not isinstance(plain, (str, int, float, bool, type(None))):
            raise InvalidItem(
                f"metadata has {name!r}: {value!r} ({type(value).__name__}).",
                cure="Use text, numbers, booleans or None, under names that are text.",
            )
        info[name] = plain
    nbytes = sum(len(str(part)) for pair in info.items() for part in pair)
    if nbytes > MAX_METADATA or len(info) > MAX_METADATA_ENTRIES:
        raise InvalidItem(
            f"metadata has {len(info)} entries of {nbytes} characters.",
            cure=f"Send at most {MAX_METADATA_ENTRIES} of {MAX_METADATA} in all: name a file "
            "instead of sending what is in it.",
        )
    return info
