"""ROIs as GeoJSON, as QuPath writes and reads it.

Coordinates are x, y in pixels, counted from the corner of the top-left pixel for every kind: lines
and points move by half a pixel against the model. A feature's properties have QuPath's `name`,
`color`, `classification`, `objectType` and `metadata`; the geometry has its `plane` and
`isEllipse`. What GeoJSON has no place for (the kind, stroke width, group, an arrow's head) lies in
the property `imagej`, which other programs ignore, and counts on reading where the geometry is
still the same.
"""

from __future__ import annotations

import logging
import math
import reprlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._details import Details, Text
from openhcs_stream.rois._model import KINDS, Roi, is_color
from openhcs_stream.rois._outline import rings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

__all__ = ["from_geojson", "to_geojson"]

_log = logging.getLogger(__name__)

_CURE: Final = "Export it anew as a GeoJSON FeatureCollection of polygons, lines and points."
#: Kinds whose coordinates are those of the geometry; the others keep theirs beside it.
_PLAIN: Final = frozenset(
    {"polygon", "freehand", "traced", "line", "polyline", "freeline", "angle", "arrow", "point"}
)
#: Properties of a ROI that are a feature's own, and not its metadata.
_CLASS: Final = "classification"
_CLASS_COLOR: Final = "classification_color"
_TYPE: Final = "objectType"
_ID: Final = "id"


def to_geojson(rois: Iterable[Roi]) -> dict[str, Any]:
    """Make a FeatureCollection, which ``json.dumps`` writes and QuPath reads.

    Parameters
    ----------
    rois : iterable of Roi
        `losses` tells what other programs don't see of one. `Roi.properties` go to the metadata,
        but for "classification" (with "classification_color", as "#rrggbb"), "objectType"
        ("annotation" where it is missing) and "id", which are the feature's own.
    """
    return {"type": "FeatureCollection", "features": [_feature(roi) for roi in rois]}


def from_geojson(document: dict[str, Any] | list[Any]) -> list[Roi]:
    """Read the ROIs of a GeoJSON document.

    Parameters
    ----------
    document : dict or list
        The decoded JSON: a FeatureCollection, a list of features (as QuPath writes), a feature or
        a geometry. A polygon with holes and a MultiPolygon become a composite, a LineString a line
        or polyline, a MultiLineString several, an ellipse of QuPath's an oval. A feature without a
        geometry is left out, with a warning in the log.

    Raises
    ------
    InvalidItem
        It is no GeoJSON.
    """
    made: list[Roi] = []
    for geometry, feature in _geometries(document):
        try:
            made += _read(geometry, feature)
        except InvalidItem as error:
            raise InvalidItem(f"in GeoJSON, {error.what}", cure=error.cure or _CURE) from error
    return made


# --- writing --------------------------------------------------------------------------------------


def _feature(roi: Roi) -> dict[str, Any]:
    metadata = dict(roi.properties)
    properties: dict[str, Any] = {"objectType": metadata.pop(_TYPE, "annotation")}
    name = roi.name or (roi.details.text if isinstance(roi.details, Text) else "")
    if name:
        properties["name"] = name
    class_color = metadata.pop(_CLASS_COLOR, "")
    if _CLASS in metadata:
        properties[_CLASS] = {"name": metadata.pop(_CLASS)}
        if _rgb(class_color):
            properties[_CLASS]["color"] = _rgb(class_color)
    if roi.stroke_color:
        properties["color"] = _rgb(roi.stroke_color)
    identity = metadata.pop(_ID, None)
    if metadata:
        properties["metadata"] = metadata
    properties["imagej"] = _rest(roi)
    feature: dict[str, Any] = {"type": "Feature"}
    if identity is not None:
        feature["id"] = identity
    return feature | {"geometry": _geometry(roi), "properties": properties}


def _rest(roi: Roi) -> dict[str, Any]:
    """What GeoJSON has no place for; defaults are left out."""
    rest: dict[str, Any] = {"kind": roi.kind}
    if roi.kind not in _PLAIN or roi.details is not None:
        rest["coordinates"] = roi.coordinates.tolist()
    if roi.details is not None:
        rest["details"] = msgspec.to_builtins(roi.details)
    values = {
        "stroke_color": roi.stroke_color if roi.stroke_color[7:] not in ("", "ff") else "",
        "fill_color": roi.fill_color,
        "stroke_width": roi.stroke_width,
        "group": roi.group,
        "position": list(roi.position) if any(roi.position) else 0,
        "flat_position": roi.flat_position,
        "imagej_options": roi.imagej_options,
    }
    if isinstance(roi.details, Text) and not roi.name:
        rest["name"] = ""
    return rest | {key: value for key, value in values.items() if value}


