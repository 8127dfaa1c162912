"""What QuPath keeps beside a geometry: names, classes, colours, metadata, measurements.

`Roi.properties` hold texts. On writing, one that reads as a number goes to the measurements, as a
number; the others go to the metadata. Four have a place of their own: "classification" (with
"classification_color", as "#rrggbb"), "objectType" ("annotation" where it is missing), "isLocked"
("true"), and "id" and "nucleusGeometry" (the JSON of a geometry) beside the feature's geometry.

On reading, all these come back, and any other property that is a text or a number is kept under its
name. What can't be kept is told.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.rois._details import Text
from openhcs_stream.rois._model import is_color

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.rois._model import Roi

__all__ = ["fields_of", "properties_of"]

_CLASS: Final = "classification"
_CLASS_COLOR: Final = "classification_color"
_TYPE: Final = "objectType"
_ID: Final = "id"
_LOCKED: Final = "isLocked"
_NUCLEUS: Final = "nucleusGeometry"
#: Those that are read by name, and not kept as they are.
_KNOWN: Final = frozenset(
    {_CLASS, _TYPE, _LOCKED, _NUCLEUS, "color", "colorRGB", "imagej", "label", "measurements",
     "metadata", "name"}
)  # fmt: skip
_NUMBER: Final = re.compile(r"-?[0-9]{1,16}(\.[0-9]{1,17})?(e[+-][0-9]{1,3})?")
_HEX: Final = re.compile(r"#([0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})")


def properties_of(roi: Roi) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what a feature itself has, and its properties, as QuPath reads them."""
    own: dict[str, Any] = {}
    kept = dict(roi.properties)
    made: dict[str, Any] = {_TYPE: kept.pop(_TYPE, "annotation")}
    name = roi.name or (roi.details.text if isinstance(roi.details, Text) else "")
    if name:
        made["name"] = name
    if _CLASS in kept:
        made[_CLASS] = {"name": kept.pop(_CLASS)}
        rgb = _rgb(kept.get(_CLASS_COLOR, ""))
        if rgb:
            made[_CLASS]["color"] = rgb
            del kept[_CLASS_COLOR]
    if roi.stroke_color:
        made["color"] = _rgb(roi.stroke_color)
    if kept.get(_LOCKED) == "true":
        made[_LOCKED] = True
        del kept[_LOCKED]
    nucleus = _geometry(kept.get(_NUCLEUS, ""))
    if nucleus is not None:
        own[_NUCLEUS] = nucleus
        del kept[_NUCLEUS]
    if _ID in kept:
        own[_ID] = kept.pop(_ID)
    numbers = {key: number for key, text in kept.items() if (number := _number(text)) is not None}
    if numbers:
        made["measurements"] = numbers
    texts = {key: text for key, text in kept.items() if key not in numbers}
    if texts:
        made["metadata"] = texts
    return own, made


def fields_of(
    properties: dict[str, Any], feature: dict[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Read a feature's name, colour and properties; `tell` takes what is lost or not shown."""
    kept: dict[str, str] = {}
    for key, value in properties.items():
        if key not in _KNOWN:
            _keep(kept, key, value, tell)
    identity, kind = feature.get(_ID), properties.get(_TYPE)
    if _is_label(identity):
        kept[_ID] = str(identity)
    if isinstance(kind, str) and kind != "annotation":
        kept[_TYPE] = kind
    _read_class(kept, properties.get(_CLASS), tell)
    if properties.get(_LOCKED) is True:
        kept[_LOCKED] = "true"
    nucleus = feature.get(_NUCLEUS, properties.get(_NUCLEUS))
    if isinstance(nucleus, dict):
        try:
            kept[_NUCLEUS] = json.dumps(nucleus, separators=(",", ":"))
        except (ValueError, TypeError, RecursionError):
            tell("the nucleus is left out, since it is no JSON")
        else:
            tell("the nucleus is kept in the property 'nucleusGeometry' and not shown")
    for key, value in _pairs(properties.get("metadata")):
        _keep(kept, key, value, tell)
    for key, value in _pairs(properties.get("measurements")):
        _keep(kept, key, value, tell)
    name, label = properties.get("name"), properties.get("label")
    if not _is_label(name):
        name, label = (label, None) if _is_label(label) else ("", label)
    _keep(kept, "label", label, tell)
    return {"name": str(name), "stroke_color": _color(properties, tell), "properties": kept}


def _read_class(kept: dict[str, str], given: Any, tell: Callable[[str], None]) -> None:
    if isinstance(given, dict):
        name, names = given.get("name"), given.get("names")
        if not isinstance(name, str) and isinstance(names, list):  # QuPath 0.6
            name = ": ".join(str(each) for each in names)
        if isinstance(name, str):
            kept[_CLASS] = name
        color = _color(given, tell)
        if color:
            kept[_CLASS_COLOR] = color
    elif isinstance(given, str):
        kept[_CLASS] = given


def _pairs(values: Any) -> list[tuple[Any, Any]]:
    """An object's, or those of the list that older versions wrote."""
    if isinstance(values, dict):
        return list(values.items())
    if isinstance(values, list):
        return [
            (each["name"], each["value"])
            for each in values
            if isinstance(each, dict) and {"name", "value"} <= each.keys()
        ]
    return []


def _keep(kept: dict[str, str], key: Any, value: Any, tell: Callable[[str], None]) -> None:
    if value is None or not isinstance(key, str):
        return
    if isinstance(value, str):
        kept[key] = value
    elif isinstance(value, bool):
        kept[key] = "true" if value else "false"
    elif isinstance(value, (int, float)):
        kept[key] = _text(value)
    else:
        short = reprlib.repr(key)
        tell(f"the property {short} is left out, since it is neither a text nor a number")


def _text(number: float) -> str:
    if isinstance(number, int) and number.bit_length() > 1024:  # Python refuses to write it
        return str(math.copysign(math.inf, number))
    return str(number)


def _number(text: str) -> float | None:
    """The number that a text is, exactly: written and read again it is the same text."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text) if "." in text or "e" in text else int(text)
    return number if str(number) == text and math.isfinite(number) else None


def _geometry(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_geometry = isinstance(found, dict) and isinstance(found.get("type"), str)
    return found if is_geometry and text == json.dumps(found, separators=(",", ":")) else None


def _rgb(color: str) -> list[int]:
    if not is_color(color) and not is_color(f"{color}ff"):
        return []
    return list(bytes.fromhex(color[1:7]))


def _is_label(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= 1024
    return isinstance(value, str) and value != ""


def _color(values: dict[str, Any], tell: Callable[[str], None]) -> str:
    """[r, g, b] or [r, g, b, a], "#rrggbb" and its like, or QuPath's one signed number of old."""
    color, packed = values.get("color"), values.get("colorRGB")
    if isinstance(color, str) and _HEX.fullmatch(color):
        digits = color[1:].lower()
        if len(digits) < 6:
            digits = "".join(digit * 2 for digit in digits)
        return f"#{digits:f<8}"
    if (
        isinstance(color, list)
        and len(color) in (3, 4)
        and all(type(part) is int and 0 <= part <= 255 for part in color)
    ):
        return f"#{bytes(color).hex():f<8}"
    if type(color) is int:
        packed = color
    if type(packed) is int:
        return f"#{packed & 0xFFFFFF:06x}ff"
    if color not in (None, ""):
        tell("the color is left out, since it is neither '#rrggbb' nor [r, g, b]")
    return ""
