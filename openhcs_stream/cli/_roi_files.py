"""GeoJSON outlines into ROIs: plain geometries, as QuPath and shapely write them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import InvalidItem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openhcs_stream.rois import Roi

__all__ = ["from_geojson"]

_log = logging.getLogger(__name__)

_CURE = "Export it anew as a GeoJSON FeatureCollection of polygons, lines and points."


def from_geojson(document: Any) -> list[Roi]:
    """Read the ROIs of a GeoJSON document.

    Parameters
    ----------
    document : object
        The decoded JSON: a FeatureCollection, a list of features (as QuPath writes), a feature or
        a geometry. Coordinates are x, y in pixels, counted from the corner of the top-left pixel.

    Returns
    -------
    list of Roi
        Holes of polygons are left out, with a warning in the log.

    Raises
    ------
    InvalidItem
        It is no GeoJSON.
    """
    made: list[Roi] = []
    for geometry, name in _geometries(document, ""):
        made += _rois(geometry, name)
    return made


def _geometries(node: Any, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every geometry below `node` that is no collection, with its feature's name."""
    stack: list[tuple[Any, str]] = [(node, name)]  # no recursion: the file decides on its depth
    while stack:
        node, name = stack.pop()
        match node:
            case list():
                stack += [(child, name) for child in reversed(node)]
            case {"type": "FeatureCollection", "features": list(features)}:
                stack += [(child, name) for child in reversed(features)]
            case {"type": "GeometryCollection", "geometries": list(geometries)}:
                stack += [(child, name) for child in reversed(geometries)]
            case {"type": "Feature", "geometry": geometry}:
                if geometry is not None:
                    stack.append((geometry, _name(node)))
            case {"type": str(), "coordinates": list()}:
                yield node, name
            case _:
                raise InvalidItem(f"this is no GeoJSON: {str(node)[:80]}.", cure=_CURE)


def _name(feature: dict[str, Any]) -> str:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    classification = properties.get("classification")
    for value in (
        properties.get("name"),
        classification.get("name") if isinstance(classification, dict) else None,
        properties.get("label"),
        feature.get("id"),
    ):
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return ""


def _rois(geometry: dict[str, Any], name: str) -> list[Roi]:
    from openhcs_stream.rois import Roi

    kind, coordinates = geometry["type"], geometry["coordinates"]
    match kind:
        case "Polygon":
            return _polygons([coordinates], name)
        case "MultiPolygon":
            return _polygons(coordinates, name)
        case "LineString":
            return [Roi("polyline", _centred(coordinates), name=name)]
        case "MultiLineString":
            return [Roi("polyline", _centred(line), name=name) for line in coordinates]
        case "Point":
            return [Roi("point", _centred([coordinates]), name=name)]
        case "MultiPoint":
            return [Roi("point", _centred(coordinates), name=name)]
        case _:
            raise InvalidItem(f"GeoJSON has no geometry of type {kind!r}.", cure=_CURE)


def _polygons(polygons: Any, name: str) -> list[Roi]:
    from openhcs_stream.rois import Roi

    made = []
    for rings in polygons:
        if not isinstance(rings, list) or not rings:
            raise InvalidItem("a GeoJSON polygon has no ring.", cure=_CURE)
        if len(rings) > 1:
            _log.warning("%d holes of polygon %r are left out", len(rings) - 1, name)
        ring = _pairs(rings[0])
        if len(ring) > 1 and ring[0] == ring[-1]:  # GeoJSON closes its rings, the model does not
            ring.pop()
        made.append(Roi("polygon", _array(ring), name=name))
    return made


def _centred(coordinates: Any) -> Any:
    """Lines and points: GeoJSON counts from the pixel's corner, the model from its centre."""
    return _array(_pairs(coordinates)) - 0.5


def _pairs(coordinates: Any) -> list[tuple[float, float]]:
    try:
        pairs = [(float(position[0]), float(position[1])) for position in coordinates]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InvalidItem(
            f"GeoJSON coordinates are no pairs of numbers: {str(coordinates)[:80]}.", cure=_CURE
        ) from error
    if not all(math.isfinite(number) for pair in pairs for number in pair):
        raise InvalidItem("GeoJSON coordinates are not finite.", cure=_CURE)
    return pairs


def _array(pairs: list[tuple[float, float]]) -> Any:
    import numpy as np

    return np.asarray(pairs, np.float64).reshape(-1, 2)
