"""The one ROI model: what a region of interest is, whatever file or viewer it comes from.

Two conventions meet here, and each is stated where it is used:

*The model stores ImageJ's coordinates.* `Roi.coordinates` is (N, 2) float64, **x, y**, in pixels.
For areas the origin is the top-left *corner* of the top-left pixel, so that the square around the
pixel in row 2, column 5 reaches from (5, 2) to (6, 3). For lines and points a whole number is the
*centre* of its pixel: the point (5, 2) lies in the middle of row 2, column 5.

*Constructors and arrays are numpy's.* `Roi.polygon`, `Roi.polyline`, `Roi.line` and `Roi.points`
take (N, 2) **y, x** (row, column) where a whole number is the centre of a pixel, as
``skimage.measure.find_contours`` gives them and napari shows them. `Roi.rectangle` and `Roi.oval`
take half-open bounds, as ``regionprops(...).bbox`` gives them: (top, left, bottom, right).

Between the two: areas differ by half a pixel, lines and points do not.

Some kinds have more than coordinates (an arrow its head, a composite the way its vertices are
connected): that is in `Roi.details`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, TypeGuard, TypeVar, get_args

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.rois._details import (
    Arrow,
    Corners,
    Details,
    Markers,
    Path,
    Spline,
    Text,
    checked_details,
)
from openhcs_stream.rois._properties import (
    NO_PROPERTIES,
    Properties,
    checked_properties,
    is_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

__all__ = ["BOXES", "KEPT_OPTIONS", "KINDS", "KINDS_BY_CODE", "KindRow", "Roi", "RoiKind"]

_Number = TypeVar("_Number", int, float)

RoiKind: TypeAlias = Literal[
    "polygon",
    "rectangle",
    "oval",
    "line",
    "freeline",
    "polyline",
    "ellipse",
    "freehand",
    "traced",
    "angle",
    "point",
    "rounded rectangle",
    "rotated rectangle",
    "composite",
    "arrow",
    "text",
]


@dataclass(frozen=True, slots=True)
class KindRow:
    """All that the model, the wire and the codecs know of one kind of ROI."""

    kind: RoiKind
    code: int  #: on the wire; ImageJ's number of the type, where it has one
    area: bool  #: encloses pixels: the coordinates count from pixel corners
    napari: str  #: the shape type in napari; "points" is no shape but a layer of its own
    least: int  #: vertices that it has at least
    most: int | None  #: vertices that it has at most; None: any number
    imagej_type: int  #: `roitype` of the ImageJ file
    imagej_subtype: int = 0  #: `subtype` of the file; below 0: told apart by another field
    details: type[Details] | None = None  #: what its `Roi.details` may be
    needs_details: bool = False  #: whether they must be there


#: A new kind is a row here (and, where it is no plain list of vertices, a function in the codecs).
KINDS: Final[Mapping[str, KindRow]] = {
    row.kind: row
    for row in (
        KindRow("polygon", 0, True, "polygon", 3, None, 0, 0, Spline),
        # rectangle, oval, text and rounded rectangle: (left, top), (right, bottom)
        KindRow("rectangle", 1, True, "rectangle", 2, 2, 1),
        KindRow("oval", 2, True, "ellipse", 2, 2, 2),
        KindRow("line", 3, False, "line", 2, 2, 3),
        KindRow("freeline", 4, False, "path", 2, None, 4, 0, Spline),
        KindRow("polyline", 5, False, "path", 2, None, 5, 0, Spline),
        # both ends of the major axis, then one end of the minor axis
        KindRow("ellipse", 6, True, "ellipse", 3, 3, 7, 3),
        KindRow("freehand", 7, True, "polygon", 3, None, 7, 0, Spline),
        KindRow("traced", 8, True, "polygon", 3, None, 8, 0, Spline),
        KindRow("angle", 9, False, "path", 3, 3, 9, 0, Spline),
        KindRow("point", 10, False, "points", 1, None, 10, 0, Markers),
        # ImageJ's file has no number of its own for those that follow.
        KindRow("rounded rectangle", 11, True, "polygon", 2, 2, 1, -1, Corners, True),
        # both ends of the middle line, then the middle of one of the sides along it
        KindRow("rotated rectangle", 12, True, "rectangle", 3, 3, 7, 5),
        # all vertices of all rings, with the control points of curves
        KindRow("composite", 13, True, "polygon", 1, None, 1, -2, Path, True),
        # tail, then head
        KindRow("arrow", 14, False, "path", 2, 2, 3, 2, Arrow, True),
        KindRow("text", 15, True, "rectangle", 2, 2, 1, 1, Text, True),
    )
}

#: The same by their numbers on the wire.
KINDS_BY_CODE: Final[Mapping[int, KindRow]] = {row.code: row for row in KINDS.values()}

#: Kinds of two corners, (left, top), (right, bottom).
BOXES: Final = frozenset({"rectangle", "oval", "rounded rectangle", "text"})
#: Options of an ImageJ file that are kept as they are, see `Roi.imagej_options`.
KEPT_OPTIONS: Final = 0b11_1001_1111_1000

#: ImageJ keeps the group in a byte, and since version 1.54 in two.
MAX_GROUP: Final = 65535
_LEAST_OF_RING: Final = 3  # vertices
_COLOR = re.compile(r"#[0-9a-f]{8}")
_LOOSE_COLOR = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{4}|[0-9a-f]{6}|[0-9a-f]{8})", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Roi:
    """One region of interest. Immutable; equal to another where all fields are.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    coordinates : (N, 2) float64, read-only
        x, y in pixels, in ImageJ's convention: see this module's text. A rectangle and an oval
        are their corners (left, top), (right, bottom); an ellipse is the two ends of its major
        axis and one end of its minor axis; a rotated rectangle is the two ends of its middle line
        and the middle of one side. A composite has the vertices of all its rings.
    name : str
    stroke_color, fill_color : str
        "#rrggbbaa", or "" where none is set. "#rgb", "#rgba" and "#rrggbb" are accepted.
    stroke_width : float
        In pixels; 0 is the viewer's default.
    group : int
        0 (none) to 65535.
    position : (c, z, t)
        Counted from 1; 0 where the ROI belongs to all channels, slices or frames.
    properties : mapping of str to str, read-only
        Equal to a dict of the same; `replace` gives a ROI with others.
    details : Corners, Path, Arrow, Text, Markers, Spline or None
        What the kind has besides coordinates. A rounded rectangle, composite, arrow and text must
        have theirs; outlines and lines may have `Spline`, points `Markers`.
    flat_position : bool
        The position's z is the number of the image in a plain stack, and not the slice of a
        hyperstack: ImageJ keeps the two apart.
    imagej_options : int
        ImageJ's own bits, which nothing else here knows: how labels are drawn in an overlay,
        whether strokes scale with the zoom, whether whole numbers are kept as floats.

    Raises
    ------
    InvalidItem
        A value is not allowed; the text names it and the cure.
    """

    kind: RoiKind
    coordinates: npt.NDArray[np.float64]
    name: str = ""
    stroke_color: str = ""
    fill_color: str = ""
    stroke_width: float = 0.0
    group: int = 0
    position: tuple[int, int, int] = (0, 0, 0)
    properties: Mapping[str, str] = field(default_factory=Properties)
    details: Details | None = None
    flat_position: bool = False
    imagej_options: int = 0

    def __post_init__(self) -> None:
        """Check every field and bring it into its one form."""
        row = KINDS.get(self.kind)
        if row is None:
            raise InvalidItem(
                f"there is no ROI of kind {self.kind!r}.",
                cure=f"Use one of {_listed(get_args(RoiKind))}.",
            )
        put = object.__setattr__
        put(self, "coordinates", _checked_coordinates(row, self.coordinates))
        put(self, "stroke_color", _checked_color("stroke_color", self.stroke_color))
        put(self, "fill_color", _checked_color("fill_color", self.fill_color))
        if not is_text(self.name):
            raise InvalidItem(
                f"the ROI's name {self.name!r} is no text.", cure="Pass a str of whole characters."
            )
        width = _number(float, self.stroke_width)
        if width is None or not (np.isfinite(width) and width >= 0):
            raise InvalidItem(
                f"the stroke_width {self.stroke_width!r} is no width.", cure="Use 0 or more pixels."
            )
        put(self, "stroke_width", width)
        group = _number(int, self.group)
        if group is None or not 0 <= group <= MAX_GROUP:
            raise InvalidItem(
                f"the group {self.group!r} can't be kept.", cure=f"Use 0 (none) to {MAX_GROUP}."
            )
        put(self, "group", group)
        put(self, "position", _checked_position(self.position))
        put(self, "properties", checked_properties(self.properties))
        wanted = row.details
        if self.details is None:
            if row.needs_details and wanted is not None:
                raise InvalidItem(
                    f"a ROI of kind {self.kind!r} has no details.",
                    cure=f"Pass details={wanted.__name__}(...).",
                )
        elif wanted is None or not isinstance(self.details, wanted):
            raise InvalidItem(
                f"a ROI of kind {self.kind!r} can't have the details {self.details!r}.",
                cure=f"Pass {wanted.__name__}." if wanted else "Leave them out.",
            )
        else:
            checked_details(self.details, len(self.coordinates))
        put(self, "flat_position", bool(self.flat_position))
        options = _number(int, self.imagej_options)
        if options is None or options & ~KEPT_OPTIONS:
            given = self.imagej_options if options is None else f"{options:#x}"
            raise InvalidItem(
                f"the imagej_options {given} have bits that a ROI keeps elsewhere.",
                cure=f"Use bits of {KEPT_OPTIONS:#x}.",
            )
        put(self, "imagej_options", options)

    # --- constructors, in numpy's convention --------------------------------------------------

    @classmethod
    def polygon(cls, vertices_yx: npt.ArrayLike, **fields: Any) -> Self:
        """Make a closed polygon.

        Parameters
        ----------
        vertices_yx : (N, 2) array, N >= 3
            y, x (row, column), whole numbers at pixel centres. A last vertex that repeats the
            first is dropped where 3 others remain: what has no area is a polygon all the same.
        **fields
            Any other field of `Roi`.
        """
        return cls("polygon", _opened(_pairs(vertices_yx))[:, ::-1] + 0.5, **fields)

    @classmethod
    def polyline(cls, vertices_yx: npt.ArrayLike, **fields: Any) -> Self:
        """Make an open line through (N, 2) y, x, N >= 2, whole numbers at pixel centres."""
        return cls("polyline", _pairs(vertices_yx)[:, ::-1], **fields)

    @classmethod
    def line(cls, start_yx: Sequence[float], end_yx: Sequence[float], **fields: Any) -> Self:
        """Make a straight line between two (y, x), whole numbers at pixel centres."""
        return cls("line", _pairs([start_yx, end_yx])[:, ::-1], **fields)

    @classmethod
    def points(cls, positions_yx: npt.ArrayLike, **fields: Any) -> Self:
        """Make a (multi-)point of (N, 2) y, x, N >= 1, whole numbers at pixel centres."""
        return cls("point", _pairs(positions_yx)[:, ::-1], **fields)

    @classmethod
    def rectangle(cls, top: float, left: float, bottom: float, right: float, **fields: Any) -> Self:
        """Make an upright rectangle around rows top..bottom - 1 and columns left..right - 1."""
        return cls("rectangle", np.array([(left, top), (right, bottom)], np.float64), **fields)

    @classmethod
    def oval(cls, top: float, left: float, bottom: float, right: float, **fields: Any) -> Self:
        """Make an upright ellipse inside rows top..bottom - 1 and columns left..right - 1."""
        return cls("oval", np.array([(left, top), (right, bottom)], np.float64), **fields)

    @classmethod
    def composite(cls, rings_yx: Sequence[npt.ArrayLike], **fields: Any) -> Self:
        """Make an area of several rings: outer boundaries, holes and islands in any order.

        Parameters
        ----------
        rings_yx : sequence of (N, 2) arrays, N >= 3
            y, x of each ring, whole numbers at pixel centres. What lies in an odd number of rings
            is inside. A last vertex that repeats the first is dropped, as in `polygon`.
        **fields
            Any other field of `Roi`.
        """
        return cls.of_rings(
            [_opened(_pairs(ring_yx))[:, ::-1] + 0.5 for ring_yx in rings_yx], **fields
        )

    @classmethod
    def of_rings(cls, rings: Sequence[npt.NDArray[np.float64]], **fields: Any) -> Self:
        """Make a composite of closed rings of (N, 2) x, y in ImageJ's convention."""
        if not rings or min(map(len, rings)) < _LEAST_OF_RING:
            raise InvalidItem(
                "a composite has no ring, or one of fewer than 3 vertices.", cure="Leave it out."
            )
        segments = b"".join(b"\0" + b"\1" * (len(ring) - 1) + b"\4" for ring in rings)
        return cls("composite", np.concatenate(rings), details=Path(segments), **fields)

    @classmethod
    def arrow(
        cls,
        tail_yx: Sequence[float],
        head_yx: Sequence[float],
        arrow: Arrow | None = None,
        **fields: Any,
    ) -> Self:
        """Make an arrow from one (y, x) to another, whole numbers at pixel centres."""
        return cls("arrow", _pairs([tail_yx, head_yx])[:, ::-1], details=arrow or Arrow(), **fields)

    @classmethod
    def text(
        cls, top: float, left: float, bottom: float, right: float, text: Text | str, **fields: Any
    ) -> Self:
        """Make a text in a box around rows top..bottom - 1 and columns left..right - 1."""
        details = Text(text) if isinstance(text, str) else text
        box = np.array([(left, top), (right, bottom)], np.float64)
        return cls("text", box, details=details, **fields)

    @classmethod
    def rounded_rectangle(
        cls, top: float, left: float, bottom: float, right: float, diameter: int, **fields: Any
    ) -> Self:
        """Make a rectangle with round corners of a diameter in pixels."""
        box = np.array([(left, top), (right, bottom)], np.float64)
        return cls("rounded rectangle", box, details=Corners(diameter), **fields)

    @classmethod
    def unchecked(
        cls,
        kind: RoiKind,
        coordinates: npt.NDArray[np.float64],
        name: str,
        stroke_color: str,
        fill_color: str,
        stroke_width: float,
        group: int,
        position: tuple[int, int, int],
        properties: Mapping[str, str],
        details: Details | None = None,
        flat_position: bool = False,
        imagej_options: int = 0,
    ) -> Self:
        """Make a ROI of values that were checked in bulk: a thirtieth of the constructor's time."""
        if type(properties) is not Properties:
            properties = Properties(properties) if properties else NO_PROPERTIES
        made: Any = _Draft(
            kind, coordinates, name, stroke_color, fill_color, stroke_width, group, position,
            properties, details, flat_position, imagej_options,
        )  # fmt: skip
        made.__class__ = cls
        return made  # type: ignore[no-any-return]

    # --- reading ------------------------------------------------------------------------------

    @property
    def row(self) -> KindRow:
        """What is known of this ROI's kind."""
        return KINDS[self.kind]

    @property
    def is_area(self) -> bool:
        """Whether it encloses pixels, so that its coordinates count from pixel corners."""
        return KINDS[self.kind].area

    def replace(self, **fields: Any) -> Self:
        """Copy it with some fields changed."""
        return dataclasses.replace(self, **fields)

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, coordinates exactly."""
        if not isinstance(other, Roi):
            return NotImplemented
        return self._rest() == other._rest() and np.array_equal(self.coordinates, other.coordinates)

    def __hash__(self) -> int:
        """Agree with `__eq__`; properties are left out."""
        return hash((self.kind, self.name, self.group, self.position, len(self.coordinates)))

    def _rest(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.name,
            self.stroke_color,
            self.fill_color,
            self.stroke_width,
            self.group,
            self.position,
            self.properties,
            self.details,
            self.flat_position,
            self.imagej_options,
        )


class _Draft:
    """A ROI that can be written to, of the same slots, which then changes its class.

    A frozen class is filled by twelve calls of ``object.__setattr__``, which took 60 % of the time
    that decoding 100 000 ROIs takes.
    """

    __slots__ = tuple(each.name for each in dataclasses.fields(Roi))

    def __init__(
        self,
        kind: RoiKind,
        coordinates: npt.NDArray[np.float64],
        name: str,
        stroke_color: str,
        fill_color: str,
        stroke_width: float,
        group: int,
        position: tuple[int, int, int],
        properties: Mapping[str, str],
        details: Details | None,
        flat_position: bool,
        imagej_options: int,
    ) -> None:
        self.kind = kind
        self.coordinates = coordinates
        self.name = name
        self.stroke_color = stroke_color
        self.fill_color = fill_color
        self.stroke_width = stroke_width
        self.group = group
        self.position = position
        self.properties = properties
        self.details = details
        self.flat_position = flat_position
        self.imagej_options = imagej_options


def is_color(text: object) -> TypeGuard[str]:
    """Whether a text is a colour in the model's one form, or none."""
    return isinstance(text, str) and (text == "" or _COLOR.fullmatch(text) is not None)


