"""The live bridge between image-analysis pipelines and the viewers that biologists use.

A worker calls `connect` and sends images, labels, outlines, points and tracks; they stand in
napari within a frame or two, at their place. ``view(array)`` is the one-liner.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openhcs_stream.stream import Answer, Edit, Receipt, Stream, ask, connect, view

__all__ = ["Answer", "Edit", "Receipt", "Stream", "__version__", "ask", "connect", "view"]

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until asked for


def __getattr__(name: str) -> Any:
    """Import the worker's face when it is used: a viewer must fork before numpy has threads."""
    if name in __all__:
        from openhcs_stream import stream

        return getattr(stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
