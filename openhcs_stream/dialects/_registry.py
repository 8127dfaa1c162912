"""The dialects that a receiver understands: a new one is one file and one row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream.dialects._openhcs import OpenHCS

if TYPE_CHECKING:
    from openhcs_stream.dialects._base import Dialect

__all__ = ["DIALECTS", "dialect_for"]

#: Asked in this order: the more particular before the more general.
DIALECTS: tuple[Dialect, ...] = (OpenHCS(),)


def dialect_for(frame: bytes | memoryview) -> Dialect | None:
    """Return the dialect of a frame, or None where no one here speaks it."""
    return next((dialect for dialect in DIALECTS if dialect.recognises(frame)), None)
