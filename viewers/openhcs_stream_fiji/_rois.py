"""ROIs, points and tracks as ImageJ's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from openhcs_stream.rois import to_imagej
from openhcs_stream_fiji._looks import parse_color

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from openhcs_stream.rois import Roi
    from openhcs_stream.viewer import SceneLayer
    from openhcs_stream_fiji._java import Java

__all__ = ["MARK", "to_java"]

#: The property by which a ROI of ours is told from a person's own: the title of its layer.
MARK: Final = "layer"

#: ImageJ's numbers of what is made of vertices.
_TYPES: Final = {
    "polygon": 2, "freehand": 3, "traced": 4, "polyline": 6, "freeline": 7, "angle": 8,
}  # fmt: skip
_POLYLINE: Final = 6
_CIRCLE: Final = 3
_LARGE: Final = 3


def to_java(java: Java, layer: SceneLayer, item: Any, facts: Mapping[str, object]) -> list[Any]:
    """Make ImageJ's ROIs of what a layer of ROIs, points or tracks holds at one place.

    `item` is as in `SceneLayer.items`; `facts` are what each ROI's properties tell of its origin.
    """
    origin = {MARK: layer.title, **facts}
    match layer.kind:
        case "rois":
            text = java.jpype.JString(_properties(origin))
            made = [_of_roi(java, roi, origin, text) for roi in item]
            for number, native in enumerate(made, 1):
                if not native.getName():
                    native.setName(f"{layer.key.name}-{number:04d}")
            return made
        case "points":
            return _of_points(java, layer, item, origin)
        case _:
            return _of_tracks(java, layer, item, origin)


def _of_roi(java: Java, roi: Roi, origin: Mapping[str, object], text: Any) -> Any:
    """One ROI; `text` is its properties where it has none of its own."""
    native = _shape(java, roi)
    if roi.name:
        native.setName(roi.name)
    if roi.group:
        native.setGroup(roi.group)  # and gives it the group's colour
    if roi.stroke_width:
        native.setStrokeWidth(float(roi.stroke_width))
    if roi.fill_color:  # before the stroke, whose colour it takes away
        native.setFillColor(parse_color(java, roi.fill_color))
    if roi.stroke_color:
        native.setStrokeColor(parse_color(java, roi.stroke_color))
    native.setProperties(_properties({**origin, **roi.properties}) if roi.properties else text)
    return native


def _shape(java: Java, roi: Roi) -> Any:
    xy = roi.coordinates
    kind = _TYPES.get(roi.kind)
    is_plain = roi.details is None and not roi.imagej_options
    if is_plain and kind is not None:
        # Made directly, an outline costs a seventh of what it takes through a .roi file.
        rounded = np.rint(xy)
        if roi.is_area and (rounded == xy).all():
            x, y = (java.ints(np.ascontiguousarray(c, np.int32)) for c in rounded.T)
            return java.PolygonRoi(x, y, len(xy), kind)
        x, y = (java.floats(np.ascontiguousarray(c, np.float32)) for c in xy.T)
        return java.PolygonRoi(x, y, kind)
    if is_plain and roi.kind == "point":
        x, y = (java.floats(np.ascontiguousarray(c, np.float32)) for c in xy.T)
        return java.PointRoi(x, y)
    return java.RoiDecoder.openFromByteArray(java.bytes(to_imagej(roi)))


def _of_points(
    java: Java, layer: SceneLayer, points: Any, origin: Mapping[str, object]
) -> list[Any]:
    """One multi-point: whole numbers are the centres of pixels, as everywhere."""
    yx: npt.NDArray[np.float32] = np.asarray(points, np.float32)
    if not len(yx):
        return []
    native = java.PointRoi(
        java.floats(np.ascontiguousarray(yx[:, 1])), java.floats(np.ascontiguousarray(yx[:, 0]))
    )
    native.setPointType(_CIRCLE)
    native.setSize(_LARGE)
    native.setName(layer.key.name)
    native.setStrokeColor(java.Color(255, 165, 0))
    native.setProperties(_properties(origin))
    return [native]


def _of_tracks(java: Java, layer: SceneLayer, rows: Any, origin: Mapping[str, object]) -> list[Any]:
    """A polyline for each track; its times are in its properties."""
    table: npt.NDArray[np.float64] = np.asarray(rows, np.float64)
    made = []
    for number in dict.fromkeys(table[:, 0].tolist()):
        track = table[table[:, 0] == number]
        x, y = (
            java.floats(np.ascontiguousarray(column, np.float32))
            for column in (track[:, -1], track[:, -2])
        )
        native = java.PolygonRoi(x, y, _POLYLINE)
        native.setName(f"{layer.key.name} {number:g}")
        native.setStrokeColor(java.Color.getHSBColor(number * 0.618034 % 1.0, 0.8, 1.0))
        times = " ".join(f"{time:g}" for time in track[:, 1])
        facts = {**origin, "track": f"{number:g}", "times": times}
        native.setProperties(_properties(facts))
        made.append(native)
    return made


def _properties(facts: Mapping[str, object]) -> str:
    """As ImageJ keeps them: one in a line."""
    lines = (f"{key}: {value}".replace("\n", " ") for key, value in facts.items() if value != "")
    return "\n".join(lines) + "\n"
