"""Storage backends for pipelines: saving shows the data in a viewer."""

from __future__ import annotations

from openhcs_stream.backends._base import StreamingBackend
from openhcs_stream.backends._fiji import FijiStreamingBackend, ImageJRois
from openhcs_stream.backends._napari import NapariStreamingBackend

__all__ = ["FijiStreamingBackend", "ImageJRois", "NapariStreamingBackend", "StreamingBackend"]
