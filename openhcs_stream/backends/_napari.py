"""The storage backend that shows what is saved in napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from openhcs_stream.backends._base import StreamingBackend

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["NapariStreamingBackend"]


class NapariStreamingBackend(StreamingBackend):
    """Saves arrays and ROIs by showing them in napari: image layers and shapes layers."""

    VIEWER_TYPE: ClassVar[str] = "napari"

    def _prepare_rois_data(self, data: Any, file_path: str | os.PathLike[str]) -> Sequence[Any]:
        return super()._prepare_rois_data(data, file_path)
