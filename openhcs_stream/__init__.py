"""The live bridge between image-analysis pipelines and the viewers that biologists use.

A worker calls `connect` and sends images, labels, outlines, points and tracks; they stand in
napari within a frame or two, at their place. ``view(array)`` is the one-liner.
"""

from __future__ import annotations

from openhcs_stream.stream import Receipt, Stream, ask, connect, view

__all__ = ["Receipt", "Stream", "__version__", "ask", "connect", "view"]

__version__ = "0.1.0"
