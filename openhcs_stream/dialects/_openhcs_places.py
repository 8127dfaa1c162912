"""Which layer an OpenHCS item is of, where in it, and what its own viewer would call that layer.

Names follow the released viewers: generation 1 joins the components that have a window or layer
for each value (openhcs 0.3.15: runtime/fiji_viewer_server.py, napari_stream_visualizer.py); 2 and
3 put who made the item first (polystore 0.2.19: streaming/identity.py, receivers/core/
window_projection.py; openhcs 0.8.6: runtime/napari_viewer_server.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from openhcs_stream.dialects._openhcs_wire import (
    UNREADABLE,
    Display,
    Producer,
    decode_part,
    is_absent,
    reason_of,
)
from openhcs_stream.dialects._vocabulary import read_colormap, read_modes, read_place
from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import canonical_component

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openhcs_stream.dialects._openhcs_wire import Common, Envelope
    from openhcs_stream.messages import Kind, Mode, PlaceValue

__all__ = ["Settings", "Whereabouts", "locate", "plane_values", "read_settings"]

#: Their words for modes that make a window or layer for each value.
_SPLITS: Final = frozenset({"window", "layer"})
#: Kinds of output that go without saying in a title.
_PLAIN_OUTPUTS: Final = frozenset({"main", "manual", "direct"})
#: Components whose values are numbers also where they are sent as text ("01").
_NUMBERED: Final = frozenset({"site", "channel", "z", "time"})
_MAX_TITLE_CHARS: Final = 1000
#: Display settings of the original that mean "nothing in particular".
_GREYS: Final = frozenset({"", "gray"})
#: Colours that OpenHCS's first napari gives to channels that are layers.
_FIRST_COLOURS: Final = {"1": "green", "2": "red"}


@dataclass(slots=True)
class Settings:
    """A batch's display settings, in our words and, where names are made of them, in theirs."""

    fiji: bool = False  #: whether the sender means Fiji
    modes: dict[str, Mode] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    colormap: str = ""
    auto_contrast: bool = True
    separate_sizes: bool = False  #: a layer for each well, since images may differ in size
    images_dir: str = ""
    their_modes: dict[str, str] = field(default_factory=dict)
    their_order: tuple[str, ...] = ()
    #: What values are called: {"channel": {"1": "DAPI"}}, by our names of components.
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    #: How many values the batch declares of each component.
    cardinality: dict[str, int] = field(default_factory=dict)
    problem: str = ""  #: fails every item, after its block was taken over


@dataclass(slots=True)
class Whereabouts:
    """Where one item belongs."""

    source: str
    name: str
    title: str
    modes: dict[str, Mode]
    components: tuple[str, ...]
    place: tuple[PlaceValue, ...]
    colormap: str
    blending: str
    rest: dict[str, str | int | float | bool | None]


# --- what all items of a batch have in common -----------------------------------------------------


def read_settings(envelope: Envelope, viewer: str) -> Settings:
    """Read a batch's display settings; what is wrong with them is in `Settings.problem`."""
    settings = Settings(fiji=viewer == "fiji")
    try:
        display: Display = decode_part(envelope.display_config, Display | None) or Display()
        folder = None
        if not is_absent(envelope.images_dir):
            folder = decode_part(envelope.images_dir, str | None)
        if display.lut is not None or display.colormap is not None:
            settings.fiji = display.lut is not None
        elif len(memoryview(envelope.images_dir)):
            settings.fiji = True  # null or not, only senders to Fiji have it
        settings.images_dir = (folder or "")[:4096]
        settings.their_modes = display.component_modes
        settings.their_order = tuple(dict.fromkeys(display.component_order))
        settings.modes = read_modes(display.component_modes, fiji=settings.fiji)
        settings.order = tuple(dict.fromkeys(map(canonical_component, display.component_order)))
        settings.colormap = read_colormap(display.colormap or display.lut)
        settings.auto_contrast = display.auto_contrast is not False
        settings.separate_sizes = display.variable_size_handling == "separate_layers"
        settings.names = _read_names(envelope)
        settings.cardinality = _read_domain(envelope)
    except UNREADABLE as error:
        settings.problem = reason_of(error)
    return settings


def _read_names(envelope: Envelope) -> dict[str, dict[str, str]]:
    """``component_names_metadata``: {component: {value: name}}; names that are none left out."""
    if is_absent(envelope.component_names_metadata):
        return {}
    told = decode_part(envelope.component_names_metadata, dict[str, dict[str, Any] | None])
    names: dict[str, dict[str, str]] = {}
    for component, values in list(told.items())[:64]:
        named = {
            value[:256]: str(name)[:256]
            for value, name in list((values or {}).items())[:65536]
            if isinstance(name, str | int | float) and str(name).lower() not in ("", "none")
        }
        if named:
            names[canonical_component(component)] = named
    return names


