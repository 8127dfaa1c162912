"""ROIs as GeoJSON, as QuPath writes and reads it.

Coordinates are x, y in pixels, counted from the corner of the top-left pixel for every kind: lines
and points move by half a pixel against the model. A feature's properties are QuPath's, see
`openhcs_stream.rois._qupath`; the geometry has its `plane` and `isEllipse`. What GeoJSON has no
place for (the kind, stroke width, group, an arrow's head) lies in the property `imagej`, which
other programs ignore, and counts on reading where the geometry is still the same.
"""

from __future__ import annotations

import json
import logging
import math
import os
import reprlib
import warnings
from collections import Counter
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from openhcs_stream.errors import InvalidItem, LossyConversion
from openhcs_stream.rois._details import Details, Text
from openhcs_stream.rois._listed import first_few, listed_rois
from openhcs_stream.rois._losses import warn_of
from openhcs_stream.rois._model import KINDS, Roi
from openhcs_stream.rois._nesting import polygons_of
from openhcs_stream.rois._outline import rings
from openhcs_stream.rois._qupath import fields_of, properties_of

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
_AREAS: Final = frozenset({"Polygon", "MultiPolygon"})
_OF_POINTS: Final = frozenset({"Point", "MultiPoint"})
_GEOMETRIES: Final = _AREAS | _OF_POINTS | {"LineString", "MultiLineString"}


def to_geojson(rois: Roi | Iterable[Roi], *, warn: bool = True) -> dict[str, Any]:
    """Make a FeatureCollection, which ``json.dumps`` writes and QuPath reads.

    Parameters
    ----------
    rois : Roi or iterable of Roi
        `losses` tells what other programs don't see of one. `Roi.properties` that read as numbers
        become QuPath's measurements, the others its metadata, but for "classification" (with
        "classification_color", as "#rrggbb"), "objectType" ("annotation" where it is missing),
        "isLocked" ("true"), "nucleusGeometry" (the JSON of a geometry) and "id", which have places
        of their own.
    warn : bool
        False: no warning.

    Warns
    -----
    LossyConversion
        Others will see less than was meant, such as a text as its box. `from_geojson` restores it.

    Raises
    ------
    InvalidItem
        Something in the list is no `Roi`; `coerce` makes them of much else.
    """
    listed = listed_rois(rois)
    if warn:
        warn_of(listed, "geojson")
    return {"type": "FeatureCollection", "features": [_feature(roi) for roi in listed]}


def from_geojson(
    document: dict[str, Any] | list[Any] | str | bytes | os.PathLike[str],
) -> list[Roi]:
    """Read the ROIs of a GeoJSON document.

    Parameters
    ----------
    document : dict, list, str, bytes or path
        A FeatureCollection, a list of features (as QuPath writes), a feature or a geometry: decoded
        (``json.load``), as the JSON text itself, or the ``pathlib.Path`` of a file of it.

        A polygon with holes and a MultiPolygon become a composite, a LineString a line or polyline,
        a MultiLineString several, an ellipse of QuPath's an oval. `Roi.properties` are texts: a
        measurement 12.5 is "12.5" there, and `to_geojson` makes a number of it again.

    Returns
    -------
    list of Roi
        Features without a geometry, or with an empty one, have none.

    Warns
    -----
    LossyConversion
        Once, of all features that are left out because they can't be read, with their numbers and
        the reasons, and of properties that are not kept or not shown: QuPath's nucleus.

    Raises
    ------
    InvalidItem
        It is no GeoJSON, or none of its features can be read.
    OSError
        The file can't be read.
    """
    made: list[Roi] = []
    reading = _Reading()
    for geometry, feature, number in reading.geometries(_decoded(document)):
        try:
            made += _read(geometry, feature, reading)
        except InvalidItem as error:
            reading.leave_out(number, error)
    reading.end(made)
    return made


class _Reading:
    """What is told of one document, at its end."""

    def __init__(self) -> None:
        self._n_empty = 0
        self._left_out: list[tuple[int | None, InvalidItem]] = []
        self._told: Counter[str] = Counter()

    def tell(self, what: str) -> None:
        """Of one feature: something that is lost, or not shown."""
        self._told[what] += 1

    def leave_out(self, number: int | None, error: InvalidItem) -> None:
        self._left_out.append((number, error))

    def end(self, made: list[Roi]) -> None:
        if self._n_empty:
            _log.warning("%d features without a geometry have no ROI", self._n_empty)
        if self._left_out and not made:
            number, error = self._left_out[0]
            where = "" if number is None else f"feature {number}: "
            more = f" (and {len(self._left_out) - 1} more)" if len(self._left_out) > 1 else ""
            raise InvalidItem(
                f"in GeoJSON, {where}{error.what}{more}", cure=error.cure or _CURE
            ) from error
        lines = [f"{what} ({n} features)" for what, n in self._told.items()]
        if self._left_out:
            named = [f"{number} ({error.what})" for number, error in self._left_out]
            told = first_few(named, separator=", ")
            lines.insert(0, f"features that can't be read are left out: {told}")
        if lines:
            warnings.warn(f"GeoJSON: {'; '.join(lines)}.", LossyConversion, stacklevel=3)

    def geometries(
        self, document: Any
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], int | None]]:
        """Every geometry that is no collection, with its feature and that one's number, from 0."""
        # No recursion: the file decides on its depth.
        stack: list[tuple[Any, dict[str, Any], int | None]] = [(document, {}, None)]
        while stack:
            node, feature, number = stack.pop()
            match node:
                case list():
                    stack += _numbered(node, feature, number)
                case {"type": "FeatureCollection", "features": list(features)}:
                    stack += _numbered(features, {}, number)
                case {"type": "GeometryCollection", "geometries": list(geometries)}:
                    stack += [(child, feature, number) for child in reversed(geometries)]
                case {"type": "Feature", "geometry": geometry}:
                    if geometry is None:
                        self._n_empty += 1
                    else:
                        stack.append((geometry, node, number))
                case {"type": str(kind), "coordinates": []} if kind in _GEOMETRIES:
                    self._n_empty += 1
                case {"type": str(), "coordinates": list()}:
                    yield node, feature, number
                case _:
                    wrong = InvalidItem(f"this is no GeoJSON: {reprlib.repr(node)}.", cure=_CURE)
                    self.leave_out(number, wrong)


