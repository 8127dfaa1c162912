"""The storage backend that shows what is saved in Fiji."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

from openhcs_stream import rois
from openhcs_stream.backends._base import StreamingBackend

if TYPE_CHECKING:
    import os

    from openhcs_stream.rois import Roi

__all__ = ["FijiStreamingBackend", "ImageJRois"]


class ImageJRois(Sequence[bytes]):
    """ROIs as ImageJ has them: the content of a ``.roi`` file for each, made when it is looked at.

    Attributes
    ----------
    rois : list of Roi
        The same, as they are sent: all in one block, a tenth of the files' size and time.
    """

    def __init__(self, rois: list[Roi]) -> None:
        self.rois = rois

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rois)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> ImageJRois: ...

    def __getitem__(self, index: int | slice) -> bytes | ImageJRois:
        """One ROI's file, or some of them."""
        if isinstance(index, slice):
            return ImageJRois(self.rois[index])
        return rois.to_imagej(self.rois[index])


class FijiStreamingBackend(StreamingBackend):
    """Saves arrays and ROIs by showing them in Fiji: hyperstacks, and ROIs in the ROI Manager."""

    VIEWER_TYPE: ClassVar[str] = "fiji"

    def _prepare_rois_data(self, data: Any, file_path: str | os.PathLike[str]) -> ImageJRois:
        """Turn whatever the pipeline has as ROIs into ImageJ's."""
        return ImageJRois(rois.coerce(data))
