"""OpenHCS's words for places, modes and colours in ours: one table for the wire and for backends.

The storage backends take the same metadata and display settings that the wire carries, so that an
item lands at the same place whichever way it came.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import (
    AXES,
    COMPONENT_ORDER,
    DTYPES,
    MAX_NDIM,
    canonical_component,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import Kind, Mode, PlaceValue

__all__ = [
    "ItemPlace",
    "contrast_limits",
    "is_showable",
    "read_axes",
    "read_colormap",
    "read_modes",
    "read_place",
]

#: `source` and `step_name` say what made an image, not where on the plate it lies: they name the
#: layer, and with it split it. Only a mode that stacks them makes them components.
_VIRTUAL = ("source", "step_name")

_FIJI_MODES: dict[str, Mode] = {
    "window": "split",
    "channel": "channel",
    "slice": "slice",
    "frame": "frame",
}
_NAPARI_MODES: dict[str, Mode] = {"slice": "split", "layer": "split", "stack": "stack"}
#: Modes that only Fiji's vocabulary has; `slice` is in both and means the opposite in each.
_ONLY_FIJI = frozenset(_FIJI_MODES) - frozenset(_NAPARI_MODES)

#: ImageJ's menu names of lookup tables where napari has another; the rest differ in case only.
_COLORMAPS = {"grays": "gray", "grey": "gray", "greys": "gray"}

#: Axes of an image that says nothing about itself, from the innermost one that is no Y or X. C is
#: absent: to take an unknown axis for channels would break it up into layers.
_LEADING_AXES = "ZTQ" + "".join(letter for letter in AXES if letter not in "CYXSZTQ")
_AXIS_COMPONENTS = {"T": "time", "Z": "z"}
#: Sides that an image with 3 or 4 trailing samples must have to be taken for RGB: napari's rule.
_MIN_RGB_SIDE = 30

_MAX_PLACES = 32
_MAX_VALUE_CHARS = 256
_MAX_NAME_CHARS = 256
_MAX_INFO_CHARS = 4096
_MAX_INT = 2**53


@dataclass(frozen=True, slots=True)
class ItemPlace:
    """Where an item belongs and which layer it is of, read from its metadata."""

    source: str
    name: str
    components: tuple[str, ...]
    place: tuple[PlaceValue, ...]
    rest: dict[str, str | int | float | bool | None]  #: metadata that places nothing


def read_modes(modes: Mapping[str, Any], *, fiji: bool = False) -> dict[str, Mode]:
    """Translate component modes of OpenHCS's Fiji or napari settings.

    Parameters
    ----------
    modes : mapping of component to mode
        Fiji's words are window, channel, slice and frame; napari's slice (or layer) and stack. A
        word that only Fiji has settles it for all: `slice` is a slider there and a layer of its
        own in napari. Values are str, or an enum whose value is one.
    fiji : bool
        Which vocabulary it is where the words alone don't tell.

    Raises
    ------
    InvalidItem
        A mode that neither vocabulary has.
    """
    words = {component: str(getattr(mode, "value", mode)) for component, mode in modes.items()}
    used = frozenset(words.values())
    speaks_fiji = bool(used & _ONLY_FIJI) or (fiji and used <= frozenset(_FIJI_MODES))
    table = _FIJI_MODES if speaks_fiji else _NAPARI_MODES
    translated: dict[str, Mode] = {}
    for component, word in words.items():
        if word not in table:
            raise InvalidItem(
                f"component {component!r} has the mode {word!r}, beside {sorted(used)}.",
                cure=f"Use one vocabulary: {', '.join(_FIJI_MODES)} (Fiji)"
                f" or {', '.join(_NAPARI_MODES)} (napari).",
            )
        translated[canonical_component(component)] = table[word]
    return translated


def read_place(
    metadata: Mapping[str, Any],
    *,
    kind: Kind,
    modes: Mapping[str, Mode],
    order: Sequence[str] = (),
) -> ItemPlace:
    """Read an item's place, source and layer name from its metadata.

    Components are those that `order` or `modes` name, and the usual ones (well, site, channel,
    time, z); everything else is `rest`. Values that are None or empty are dropped.

    Parameters
    ----------
    metadata : mapping of component to value
        By OpenHCS's names or ours.
    kind : "image" or "rois"
        ROIs get a layer name of their own, so that they don't look like the image.
    modes : mapping of component to mode
        As `read_modes` returns them.
    order : sequence of str
        Component order, slowest first, by our names.

    Raises
    ------
    InvalidItem
        A component's value is neither a number nor a text, or too long.
    """
    known = list(dict.fromkeys([*order, *COMPONENT_ORDER]))
    placed: dict[str, PlaceValue] = {}
    rest: dict[str, str | int | float | bool | None] = {}
    for raw_name, raw_value in metadata.items():
        if raw_value is None or raw_value == "":
            continue
        name = canonical_component(str(raw_name))
        stacked = modes.get(name, "split") != "split"
        if stacked or (name not in _VIRTUAL and (name in known or name in modes)):
            placed[name] = _place_value(name, raw_value)
        elif name not in _VIRTUAL:
            rest[name] = _plain(raw_value)
    if len(placed) > _MAX_PLACES:
        raise InvalidItem(
            f"a place has {len(placed)} components, more than {_MAX_PLACES}.",
            cure="Leave out of the component order what places nothing.",
        )
    # What no order names comes last, by name, so that equal items have equal specs.
    ranks = {name: rank for rank, name in enumerate(known)}
    components = tuple(sorted(placed, key=lambda name: (ranks.get(name, len(known)), name)))
    return ItemPlace(
        source="" if "source" in placed else _text(metadata.get("source")),
        name=_layer_name("" if "step_name" in placed else _text(metadata.get("step_name")), kind),
        components=components,
        place=tuple(placed[name] for name in components),
        rest=rest,
    )


def read_axes(shape: Sequence[int], components: Sequence[str] = (), *, rgb: bool = True) -> str:
    """Name the axes of an image that says nothing about itself.

    Parameters
    ----------
    shape : sequence of int
        At most 8 numbers.
    components : sequence of str
        What the item's place already says: an axis does not say it again.
    rgb : bool
        Whether three or four trailing samples may be colours.

    Returns
    -------
    str
        One letter per axis. Three or four trailing samples on an image of more than 30 x 30 are
        RGB or RGBA; the others are Z, then T, then Q ("other") and further letters, inside out.

    Raises
    ------
    InvalidItem
        More than 8 axes.
    """
    if len(shape) > MAX_NDIM:
        raise InvalidItem(
            f"an array of {len(shape)} axes can't be shown; at most {MAX_NDIM} can.",
            cure="Send it in parts, with the outer axes as components of the place.",
        )
    plane = "YX"
    if rgb and len(shape) >= 3 and shape[-1] in (3, 4) and min(shape[-3:-1]) > _MIN_RGB_SIDE:
        plane = "YXS"
    if len(shape) <= len(plane):
        return plane[len(plane) - len(shape) :]
    free = [
        letter
        for letter in _LEADING_AXES
        if _AXIS_COMPONENTS.get(letter, letter.lower()) not in components
    ]
    leading = free[: len(shape) - len(plane)]
    if len(leading) < len(shape) - len(plane):
        raise InvalidItem(
            f"no axis letters are left for an array of {len(shape)} axes beside the components"
            f" {list(components)}.",
            cure="Use component names of more than one letter.",
        )
    return "".join(reversed(leading)) + plane


def read_colormap(name: str | None) -> str:
    """Return our name of an ImageJ lookup table or a napari colormap: ``Grays`` is ``gray``."""
    lowered = (name or "").strip().lower()
    return _COLORMAPS.get(lowered, lowered)[:_MAX_NAME_CHARS]


def contrast_limits(dtype: npt.DTypeLike, *, auto_contrast: bool) -> tuple[float, float] | None:
    """Return the range to show: None (from the data) or, without auto-contrast, the type's own.

    A floating type has no range of its own, so its data decide in any case.
    """
    kind = np.dtype(dtype)
    if auto_contrast or kind.kind not in "biu":
        return None
    if kind.kind == "b":
        return (0.0, 1.0)
    limits = np.iinfo(kind)
    return (float(limits.min), float(limits.max))


def _layer_name(step: str, kind: Kind) -> str:
    if kind == "image":
        return step or "image"
    return f"{step[: _MAX_NAME_CHARS - len(kind) - 1]} {kind}".lstrip()


def _place_value(name: str, value: Any) -> PlaceValue:
    if isinstance(value, str):
        if len(value) > _MAX_VALUE_CHARS:
            raise InvalidItem(
                f"component {name!r} has a value of {len(value)} characters, more than"
                f" {_MAX_VALUE_CHARS}.",
                cure="Give components short values, such as 'A01'.",
            )
        return value
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    try:
        number = operator.index(value)
    except TypeError:
        if isinstance(value, float | np.floating):
            return repr(float(value))  # 0.5 is a value like any other, sorted as text
        raise InvalidItem(
            f"component {name!r} has the value {_shown(value)} of type {type(value).__name__}.",
            cure="Give a number or a text.",
        ) from None
    if abs(number) > _MAX_INT:
        raise InvalidItem(
            f"component {name!r} has the value {_shown(number)}, beyond 2**53.",
            cure="Give such a number as a text.",
        )
    return number


def _plain(value: Any) -> str | int | float | bool | None:
    """Metadata that only informs: cut rather than refused."""
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) <= _MAX_INT:
        return value
    return _text(value, limit=_MAX_INFO_CHARS)


def _text(value: Any, *, limit: int = _MAX_NAME_CHARS) -> str:
    return "" if value is None else _shown(value, limit=limit, quoted=False)


def _shown(value: Any, *, limit: int = 80, quoted: bool = True) -> str:
    text = repr(value) if quoted or not isinstance(value, str) else value
    return text if len(text) <= limit else text[: limit - 3] + "..."


# What a foreign sender may write as a dtype: numpy's names, with or without byte order.
_SHOWABLE = {np.dtype(name) for name in DTYPES}


def is_showable(dtype: np.dtype[Any]) -> bool:
    """Whether a viewer can show this dtype, in either byte order."""
    return dtype.newbyteorder("<") in _SHOWABLE
