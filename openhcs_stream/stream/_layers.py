"""What items of a stream have in common: layers, declared once and then named by a number."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, get_args

from openhcs_stream.errors import InvalidItem, ProtocolViolation
from openhcs_stream.messages import (
    Kind,
    LayerDeclared,
    LayerSpec,
    Mode,
    canonical_component,
    decode,
    encode,
)
from openhcs_stream.stream._payload import as_pixel_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from openhcs_stream.messages import Welcome

__all__ = ["PLAIN", "Common", "LayerBook", "Look"]

_COMPONENT_OF_AXIS = {"T": "time", "Z": "z", "C": "channel"}


class Common(TypedDict, total=False):
    """Keywords that every kind of item takes; what is left out is the stream's."""

    source: str  #: plate, pipeline or step: layers are grouped by it
    modes: Mapping[str, Mode]  #: how each component is shown
    order: Sequence[str]  #: of the components, slowest first
    pixel_size: float | Sequence[float] | None  #: one number, (Y, X) or (Z, Y, X), in `unit`
    unit: str  #: of the pixel size: "um"
    opacity: float | None  #: 0 to 1
    visible: bool
    images_dir: str  #: folder of the images that ROIs belong to
    metadata: Mapping[str, Any] | None  #: text, numbers, booleans or None by name


class Look(NamedTuple):
    """How an image is coloured."""

    colormap: str
    contrast_limits: tuple[float, float] | None
    blending: str


PLAIN = Look("", None, "")


class _Given(NamedTuple):
    """What `Common` came to, hashable."""

    source: str
    modes: tuple[tuple[str, Mode], ...]
    order: tuple[str, ...]
    pixel_size: tuple[float, ...]
    unit: str
    opacity: float | None
    visible: bool
    images_dir: str


class LayerBook:
    """The layers of one stream and their numbers. Safe for threads.

    Parameters are the stream's defaults; see `Common`.
    """

    def __init__(
        self,
        *,
        source: str,
        modes: Mapping[str, Mode],
        order: Sequence[str],
        pixel_size: float | Sequence[float] | None,
        unit: str,
    ) -> None:
        self._default = _Given(
            source, _modes(modes), _order(order), as_pixel_size(pixel_size), unit, None, True, ""
        )
        #: Raise InvalidItem for what a viewer of another project has no way to show.
        self.checks: tuple[Callable[[LayerSpec], None], ...] = ()
        self._lock = threading.Lock()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._specs: list[LayerSpec] = []
        self._stacked_by: dict[tuple[Kind, str, str], tuple[str, ...]] = {}

    def spec(self, number: int) -> LayerSpec:
        """The declaration of a layer."""
        return self._specs[number]

    def number(
        self,
        kind: Kind,
        name: Any,
        axes: str,
        components: tuple[str, ...],
        look: Look,
        common: Common,
        viewers: Iterable[tuple[str, Welcome]],
    ) -> int:
        """The number of the layer that an item belongs to.

        Raises
        ------
        InvalidItem
            A setting can't be used; or the item lacks a component that its layer, or a viewer,
            stacks by.
        """
        given = self._given(common) if common else self._default
        key = (kind, name, axes, components, look, given)
        number = self._numbers.get(key)
        if number is not None:
            return number
        if not isinstance(name, str) or not 0 < len(name) <= 256:
            raise InvalidItem(
                f"name={name!r} can't be a layer's name.", cure="Use text of 1 to 256 characters."
            )
        spec = LayerSpec(
            kind=kind,
            name=name,
            axes=axes,
            components=components,
            colormap=look.colormap,
            contrast_limits=look.contrast_limits,
            blending=look.blending,
            source=given.source,
            modes=dict(given.modes),
            order=given.order,
            pixel_size=given.pixel_size,
            unit=given.unit,
            opacity=given.opacity,
            visible=given.visible,
            images_dir=given.images_dir,
        )
        try:
            decode(encode(LayerDeclared(0, spec)))
        except ProtocolViolation as error:
            raise InvalidItem(
                f"the settings of {kind} {name!r} can't be sent: {error.what}",
                cure="Use short texts, plain numbers and at most 32 components.",
            ) from error
        present = {*components, *(_COMPONENT_OF_AXIS.get(each, each.lower()) for each in axes)}
        for label, welcome in viewers:
            _check_viewer(spec, present, label, welcome)
        for check in self.checks:
            check(spec)
        with self._lock:
            self._check_layer(spec, tuple(sorted(present - {"y", "x", "s"})))
            number = self._numbers.setdefault(key, len(self._specs))
            if number == len(self._specs):
                self._specs.append(spec)
        return number

    def _given(self, common: Common) -> _Given:
        default = self._default
        modes = common.get("modes")
        order = common.get("order")
        size = common.get("pixel_size")
        return _Given(
            source=common.get("source", default.source),
            modes=default.modes if modes is None else _modes(modes),
            order=default.order if order is None else _order(order),
            pixel_size=default.pixel_size if size is None else as_pixel_size(size),
            unit=common.get("unit", default.unit),
            opacity=common.get("opacity"),
            visible=common.get("visible", True),
            images_dir=common.get("images_dir", ""),
        )

    def _check_layer(self, spec: LayerSpec, stacked: tuple[str, ...]) -> None:
        """All items of a layer have the same components; else it could not be one stack."""
        first = self._stacked_by.setdefault((spec.kind, spec.source, spec.name), stacked)
        if first == stacked:
            return
        missing = sorted(set(first) - set(stacked))
        extra = sorted(set(stacked) - set(first))
        wrong = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
        if extra:
            wrong.append(f"has {', '.join(map(repr, extra))} too")
        raise InvalidItem(
            f"the place of {spec.kind} {spec.name!r} {' and '.join(wrong)}; this layer is stacked "
            f"by {', '.join(first) or 'nothing'}.",
            cure="Give every item of a layer the same components, or another name.",
        )


def _check_viewer(spec: LayerSpec, present: set[str], label: str, welcome: Welcome) -> None:
    for component in welcome.required:
        if component not in present:
            raise InvalidItem(
                f"the place of {spec.kind} {spec.name!r} lacks {component!r}, by which {label} "
                f"stacks; it has {', '.join(spec.components) or 'nothing'}.",
                cure=f'Add it: place={{"{component}": ...}}.',
            )
    if spec.kind not in welcome.kinds:
        raise InvalidItem(
            f"{label} can't show {spec.kind}.", cure=f"It shows {', '.join(welcome.kinds)}."
        )


def _order(components: Sequence[str]) -> tuple[str, ...]:
    return tuple(canonical_component(component) for component in components)


def _modes(modes: Mapping[str, Mode]) -> tuple[tuple[str, Mode], ...]:
    for component, mode in modes.items():
        if mode not in get_args(Mode):
            raise InvalidItem(
                f"modes gives {component}={mode!r}.", cure=f"Use one of {get_args(Mode)}."
            )
    return tuple((canonical_component(component), mode) for component, mode in modes.items())
