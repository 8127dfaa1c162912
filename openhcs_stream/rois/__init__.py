"""Regions of interest: one model, and its codecs for ImageJ, napari, GeoJSON, label images, masks
and the wire.

`Roi` stores x, y as ImageJ counts; its constructors, and the arrays that `coerce` takes, are y, x
with whole numbers at pixel centres, as numpy, scikit-image and napari have them.
"""

from __future__ import annotations

from openhcs_stream.rois._coerce import coerce, looks_like_rois
from openhcs_stream.rois._details import Arrow, Corners, Details, Markers, Path, Spline, Text
from openhcs_stream.rois._files import read_imagej, write_imagej
from openhcs_stream.rois._geojson import from_geojson, to_geojson
from openhcs_stream.rois._imagej import from_imagej, from_roifile, to_imagej
from openhcs_stream.rois._labels import from_labels
from openhcs_stream.rois._losses import TARGETS, losses, remarks
from openhcs_stream.rois._model import KINDS, KindRow, Roi, RoiKind
from openhcs_stream.rois._napari_edit import POINTS_PER_MARK, follow_napari
from openhcs_stream.rois._napari_forms import from_napari, to_napari
from openhcs_stream.rois._ome import from_ome
from openhcs_stream.rois._raster import to_labels, to_mask
from openhcs_stream.rois._wire import (
    BLOCK_VERSION,
    MAX_ROIS,
    decode,
    encode,
    estimated_nbytes,
)

__all__ = [
    "BLOCK_VERSION",
    "KINDS",
    "MAX_ROIS",
    "POINTS_PER_MARK",
    "TARGETS",
    "Arrow",
    "Corners",
    "Details",
    "KindRow",
    "Markers",
    "Path",
    "Roi",
    "RoiKind",
    "Spline",
    "Text",
    "coerce",
    "decode",
    "encode",
    "estimated_nbytes",
    "follow_napari",
    "from_geojson",
    "from_imagej",
    "from_labels",
    "from_napari",
    "from_ome",
    "from_roifile",
    "looks_like_rois",
    "losses",
    "read_imagej",
    "remarks",
    "to_geojson",
    "to_imagej",
    "to_labels",
    "to_mask",
    "to_napari",
    "write_imagej",
]