def _checked_color(field_name: str, color: object) -> str:
    if is_color(color):
        return color
    if not (isinstance(color, str) and _LOOSE_COLOR.fullmatch(color)):
        raise InvalidItem(
            f"the {field_name} {color!r} is no colour.",
            cure="Use '#rrggbb' or '#rrggbbaa', or '' for none.",
        )
    digits = color[1:].lower()
    if len(digits) < 6:
        digits = "".join(digit * 2 for digit in digits)
    return f"#{digits:f<8}"


def _checked_coordinates(row: KindRow, coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
    pairs = _pairs(coordinates)
    if len(pairs) < row.least or (row.most is not None and len(pairs) > row.most):
        wanted = f"{row.least}" if row.most == row.least else f"at least {row.least}"
        raise InvalidItem(
            f"a {row.kind} of {len(pairs)} coordinate pairs can't be drawn.",
            cure=f"Pass {wanted}.",
        )
    if not np.isfinite(pairs).all():
        raise InvalidItem(
            f"a {row.kind} has coordinates that are infinite or no numbers.", cure="Leave it out."
        )
    if row.kind in BOXES and (pairs[1] < pairs[0]).any():
        raise InvalidItem(
            f"a {row.kind} from {tuple(pairs[0])} to {tuple(pairs[1])} (x, y) has a negative size.",
            cure="Pass top <= bottom and left <= right.",
        )
    if pairs is coordinates or pairs.base is not None:
        pairs = pairs.copy()
    pairs.setflags(write=False)
    return pairs


def _number(kind: type[_Number], value: Any) -> _Number | None:
    """Convert a number; None where it is none."""
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _checked_position(given: Any) -> tuple[int, int, int]:
    try:
        c, z, t = (int(number) for number in given)
    except (TypeError, ValueError, OverflowError):
        c = z = t = -1
    if not all(0 <= number < 2**31 for number in (c, z, t)):
        raise InvalidItem(
            f"the position {given!r} is no place in a stack.",
            cure="Use (c, z, t), counted from 1, with 0 for 'any'.",
        )
    return c, z, t


def _opened(ring: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Leave out a last vertex that repeats the first, where a ring remains."""
    is_closed = len(ring) > _LEAST_OF_RING and np.array_equal(ring[0], ring[-1])
    return ring[:-1] if is_closed else ring


def _pairs(coordinates: npt.ArrayLike) -> npt.NDArray[np.float64]:
    try:
        pairs = np.asarray(coordinates, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidItem(
            f"{type(coordinates).__name__} is no array of coordinates: {error}.",
            cure="Pass (N, 2) numbers.",
        ) from error
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise InvalidItem(
            f"coordinates of shape {pairs.shape} are no pairs.",
            cure="Pass an array of shape (N, 2).",
        )
    return pairs


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(sorted(names))
