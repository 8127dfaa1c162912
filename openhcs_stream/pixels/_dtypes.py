"""numpy's dtypes and their names on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import DTYPES

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["numpy_dtype", "wire_dtype"]

_WIRE_TO_NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in sorted(DTYPES)}

#: Both byte orders lead to the little-endian name: the copy into the slot converts. Also by numpy's
#: scalar types, `numpy.uint16` say.
_NUMPY_TO_WIRE: dict[np.dtype[Any] | type[np.generic], str] = {
    variant: name
    for name, dtype in _WIRE_TO_NUMPY.items()
    for variant in (dtype, dtype.newbyteorder(">"), dtype.type)
}


def wire_dtype(dtype: npt.DTypeLike) -> str:
    """Name a dtype as the wire does, always little-endian.

    Parameters
    ----------
    dtype : dtype-like
        Whatever `numpy.dtype` takes. A big-endian dtype gets its little-endian name, for the copy
        into the slot (`numpy.copyto`) swaps the bytes.

    Returns
    -------
    str
        One of `openhcs_stream.messages.DTYPES`: ``"<u2"``.

    Raises
    ------
    InvalidItem
        No viewer can show such values; the text names the dtype and what to convert it to.
    """
    try:
        # The usual case: one that is in the table. A dtype's hash is cached by numpy.
        return _NUMPY_TO_WIRE[dtype]  # type: ignore[index]
    except (KeyError, TypeError):
        pass
    try:
        known = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidItem(
            f"{dtype!r} is no dtype that numpy knows.",
            cure="Give a numeric dtype such as 'uint16' or 'float32'.",
        ) from error
    try:
        return _NUMPY_TO_WIRE[known]
    except KeyError:
        raise InvalidItem(
            f"pixels of dtype {known.name!r} can't be sent.", cure=_cure(known)
        ) from None


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype for a name from the wire.

    Raises
    ------
    ProtocolViolation
        The name is none of `openhcs_stream.messages.DTYPES`.
    """
    try:
        return _WIRE_TO_NUMPY[name]
    except KeyError:
        raise ProtocolViolation(
            f"{name!r} is no dtype of this protocol, which has {', '.join(sorted(DTYPES))}.",
            cure="Make sure that both ends are openhcs-stream, and of the same major version.",
        ) from None


def _cure(dtype: np.dtype[Any]) -> str:
    """Say what to send instead."""
    if dtype.names is not None:
        return f"Send its fields one by one: array[{dtype.names[0]!r}]."
    match dtype.kind:
        case "O":
            return "Convert it first, for instance with np.stack(list_of_planes) or .astype(float)."
        case "U" | "S" | "T":
            return "Convert it to numbers first: array.astype(float)."
        case "M" | "m":
            return "Send the counts: array.astype('int64')."
        case "c":
            return "Send np.abs(array), array.real or array.imag."
        case "f":
            return "Convert it first: array.astype('float64')."
        case _:
            return "Convert it first: array.astype('float32')."