def _geometry(roi: Roi) -> dict[str, Any]:
    made: dict[str, Any]
    if roi.kind == "point":
        pairs = (roi.coordinates + 0.5).tolist()
        made = (
            {"type": "Point", "coordinates": pairs[0]}
            if len(pairs) == 1
            else {"type": "MultiPoint", "coordinates": pairs}
        )
    elif not roi.is_area:
        made = {"type": "LineString", "coordinates": (rings(roi)[0] + 0.5).tolist()}
    else:
        polygons = _nested(rings(roi))
        made = (
            {"type": "Polygon", "coordinates": polygons[0]}
            if len(polygons) == 1
            else {"type": "MultiPolygon", "coordinates": polygons}
        )
        if roi.kind == "oval":
            made["isEllipse"] = True
    if any(roi.position):
        c, z, t = roi.position
        made["plane"] = {"c": c - 1, "z": max(z - 1, 0), "t": max(t - 1, 0)}
    return made


def _nested(parts: list[npt.NDArray[np.float64]]) -> list[list[list[list[float]]]]:
    """Sort rings into polygons, each an outer ring and its holes, by which lies in which."""
    closed = [[*part.tolist(), part[0].tolist()] for part in parts]
    if len(parts) == 1:
        return [closed]
    lows = np.array([part.min(axis=0) for part in parts])
    highs = np.array([part.max(axis=0) for part in parts])
    around: list[list[int]] = []
    for part in parts:
        # The middle of the longest edge: rings may touch at their corners.
        ends = np.roll(part, -1, axis=0)
        longest = int(np.argmax(np.hypot(*(ends - part).T)))
        x, y = (part[longest] + ends[longest]) / 2
        may = ((lows <= (x, y)) & (highs >= (x, y))).all(axis=1)
        around.append(
            [i for i in np.flatnonzero(may).tolist()
             if parts[i] is not part and _is_in(x, y, parts[i])]
        )  # fmt: skip
    polygons = {i: [closed[i]] for i in range(len(parts)) if len(around[i]) % 2 == 0}
    for i, outer in enumerate(around):
        if i not in polygons:
            # Its polygon is the innermost of those around it that are outer rings themselves.
            owners = [j for j in outer if j in polygons]
            if owners:
                polygons[max(owners, key=lambda j: len(around[j]))].append(closed[i])
            else:  # rings that cross each other: better an island than nothing
                polygons[i] = [closed[i]]
    return list(polygons.values())


def _is_in(x: float, y: float, ring: npt.NDArray[np.float64]) -> bool:
    ends = np.roll(ring, -1, axis=0)
    crossing = (ring[:, 1] <= y) != (ends[:, 1] <= y)
    a, b = ring[crossing], ends[crossing]
    at = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    return bool(np.count_nonzero(at > x) % 2)


def _rgb(color: str) -> list[int]:
    if not is_color(color) and not is_color(f"{color}ff"):
        return []
    return list(bytes.fromhex(color[1:7]))


# --- reading --------------------------------------------------------------------------------------


