"""What some kinds of ROI have besides coordinates: frozen, checked, and the same on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._properties import is_text

__all__ = [
    "ARROW_STYLES",
    "JUSTIFICATIONS",
    "MARKERS",
    "Arrow",
    "Corners",
    "Details",
    "Markers",
    "Path",
    "Spline",
    "Text",
    "checked_details",
]

#: In the order of ImageJ's numbers.
ARROW_STYLES: Final = ("filled", "notched", "open", "headless", "bar")
JUSTIFICATIONS: Final = ("left", "center", "right")
MARKERS: Final = ("hybrid", "cross", "dot", "circle")

_Byte: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
_Short: TypeAlias = Annotated[int, Meta(ge=0, le=32767)]
#: ImageJ keeps a point's slice in three bytes.
_Slice: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFFFF)]


class Corners(Struct, frozen=True, tag="corners"):
    """How round the corners of a rounded rectangle are."""

    diameter: Annotated[int, Meta(ge=1, le=32767)]  #: in pixels


class Spline(Struct, frozen=True, tag="spline"):
    """The outline or line runs through its vertices as ImageJ's cubic spline ("Fit Spline")."""


class Path(Struct, frozen=True, tag="path"):
    """How the coordinates of a composite are connected.

    Rings may be holes or islands: what lies in an odd number of them is inside.
    """

    #: One byte a segment, numbered as in ImageJ: 0 move to (takes one vertex), 1 line to (one),
    #: 2 quadratic (two) and 3 cubic Bézier curve (three), 4 close (none).
    segments: bytes


class Arrow(Struct, frozen=True, tag="arrow"):
    """The head of an arrow."""

    style: Literal["filled", "notched", "open", "headless", "bar"] = "filled"
    head_size: _Byte = 10  #: in pixels
    outline: bool = False
    double_headed: bool = False


class Text(Struct, frozen=True, tag="text"):
    """What a text says, and how it is set."""

    text: Annotated[str, Meta(max_length=1 << 20)]
    font: Annotated[str, Meta(max_length=1024)] = "SansSerif"
    size: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 12  #: in points
    bold: bool = False
    italic: bool = False
    justification: Literal["left", "center", "right"] = "left"
    angle: float = 0.0  #: in degrees, counter-clockwise
    draw_string: bool = False  #: ImageJ's "drawString" mode: y is the line on which the text stands


class Markers(Struct, frozen=True, tag="markers"):
    """How the points of a (multi-)point are drawn and counted."""

    shape: Literal["hybrid", "cross", "dot", "circle"] = "hybrid"
    size: _Short = 0  #: ImageJ's number: 0 (tiny) to 6 (XXXL)
    labels: bool = False  #: whether each point's number is shown
    counters: tuple[_Byte, ...] = ()  #: the counter of each point; empty: all 0
    slices: tuple[_Slice, ...] = ()  #: the image of each point, from 1; empty: all 0 (any)


Details: TypeAlias = Corners | Spline | Path | Arrow | Text | Markers

_POINTS_OF_SEGMENT: Final = (1, 1, 2, 3, 0)


def checked_details(details: Any, n_coordinates: int) -> None:
    """Check one ROI's details: types, bounds, and that they fit the number of coordinates.

    Raises
    ------
    InvalidItem
        They don't.
    """
    try:
        msgspec.convert(msgspec.structs.asdict(details), type(details))
    except msgspec.ValidationError as error:
        raise InvalidItem(f"the details {details!r} are wrong: {error}.", cure="Mend it.") from None
    wrong = misfit(details, n_coordinates)
    if wrong:
        raise InvalidItem(f"a ROI's details don't fit: {wrong}.", cure="Make the two agree.")


def misfit(details: Any, n_coordinates: int) -> str:
    """Tell how details of checked types don't fit the number of coordinates; "" where they do."""
    if isinstance(details, Path):
        segments = details.segments
        if segments[:1] != b"\0" or max(segments) > 4:
            return "a path begins with 0 (move to) and has segments 0 to 4"
        needed = sum(_POINTS_OF_SEGMENT[kind] * segments.count(kind) for kind in range(4))
        if needed != n_coordinates:
            return f"the path takes {needed} vertices, there are {n_coordinates}"
    elif isinstance(details, Markers):
        for name in ("counters", "slices"):
            if len(getattr(details, name)) not in (0, n_coordinates):
                return f"{len(getattr(details, name))} {name} for {n_coordinates} points"
    elif isinstance(details, Text):
        if not abs(details.angle) < float("inf"):
            return f"the angle {details.angle} is no number"
        if not (is_text(details.text) and is_text(details.font)):
            return f"{details.text!r} in {details.font!r} is no text of whole characters"
    return ""
