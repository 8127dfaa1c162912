"""Which class shows which kind of layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhcs_stream_napari._images import Images
from openhcs_stream_napari._labels import Labels
from openhcs_stream_napari._points import Points
from openhcs_stream_napari._rois import Rois
from openhcs_stream_napari._tracks import Tracks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from openhcs_stream.viewer import Coords, SceneLayer
    from openhcs_stream_napari._shown import Shown, View

__all__ = ["make"]

_CLASSES: dict[str, type[Shown]] = {
    "image": Images,
    "labels": Labels,
    "rois": Rois,
    "points": Points,
    "tracks": Tracks,
}


def make(
    layer: SceneLayer, view: View, arrived: Sequence[Coords], others: Iterable[Shown] = ()
) -> Shown:
    """Make the layer of the right class; it is not in a viewer yet."""
    return _CLASSES[layer.kind](layer, view, arrived, others)
