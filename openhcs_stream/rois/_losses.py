"""What a target can't hold, and what becomes of it: told, so that nothing is lost silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._details import Markers, Path, Spline
from openhcs_stream.rois._outline import aspect_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.rois._model import Roi

__all__ = ["STRAIGHT", "TARGETS", "losses"]

Target: TypeAlias = Literal["geojson", "imagej", "labels", "napari"]
TARGETS: Final = get_args(Target)

#: What becomes of curves, in words.
STRAIGHT: Final = "its curves become straight pieces"
_OF_KIND: Final[Mapping[tuple[str, str], str]] = {
    ("napari", "freehand"): "it becomes a polygon",
    ("napari", "traced"): "it becomes a polygon",
    ("napari", "freeline"): "it becomes a path",
    ("napari", "polyline"): "",
    ("napari", "angle"): "it becomes a path",
    ("napari", "arrow"): "it becomes a path that draws its head",
    ("napari", "text"): "it becomes a rectangle, its box; the words are not shown",
    ("napari", "composite"): "it becomes one polygon whose rings are joined by lines",
    ("napari", "rounded rectangle"): f"it becomes a polygon; {STRAIGHT}",
    ("geojson", "rectangle"): "it becomes a polygon",
    ("geojson", "oval"): "others than QuPath and this package see a polygon of 72 vertices",
    ("geojson", "ellipse"): "it becomes a polygon of 72 vertices",
    ("geojson", "freehand"): "it becomes a polygon",
    ("geojson", "traced"): "it becomes a polygon",
    ("geojson", "freeline"): "it becomes a line string",
    ("geojson", "angle"): "it becomes a line string",
    ("geojson", "arrow"): "it becomes a line string without a head",
    ("geojson", "text"): "it becomes a polygon, its box, named by the text",
    ("geojson", "rounded rectangle"): f"it becomes a polygon; {STRAIGHT}",
    ("geojson", "rotated rectangle"): "it becomes a polygon of four corners",
}


def losses(roi: Roi, target: Target) -> str | None:
    """Tell what of a ROI a target can't hold, and what becomes of that.

    Parameters
    ----------
    roi : Roi
        Any kind.
    target : {"geojson", "imagej", "labels", "napari"}
        `to_geojson` keeps all below "imagej" in a feature's properties, from where `from_geojson`
        restores it; this tells what every other program sees. For "napari" it is the geometry that
        `to_napari` gives; names and colours are the viewer's part.

    Returns
    -------
    str or None
        None where nothing is lost.

    Raises
    ------
    InvalidItem
        The target is unknown.
    """
    if target not in TARGETS:
        raise InvalidItem(
            f"ROIs have no target {target!r}.", cure=f"Use one of {', '.join(TARGETS)}."
        )
    found = [_OF_KIND.get((target, roi.kind), "")]
    details = roi.details
    if target == "labels":
        found.append("only its pixels are kept, and a name that is a whole number")
    elif target == "imagej":
        found += _imagej(roi)
    else:
        if isinstance(details, Spline):
            found.append("its spline becomes straight pieces")
        elif isinstance(details, Path) and (b"\2" in details.segments or b"\3" in details.segments):
            found.append(STRAIGHT)
        elif isinstance(details, Markers):
            found.append("its markers and counters are not kept")
        if target == "geojson":
            kept = (
                ("fill colour", roi.fill_color),
                ("stroke width", roi.stroke_width),
                ("group", roi.group),
                ("transparency", roi.stroke_color and not roi.stroke_color.endswith("ff")),
            )
            found += [f"its {name} is not seen" for name, is_set in kept if is_set]
    return "; ".join(filter(None, found)) or None


def _imagej(roi: Roi) -> list[str]:
    found = []
    xy = roi.coordinates
    with np.errstate(over="ignore"):
        if not np.array_equal(xy.astype(np.float32), xy):
            found.append("its coordinates are rounded to float32")
    if roi.kind == "ellipse":
        centre = (xy[0] + xy[1]) / 2
        major, minor = xy[1] - centre, xy[2] - centre
        if abs(major @ minor) > 1e-5 * max(1.0, np.hypot(*major) * np.hypot(*minor)):
            found.append("its axes are made square to each other")
        elif aspect_ratio(xy) > 1:
            found.append("its longer axis comes first")
    if len(xy) > 65535 and not roi.is_area and roi.kind != "point":
        found.append("ImageJ itself saves 65535 vertices of it at most")
    if roi.group > 255:
        found.append("ImageJ 1.54p knows groups up to 255")
    elif roi.group and roi.stroke_color:
        found.append("ImageJ shows it in its group's colour")
    found += [
        f"its {field} #00000000 is none"
        for field in ("stroke_color", "fill_color")
        if getattr(roi, field) == "#00000000"
    ]
    return found