def _numbered(
    children: list[Any], feature: dict[str, Any], number: int | None
) -> list[tuple[Any, dict[str, Any], int | None]]:
    """Features' numbers are those of the outermost list."""
    pairs = reversed(list(enumerate(children)))
    return [(child, feature, i if number is None else number) for i, child in pairs]


def _decoded(document: Any) -> Any:
    if isinstance(document, os.PathLike):
        document = FilePath(document).read_bytes()
    if isinstance(document, (bytearray, memoryview)):
        document = bytes(document)
    if not isinstance(document, (str, bytes)):
        return document
    try:
        return json.loads(
            document.removeprefix("\ufeff") if isinstance(document, str) else document
        )
    except (ValueError, RecursionError) as error:
        raise InvalidItem(
            f"the text {reprlib.repr(document)} is no GeoJSON: {error}.",
            cure="Pass the text of the document, what json.load made of it, or a pathlib.Path.",
        ) from error


# --- writing --------------------------------------------------------------------------------------


def _feature(roi: Roi) -> dict[str, Any]:
    own, properties = properties_of(roi)
    properties["imagej"] = _rest(roi)
    return {"type": "Feature"} | own | {"geometry": _geometry(roi), "properties": properties}


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
        parts = _rings(roi)
        closed = [[*part.tolist(), part[0].tolist()] for part in parts]
        polygons = [[closed[i] for i in polygon] for polygon in polygons_of(parts)]
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


def _rings(roi: Roi) -> list[npt.NDArray[np.float64]]:
    """Give an area's rings; a ring of GeoJSON has three vertices, one of fewer encloses nothing."""
    found = rings(roi)
    kept = [ring for ring in found if len(ring) >= 3]
    return kept or [np.concatenate([found[0], found[0][:1], found[0][:1]])]


# --- reading --------------------------------------------------------------------------------------


def _read(geometry: dict[str, Any], feature: dict[str, Any], reading: _Reading) -> list[Roi]:
    properties = feature.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    fields = fields_of(properties, feature, reading.tell)
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
    return made if _is_at(made, geometry) else plain


def _is_at(roi: Roi, geometry: dict[str, Any]) -> bool:
    """Whether a geometry is the ROI's; its rings may be sorted into polygons in another way."""
    kind, coordinates = geometry["type"], geometry["coordinates"]
    if roi.is_area:
        return kind in _AREAS and _sorted(_rings(roi)) == _sorted(
            _parts([coordinates] if kind == "Polygon" else coordinates)
        )
    if roi.kind == "point":
        given = [coordinates] if kind == "Point" else coordinates
        return kind in _OF_POINTS and np.array_equal(roi.coordinates + 0.5, _array(given))
    return kind == "LineString" and np.array_equal(rings(roi)[0] + 0.5, _array(coordinates))


def _sorted(parts: list[npt.NDArray[np.float64]]) -> list[bytes]:
    return sorted((_opened(part) + 0.0).tobytes() for part in parts)  # -0.0 becomes 0.0


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
    parts = _parts(polygons)
    if len(parts) > 1:
        return Roi.of_rings(parts, **fields)
    if geometry.get("isEllipse") is True and len(parts[0]):
        box = np.array([parts[0].min(axis=0), parts[0].max(axis=0)])
        return Roi("oval", box, **fields)
    return Roi("polygon", parts[0], **fields)


def _parts(polygons: Any) -> list[npt.NDArray[np.float64]]:
    """Give the rings of all polygons, without the vertices that close them."""
    parts = []
    for polygon in polygons:
        if not isinstance(polygon, list) or not polygon:
            raise InvalidItem("a polygon has no ring.", cure=_CURE)
        parts += [_opened(_array(ring)) for ring in polygon]
    return parts


def _opened(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return ring[:-1] if len(ring) > 1 and np.array_equal(ring[0], ring[-1]) else ring


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
