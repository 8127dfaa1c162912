"""A pipeline's display settings, read without knowing their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openhcs_stream.dialects import read_colormap, read_modes
from openhcs_stream.errors import InvalidItem
from openhcs_stream.messages import COMPONENT_ORDER, canonical_component

if TYPE_CHECKING:
    from openhcs_stream.messages import Mode

__all__ = ["Display", "read_display"]

#: Components whose mode is asked for where the settings list none.
_USUAL = (*COMPONENT_ORDER, "timepoint", "z_index", "step_name", "source")


@dataclass(frozen=True)
class Display:
    """How a batch is shown, in our words."""

    modes: Mapping[str, Mode] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    colormap: str = ""
    auto_contrast: bool = True


def read_display(config: Any, *, viewer: str) -> Display:
    """Read display settings by their attributes; what is missing has a default.

    Parameters
    ----------
    config : object or None
        May have ``COMPONENT_ORDER``, ``<component>_mode`` (a str or an enum of str),
        ``get_colormap_name()``, ``get_lut_name()``, ``colormap``, ``lut`` and ``auto_contrast``.
    viewer : str
        Whose vocabulary the modes are in where the words alone don't tell.

    Raises
    ------
    InvalidItem
        A mode is unknown, or the order is no list of names.
    """
    if config is None:
        return Display()
    listed = getattr(config, "COMPONENT_ORDER", None)
    if listed is not None and (
        isinstance(listed, str)
        or not isinstance(listed, Sequence)
        or not all(isinstance(name, str) for name in listed)
    ):
        raise InvalidItem(
            f"display_config.COMPONENT_ORDER is {listed!r}.",
            cure="Make it a list of component names, slowest first.",
        )
    names = _USUAL if listed is None else tuple(listed)
    found = {name: getattr(config, f"{name}_mode", None) for name in names}
    modes = {name: mode for name, mode in found.items() if mode is not None}
    return Display(
        modes=read_modes(modes, fiji=viewer == "fiji"),
        order=tuple(dict.fromkeys(map(canonical_component, listed or ()))),
        colormap=read_colormap(_colormap_name(config)),
        auto_contrast=bool(getattr(config, "auto_contrast", True)),
    )


def _colormap_name(config: Any) -> str | None:
    for getter in ("get_colormap_name", "get_lut_name"):
        if callable(method := getattr(config, getter, None)):
            return _text(method())
    for attribute in ("colormap", "lut"):
        if (value := getattr(config, attribute, None)) is not None:
            return _text(value)
    return None


def _text(value: Any) -> str | None:
    value = getattr(value, "value", value)
    return None if value is None else str(value)
