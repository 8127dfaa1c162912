"""Storage backends for pipelines: saving shows the data in a viewer."""

from __future__ import annotations

from openhcs_stream.backends._base import StreamingBackend
from openhcs_stream.backends._fiji import FijiStreamingBackend, ImageJRois
from openhcs_stream.backends._napari import NapariStreamingBackend
from openhcs_stream.backends._openhcs import register_with_openhcs

__all__ = [
    "FijiStreamingBackend",
    "ImageJRois",
    "NapariStreamingBackend",
    "StreamingBackend",
    "register_with_openhcs",
]
