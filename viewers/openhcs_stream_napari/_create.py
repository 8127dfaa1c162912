"""Start the viewer that was asked for, or say what is missing and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.viewer import Viewer

__all__ = ["create"]

#: Options, as regular expressions of what they may be; they come from the command line as text.
_OPTIONS = {"screenshot": "canvas|window", "size": r"[1-9]\d{2,4}x[1-9]\d{2,4}"}


def create(*, headless: bool, title: str, options: Mapping[str, str]) -> Viewer:
    """Make the napari viewer.

    Parameters
    ----------
    headless : bool
        On napari's model alone: no Qt, no window, no display.
    title : str
        Of the window.
    options : mapping
        ``screenshot``: "canvas" (default) or "window", with the panels. ``size``: of the window
        in screen pixels, "1200x900"; by default as napari was left the last time.

    Raises
    ------
    UsageError
        napari, a Qt binding or a display is missing, or an option is unknown.
    """
    for name, value in options.items():
        if name not in _OPTIONS or not re.fullmatch(_OPTIONS[name], value):
            raise UsageError(
                f"the napari viewer has no option {name}={value}.",
                cure="There are: screenshot=canvas, screenshot=window, size=1200x900.",
            )
    _need("napari", "napari is not installed")
    if headless:
        from openhcs_stream_napari._model import NapariModelViewer

        return NapariModelViewer(title=title)
    if not any(map(importlib.util.find_spec, ("PyQt6", "PySide6", "PyQt5"))):
        raise UsageError(
            "no Qt binding is installed, so there can be no window.",
            cure="Install one: pip install 'openhcs-stream[napari]', or start with --headless.",
        )
    _need_display()
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer = NapariWindowViewer(title=title)
    if "size" in options:
        viewer.model.window.resize(*map(int, options["size"].split("x")))
    viewer.canvas_only = options.get("screenshot", "canvas") == "canvas"
    return viewer


def _need(module: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"{what} in {sys.prefix}.",
            cure="Install it with: pip install 'openhcs-stream[napari]'.",
        )


def _need_display() -> None:
    """Without one Qt aborts the process, or vispy fails at the first image with a riddle."""
    if not sys.platform.startswith("linux"):
        return
    platform = os.environ.get("QT_QPA_PLATFORM", "").split(":")[0]
    if platform in ("offscreen", "minimal"):
        raise UsageError(
            f"QT_QPA_PLATFORM={platform} has no OpenGL, which napari draws with.",
            cure="Unset it, and where there is no display use --headless or xvfb-run.",
        )
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError(
            "there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set.",
            cure="Start with --headless (no window), or under xvfb-run (apt install xvfb).",
        )
