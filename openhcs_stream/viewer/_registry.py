"""Installed viewers, found by entry point; nothing of a viewer is imported before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from openhcs_stream.discovery import ENTRY_POINTS, unknown_viewer
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.viewer._base import Viewer

__all__ = ["MEMORY", "ViewerInfo", "create", "viewers"]


@dataclass(frozen=True)
class ViewerInfo:
    """One installed viewer; the row that a viewer's package registers by entry point.

    ``napari = "openhcs_stream_napari:VIEWER"`` in the group `discovery.ENTRY_POINTS`.

    Attributes
    ----------
    name : str
        What users say: ``connect("napari")``, ``openhcs-stream napari``.
    summary : str
        One line for the command's help.
    extra : str
        Extra of this distribution that brings what it needs; empty: nothing is needed.
    factory : str
        ``"package.module:function"``, imported on first use and called as
        ``function(headless=bool, title=str, options=dict) -> Viewer``.
    checks : str
        ``"package.module:function"``, called without arguments by ``openhcs-stream doctor``: it
        yields (what was looked at, "ok" or "warn" or "fail", what was found, the cure). Empty:
        there is nothing to check.
    """

    name: str
    summary: str
    extra: str
    factory: str
    checks: str = ""


#: The viewer without a screen, for tests and benchmarks.
MEMORY = ViewerInfo(
    name="memory",
    summary="keep everything in memory and show nothing, for tests and benchmarks",
    extra="",
    factory="openhcs_stream.viewer._registry:create_memory",
)


def create_memory(*, headless: bool, title: str, options: Mapping[str, Any]) -> Viewer:
    """The factory of `MEMORY`; it has no window, with `headless` or without."""
    if options:
        raise UsageError(
            f"the memory viewer has no option {', '.join(options)}.", cure="Leave it out."
        )
    from openhcs_stream.viewer._memory import MemoryViewer

    return MemoryViewer()


def viewers() -> Mapping[str, ViewerInfo]:
    """All installed viewers by name."""
    found = [point.load() for point in entry_points(group=ENTRY_POINTS)]
    return {info.name: info for info in sorted(found, key=lambda info: info.name)}


def create(
    name: str,
    *,
    headless: bool = False,
    title: str = "",
    options: Mapping[str, Any] | None = None,
) -> Viewer:
    """Make a viewer by its registered name.

    Raises
    ------
    UnknownViewer
        None of that name is installed.
    UsageError
        It is installed and what it needs is not: a package, a display.
    """
    known = viewers()
    info = known.get(name)
    if info is None:
        raise unknown_viewer(name)
    module, _, function = info.factory.partition(":")
    factory = getattr(import_module(module), function)
    viewer: Viewer = factory(headless=headless, title=title or name, options=dict(options or {}))
    return viewer