def _read_domain(envelope: Envelope) -> dict[str, int]:
    """``component_value_domain``: how many values each component is going to have."""
    if is_absent(envelope.component_value_domain):
        return {}
    told = decode_part(envelope.component_value_domain, dict[str, list[Any] | None])
    return {canonical_component(name): len(values or ()) for name, values in told.items()}


# --- one item -------------------------------------------------------------------------------------


def locate(
    common: Common, settings: Settings, kind: Kind, *, coloured: bool = False
) -> Whereabouts:
    """Say where an item belongs.

    Parameters
    ----------
    common : Common
        Of the item.
    settings : Settings
        Of its batch.
    kind : "image", "rois" or "points"
        What it is.
    coloured : bool
        Whether its pixels have colours of their own: such can't be in one layer with others.

    Raises
    ------
    InvalidItem
        Its metadata or the batch's settings can't be read.
    """
    if settings.problem:
        raise InvalidItem(
            f"the batch's display_config can't be read: {settings.problem}.",
            cure="Give component_modes, component_order, and lut or colormap.",
        )
    metadata = dict(common.metadata or {})
    producer = _read_producer(common)
    if producer is None:
        return _first_generation(common, metadata, settings, kind)
    metadata = {name: _normal(name, value) for name, value in metadata.items()}
    modes = settings.modes
    if settings.separate_sizes and kind == "image" and not settings.fiji:
        modes = {**modes, "well": "split"}
    where = read_place(metadata, kind=kind, modes=modes, order=settings.order)
    made_by = _producer_label(producer)
    name = " ".join(
        filter(
            None,
            (
                producer.projection_key,
                producer.output_key if producer.output_key != producer.projection_key else "",
                producer.output_kind if producer.output_kind != producer.origin else "",
                producer.origin if producer.origin != "pipeline" else "",
                producer.step_scope_id,
                "colour" if coloured else "",
                kind if kind != "image" else "",
            ),
        )
    )
    title = (
        _fiji_route(producer, metadata, settings, kind)
        if settings.fiji
        else _napari_title(producer, metadata, settings, modes, common, kind, coloured=coloured)
    )
    return Whereabouts(
        source=made_by,
        name=name,
        title=title[:_MAX_TITLE_CHARS],
        modes=modes,
        components=where.components,
        place=where.place,
        colormap=_colormap(settings, where.components),
        blending="" if settings.fiji or coloured or kind != "image" else "additive",
        rest={"source": where.source, **where.rest} if where.source else where.rest,
    )


def plane_values(common: Common) -> dict[str, tuple[PlaceValue, ...]]:
    """What the planes along an item's leading axes are, by our names of components.

    Raises
    ------
    InvalidItem
        A value is no place value, or comes twice.
    """
    planes: dict[str, tuple[PlaceValue, ...]] = {}
    for component, values in (common.plane_component_values or {}).items():
        name = canonical_component(component)
        read = tuple(
            read_place(
                {component: _normal(component, value)}, kind="image", modes={name: "stack"}
            ).place
            for value in values
        )
        if not all(read) or len(set(read)) != len(read):
            raise InvalidItem(
                f"the planes of component {component!r} have the values {values!r:.200}.",
                cure="Give each plane a value of its own.",
            )
        planes[name] = tuple(place[0] for place in read)
    return planes


def _first_generation(
    common: Common, metadata: dict[str, Any], settings: Settings, kind: Kind
) -> Whereabouts:
    source = metadata.get("source")
    if (
        kind == "rois"
        and settings.fiji
        and settings.images_dir
        and isinstance(source, str)
        and ("_results" in source or "/" in source)
    ):
        # Outlines loaded from a results folder belong to the images of the folder beside it.
        metadata["source"] = PurePath(settings.images_dir).name
    where = read_place(metadata, kind=kind, modes=settings.modes, order=settings.order)
    splits = _SPLITS if settings.fiji else _SPLITS | {"slice"}
    parts = [
        f"{component}_{metadata[component]}"
        for component in settings.their_order
        if settings.their_modes.get(component) in splits and component in metadata
    ]
    title = "_".join(parts) or ("default_window" if settings.fiji else "default_layer")
    if not settings.their_order:
        title = ""
    elif kind != "image":
        title += " ROIs" if settings.fiji else "_points" if kind == "points" else "_shapes"
    colormap = _colormap(settings, where.components)
    if not settings.fiji and settings.their_modes.get("channel") == "slice":
        colormap = _FIRST_COLOURS.get(str(metadata.get("channel")), colormap)
    return Whereabouts(
        source=where.source,
        name=where.name,
        title=title[:_MAX_TITLE_CHARS],
        modes=settings.modes,
        components=where.components,
        place=where.place,
        colormap=colormap,
        blending="",
        rest=where.rest,
    )


