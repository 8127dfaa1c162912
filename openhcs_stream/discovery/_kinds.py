"""Which kinds of viewer are installed, without importing any of them."""

from __future__ import annotations

from openhcs_stream.errors import UnknownViewer

__all__ = ["ENTRY_POINTS", "installed_viewers", "unknown_viewer"]

#: The group of entry points by which an installed package offers a viewer.
ENTRY_POINTS = "openhcs_stream.viewers"

_HOW = {
    "napari": "Install napari with `pip install 'openhcs-stream[napari]'`.",
    "fiji": "Install it with `pip install 'openhcs-stream[fiji]'`.",
}
_OTHERS = (
    f"Packages add viewers by the entry point group {ENTRY_POINTS!r}; "
    "install the one that brings yours."
)


def installed_viewers() -> tuple[str, ...]:
    """Names of the installed kinds of viewer, sorted."""
    from importlib.metadata import entry_points

    return tuple(sorted({point.name for point in entry_points(group=ENTRY_POINTS)}))


def unknown_viewer(name: str, *, what: str = "") -> UnknownViewer:
    """The error for a viewer that is not installed: the known names, and how to get others.

    Parameters
    ----------
    name : str
        What was asked for.
    what : str
        What happened; empty: that no viewer of this name is installed.
    """
    known = ", ".join(installed_viewers()) or "none"
    return UnknownViewer(
        what or f"no viewer {name!r} is installed.",
        cure=f"Installed viewers: {known}. {_HOW.get(name.lower(), _OTHERS)}",
    )