def _geometries(document: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every geometry that is no collection, with its feature."""
    # No recursion: the file decides on its depth.
    stack: list[tuple[Any, dict[str, Any]]] = [(document, {})]
    while stack:
        node, feature = stack.pop()
        match node:
            case list():
                stack += [(child, feature) for child in reversed(node)]
            case {"type": "FeatureCollection", "features": list(features)}:
                stack += [(child, {}) for child in reversed(features)]
            case {"type": "GeometryCollection", "geometries": list(geometries)}:
                stack += [(child, feature) for child in reversed(geometries)]
            case {"type": "Feature", "geometry": geometry}:
                if geometry is None:
                    _log.warning("a feature without a geometry is left out")
                else:
                    stack.append((geometry, node))
            case {"type": str(), "coordinates": list()}:
                yield node, feature
            case _:
                raise InvalidItem(f"this is no GeoJSON: {reprlib.repr(node)}.", cure=_CURE)


def _read(geometry: dict[str, Any], feature: dict[str, Any]) -> list[Roi]:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    fields = _fields(properties, feature)
    fields["position"] = _position(geometry.get("plane"))
    plain = _rois(geometry, fields)
    rest = properties.get("imagej")
    if isinstance(rest, dict) and len(plain) == 1:
        return [_restored(rest, plain[0], geometry)]
    return plain


def _restored(rest: dict[str, Any], plain: Roi, geometry: dict[str, Any]) -> Roi:
    """Apply what `_rest` wrote, unless the geometry has been changed since, or it is damaged."""
    try:
        kind = rest.get("kind", plain.kind)
        details = None
        if "details" in rest:
            details = msgspec.convert(rest["details"], Details)
        coordinates = rest.get("coordinates", plain.coordinates)
        if kind not in KINDS:
            return plain
        made = plain.replace(
            kind=kind,
            coordinates=np.asarray(coordinates, np.float64),
            details=details,
            name=str(rest.get("name", plain.name)),
            **{
                name: rest[name]
                for name in ("stroke_color", "fill_color", "stroke_width", "group",
                             "flat_position", "imagej_options")
                if name in rest
            },
            position=tuple(rest.get("position", (0, 0, 0))),
        )  # fmt: skip
    except (InvalidItem, msgspec.ValidationError, TypeError, ValueError, OverflowError) as error:
        _log.warning("the property imagej of a feature is left out: %s", error)
        return plain
    again = _geometry(made)
    if (again["type"], again["coordinates"]) != (geometry["type"], geometry["coordinates"]):
        return plain
    return made


def _fields(properties: dict[str, Any], feature: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, str] = {}
    identity, kind = feature.get("id"), properties.get(_TYPE)
    if _is_label(identity):
        kept[_ID] = str(identity)
    if isinstance(kind, str) and kind != "annotation":
        kept[_TYPE] = kind
    given = properties.get(_CLASS)
    if isinstance(given, dict):
        names = given.get("names")
        name = given.get("name")
        if not isinstance(name, str) and isinstance(names, list):  # QuPath 0.6
            name = ": ".join(str(each) for each in names)
        if isinstance(name, str):
            kept[_CLASS] = name
        color = _color(given)
        if color:
            kept[_CLASS_COLOR] = color
    elif isinstance(given, str):
        kept[_CLASS] = given
    for name in ("metadata", "measurements"):
        values = properties.get(name)
        if isinstance(values, dict):
            kept |= {
                key: value if isinstance(value, str) else str(value)
                for key, value in values.items()
                if isinstance(key, str) and isinstance(value, (str, int, float))
            }
    label = next(
        (value for value in (properties.get("name"), properties.get("label")) if _is_label(value)),
        "",
    )
    return {"name": str(label), "stroke_color": _color(properties), "properties": kept}


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool) and value != ""


def _color(values: dict[str, Any]) -> str:
    """QuPath's [r, g, b], or the one signed number of its older versions."""
    color, packed = values.get("color"), values.get("colorRGB")
    if (
        isinstance(color, list)
        and len(color) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
    ):
        return "#" + bytes(color).hex() + "ff"
    if isinstance(packed, int):
        return f"#{packed & 0xFFFFFF:06x}ff"
    return ""


def _position(plane: Any) -> tuple[int, int, int]:
    if not isinstance(plane, dict):
        return 0, 0, 0
    numbers = [plane.get(axis, -1) for axis in "czt"]
    if not all(isinstance(number, int) and -1 <= number < 2**31 - 1 for number in numbers):
        return 0, 0, 0
    return numbers[0] + 1, numbers[1] + 1, numbers[2] + 1


def _rois(geometry: dict[str, Any], fields: dict[str, Any]) -> list[Roi]:
    kind, coordinates = geometry["type"], geometry["coordinates"]
    match kind:
        case "Polygon":
            return [_area([coordinates], geometry, fields)]
        case "MultiPolygon":
            return [_area(coordinates, geometry, fields)]
        case "LineString":
            return [_line(coordinates, fields)]
        case "MultiLineString":
            return [_line(line, fields) for line in coordinates]
        case "Point":
            return [Roi("point", _array([coordinates]) - 0.5, **fields)]
        case "MultiPoint":
            return [Roi("point", _array(coordinates) - 0.5, **fields)]
        case _:
            raise InvalidItem(
                f"this is no GeoJSON: there is no geometry {reprlib.repr(kind)}.", cure=_CURE
            )


def _line(coordinates: Any, fields: dict[str, Any]) -> Roi:
    xy = _array(coordinates) - 0.5
    return Roi("line" if len(xy) == 2 else "polyline", xy, **fields)


def _area(polygons: Any, geometry: dict[str, Any], fields: dict[str, Any]) -> Roi:
    parts = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not polygon:
            raise InvalidItem("a polygon has no ring.", cure=_CURE)
        for ring in polygon:
            xy = _array(ring)
            if len(xy) > 1 and np.array_equal(xy[0], xy[-1]):  # GeoJSON closes its rings
                xy = xy[:-1]
            parts.append(xy)
    if not parts:
        raise InvalidItem("a polygon has no ring.", cure=_CURE)
    if len(parts) > 1:
        return Roi.of_rings(parts, **fields)
    if geometry.get("isEllipse") is True and len(parts[0]):
        box = np.array([parts[0].min(axis=0), parts[0].max(axis=0)])
        return Roi("oval", box, **fields)
    return Roi("polygon", parts[0], **fields)


def _array(coordinates: Any) -> npt.NDArray[np.float64]:
    try:
        pairs = [(_number(each[0]), _number(each[1])) for each in coordinates]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise InvalidItem(
            f"coordinates are no pairs of numbers: {reprlib.repr(coordinates)}.", cure=_CURE
        ) from None
    return np.array(pairs, np.float64).reshape(-1, 2)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number