def _colormap(settings: Settings, components: Sequence[str]) -> str:
    """The declared colormap, but for Fiji's channels: they are blended in colours of their own."""
    if not settings.fiji or settings.modes.get("channel") != "channel":
        return settings.colormap
    if "channel" not in components or settings.colormap in _GREYS:
        return "" if "channel" in components else settings.colormap
    return settings.colormap if settings.cardinality.get("channel", 1) <= 1 else ""


def _normal(name: str, value: Any) -> Any:
    """A value as generations 2 and 3 compare it: "01" is the number 1, a tuple is one value."""
    if isinstance(value, list) and value and all(isinstance(v, str | int | float) for v in value):
        return "-".join(str(each) for each in value)
    if canonical_component(name) in _NUMBERED and isinstance(value, str):
        digits = value.strip()
        if digits.lstrip("+-").isdecimal() and digits.isascii() and len(digits) < 16:
            return int(digits)
    return value


# --- names of generations 2 and 3 -----------------------------------------------------------------


def _read_producer(common: Common) -> Producer | None:
    if is_absent(common.producer_identity):
        return None
    try:
        producer: Producer = decode_part(common.producer_identity, Producer)
    except UNREADABLE as error:
        raise InvalidItem(
            f"producer_identity can't be read: {reason_of(error)}.",
            cure="Give origin, output_kind, output_key and projection_key.",
        ) from error
    required = (
        producer.origin, producer.output_kind, producer.output_key, producer.projection_key,
    )  # fmt: skip
    if not all(required):
        raise InvalidItem(
            f"producer_identity has an empty text among {required!r:.200}.",
            cure="Give origin, output_kind, output_key and projection_key.",
        )
    return producer


def _producer_label(producer: Producer) -> str:
    base = producer.step_name or producer.output_key
    if producer.pipeline_position is None:
        return base
    return f"{producer.pipeline_position + 1}. {base}"


def _fiji_route(
    producer: Producer, metadata: Mapping[str, Any], settings: Settings, kind: Kind
) -> str:
    """What Fiji's windows are called there."""
    parts = [
        f"origin_{producer.origin}",
        f"kind_{producer.output_kind}",
        f"projection_{producer.projection_key}",
    ]
    if producer.pipeline_position is not None:
        parts.append(f"step_{producer.pipeline_position}")
    if producer.step_scope_id:
        parts.append(f"scope_{producer.step_scope_id}")
    if producer.step_name:
        parts.append(f"name_{producer.step_name}")
    parts += [
        f"{component}_{metadata[component]}"
        for component in settings.their_order
        if settings.their_modes.get(component) == "window" and component in metadata
    ]
    route = "_".join(part.translate(_TOKENS) for part in parts)
    return route if kind == "image" else f"{route} ROIs"  # a list there has no window of its own


_TOKENS: Final = str.maketrans({"/": "_", "\\": "_", " ": "_"})


def _napari_title(
    producer: Producer,
    metadata: Mapping[str, Any],
    settings: Settings,
    modes: Mapping[str, Mode],
    common: Common,
    kind: Kind,
    *,
    coloured: bool,
) -> str:
    """What napari's layers are called there."""
    parts = [_producer_label(producer)]
    said = (*_PLAIN_OUTPUTS, producer.step_name or producer.output_key)
    if producer.output_kind not in _PLAIN_OUTPUTS and producer.output_key not in said:
        parts.append(producer.output_key)
    parts += [
        f"{component} {metadata[component]}"
        for component in settings.their_order
        if modes.get(canonical_component(component)) == "split" and component in metadata
    ]
    stack = common.plane_axis is not None or (
        common.image_metadata is not None and common.image_metadata.get("plane_axis") is not None
    )
    match kind:
        case "rois":
            parts.append("ROIs")
        case "points":
            parts.append("points")
        case _ if coloured:
            parts.append("RGB stack" if stack else "RGB")
        case _ if stack:
            parts.append("image stack")
    return " ".join(parts)
