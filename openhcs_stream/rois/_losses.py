"""What a target can't hold, and what becomes of it: told, so that nothing is lost silently.

`losses` tells of one ROI all that a target changes. Most of that is a matter of form: curves as
straight pieces, an oval as 72 vertices, a width that is not drawn; a warning for each would teach
people to switch warnings off. *Worth a warning* is what a person wrote or marked and does not see
there: the words of a text, the head of an arrow, the markers and counters of points, and, in
ImageJ, the shape of an ellipse that is no ellipse for it, and groups above 255. Converting warns
of these, once a call (`LossyConversion`), also where the way back restores them; a stream's
`Receipt.remarks` lists them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois._details import Markers, Path, Spline
from openhcs_stream.rois._outline import aspect_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openhcs_stream.rois._model import Roi

__all__ = ["STRAIGHT", "TARGETS", "Target", "losses", "remarks", "warn_of"]

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
_MARKERS: Final = "it loses its markers and counters"
_SKEWED: Final = "it becomes one whose axes are square to each other"
_GROUP: Final = "it may lose its group: ImageJ 1.54p knows groups up to 255"
#: What is worth a warning, by target and kind: see this module's text.
_WORTH: Final[Mapping[str, Mapping[str, str]]] = {
    "geojson": {kind: _OF_KIND["geojson", kind] for kind in ("arrow", "text")},
    "imagej": {},
    "labels": {
        "arrow": "it becomes the pixels of a line without a head",
        "text": "it becomes the pixels of its box; the words are lost",
    },
    "napari": {kind: _OF_KIND["napari", kind] for kind in ("arrow", "text")},
}
_GROUPS_OF_IMAGEJ: Final = 255
_kinds = attrgetter("kind")
_details = attrgetter("details")
_groups = attrgetter("group")


def losses(roi: Roi, target: Target) -> str | None:
    """Tell what of a ROI a target can't hold, and what becomes of that.

    What a person would miss, the words of a text or the head of an arrow, say, conversions and
    streams warn of by themselves: see `LossyConversion`.

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
    _check(target)
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
            found.append(_MARKERS)
        if target == "geojson":
            kept = (
                ("fill colour", roi.fill_color),
                ("stroke width", roi.stroke_width),
                ("group", roi.group),
                ("transparency", roi.stroke_color and not roi.stroke_color.endswith("ff")),
            )
            found += [f"its {name} is not seen" for name, is_set in kept if is_set]
    return "; ".join(filter(None, found)) or None


def _check(target: str) -> None:
    if target not in TARGETS:
        raise InvalidItem(
            f"ROIs have no target {target!r}.", cure=f"Use one of {', '.join(TARGETS)}."
        )


def remarks(rois: Iterable[Roi], target: Target) -> tuple[str, ...]:
    """Sum up what of some ROIs a target loses, as far as that is worth a warning.

    Parameters
    ----------
    rois : iterable of Roi
        A list of 100 000 outlines takes about 10 ms.
    target : str
        As in `losses`.

    Returns
    -------
    tuple of str
        A line for each sort of loss: "3 arrows: each becomes a path that draws its head". Empty
        where nothing worth a warning is lost.
    """
    _check(target)
    rois = rois if isinstance(rois, list | tuple) else list(rois)
    kinds = Counter(map(_kinds, rois))
    found = [(kinds[kind], kind, what) for kind, what in _WORTH[target].items() if kind in kinds]
    if target == "imagej":
        if "ellipse" in kinds:
            skewed = sum(roi.kind == "ellipse" and _is_skewed(roi) for roi in rois)
            found.append((skewed, "ellipse", _SKEWED))
        if max(map(_groups, rois), default=0) > _GROUPS_OF_IMAGEJ:
            n = sum(roi.group > _GROUPS_OF_IMAGEJ for roi in rois)
            found.append((n, "ROI", _GROUP))
    elif "point" in kinds:
        n = sum(isinstance(each, Markers) for each in map(_details, rois))
        found.append((n, "point", _MARKERS))
    return tuple(_summed(*each) for each in found if each[0])


def _summed(n: int, noun: str, what: str) -> str:
    if n == 1:
        return f"1 {noun}: {what}"
    return f"{n} {noun}s: {what.replace('it ', 'each ', 1)}"


def warn_of(rois: Iterable[Roi], target: Target, *, stacklevel: int = 3) -> None:
    """Issue one `LossyConversion` that sums up what of these ROIs a target loses.

    Nothing where nothing worth a warning is lost: see this module's text.

    Parameters
    ----------
    rois, target
        As in `remarks`.
    stacklevel : int
        3 names the line that called the function that calls this.
    """
    found = remarks(rois, target)
    if found:
        warnings.warn(f"{'; '.join(found)}.", LossyConversion, stacklevel=stacklevel)


def _imagej(roi: Roi) -> list[str]:
    found = []
    xy = roi.coordinates
    with np.errstate(over="ignore"):
        if not np.array_equal(xy.astype(np.float32), xy):
            found.append("its coordinates are rounded to float32")
    if roi.kind == "ellipse":
        if _is_skewed(roi):
            found.append(_SKEWED)
        elif aspect_ratio(xy) > 1:
            found.append("its longer axis comes first")
    if len(xy) > 65535 and not roi.is_area and roi.kind != "point":
        found.append("ImageJ itself saves 65535 vertices of it at most")
    if roi.group > _GROUPS_OF_IMAGEJ:
        found.append(_GROUP)
    elif roi.group and roi.stroke_color:
        found.append("ImageJ shows it in its group's colour")
    found += [
        f"its {field} #00000000 is none"
        for field in ("stroke_color", "fill_color")
        if getattr(roi, field) == "#00000000"
    ]
    return found


def _is_skewed(ellipse: Roi) -> bool:
    """Whether its two axes are not square to each other."""
    xy = ellipse.coordinates
    centre = (xy[0] + xy[1]) / 2
    major, minor = xy[1] - centre, xy[2] - centre
    return bool(abs(major @ minor) > 1e-5 * max(1.0, np.hypot(*major) * np.hypot(*minor)))
