"""The doctor's checks of the display, Qt, OpenGL, and of what each viewer needs besides."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from openhcs_stream.cli._findings import Finding
from openhcs_stream.discovery import ENTRY_POINTS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["display", "has_display", "libraries", "of_viewers", "window"]

#: What Qt and OpenGL load at run time, with the Debian packages that bring it.
_LIBRARIES = {
    "GL": "libgl1",
    "EGL": "libegl1",
    "fontconfig": "libfontconfig1",
    "glib-2.0": "libglib2.0-0",
    "dbus-1": "libdbus-1-3",
    "xkbcommon": "libxkbcommon0",
    "xkbcommon-x11": "libxkbcommon-x11-0",
    "xcb-cursor": "libxcb-cursor0",
    "xcb-icccm": "libxcb-icccm4",
    "xcb-keysyms": "libxcb-keysyms1",
    "xcb-shape": "libxcb-shape0",
}
_WINDOW_TIMEOUT_S = 60.0
_OPEN_WINDOW = """
import ctypes, json
import napari, qtpy
from qtpy.QtGui import QOffscreenSurface, QOpenGLContext
from qtpy.QtWidgets import QApplication, QWidget
application = QApplication([])
widget = QWidget()
widget.show()
application.processEvents()
told = {"window": f"{napari.__version__} {qtpy.API_NAME} {qtpy.QT_VERSION} "
                  f"{application.platformName()}"}
surface, context = QOffscreenSurface(), QOpenGLContext()
surface.create()
if context.create() and context.makeCurrent(surface):
    address = context.getProcAddress(b"glGetString")
    get_string = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(int(address))
    told["opengl"] = ", ".join((get_string(name) or b"?").decode("utf-8", "replace")
                               for name in (0x1F02, 0x1F01))
    context.doneCurrent()
print(json.dumps(told))
"""


def has_display() -> bool:
    """Whether windows can be opened, as far as the environment tells."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def display() -> Iterator[Finding]:
    """Where windows would open."""
    xvfb = shutil.which("Xvfb")
    if has_display():
        found = os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or "this desktop's"
        yield Finding("display", "ok", found)
    elif xvfb:
        text = "there is none, but Xvfb is installed"
        cure = "Start viewers with `xvfb-run -a openhcs-stream napari`, or with --headless."
        yield Finding("display", "warn", text, cure)
    else:
        text = "there is none, and no Xvfb"
        cure = "Start viewers with --headless, or install Xvfb: `apt-get install xvfb`."
        yield Finding("display", "warn", text, cure)


def libraries() -> Iterator[Finding]:
    """The system's libraries that Qt's wheels don't bring."""
    if sys.platform != "linux" or find_spec("napari") is None:
        return
    missing = [name for name in _LIBRARIES if ctypes.util.find_library(name) is None]
    if not missing:
        yield Finding("libraries", "ok", "those of Qt and OpenGL are there")
        return
    names = " ".join(_LIBRARIES[name] for name in missing)
    yield Finding(
        "libraries",
        "fail" if has_display() else "warn",
        f"Qt's windows need {', '.join(missing)}",
        f"On Debian and Ubuntu: `apt-get install {names}`",
    )


def window() -> Iterator[Finding]:
    """In a process of its own: Qt ends the process where it can't open a window."""
    if find_spec("napari") is None:
        return
    if not has_display():
        yield Finding("window", "warn", "not tried without a display", "See display, above.")
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", _OPEN_WINDOW],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_WINDOW_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"napari opened none within {_WINDOW_TIMEOUT_S:g} s"
        yield Finding("window", "fail", text, "Look whether the display answers: `xdpyinfo`.")
        return
    if tried.returncode == 0:
        told = json.loads(tried.stdout.splitlines()[-1])
        yield Finding("window", "ok", f"napari opens one: {told['window']}")
        yield _opengl(told.get("opengl", ""))
        return
    words = [line for line in tried.stderr.splitlines() if line.strip()]
    cure = "Install `openhcs-stream[napari]` anew, and what libraries, above, names."
    yield Finding("window", "fail", f"napari opens none: {' '.join(words[-2:])[:400]}", cure)


def _opengl(found: str) -> Finding:
    if not found:
        text = "Qt makes no OpenGL context, and napari draws with nothing else"
        cure = "Install the graphics driver, or Mesa's: `apt-get install libgl1-mesa-dri`."
        return Finding("opengl", "fail", text, cure)
    if "llvmpipe" in found or "softpipe" in found:
        found += " (in software: large images are drawn slowly)"
    return Finding("opengl", "ok", found)


def of_viewers() -> Iterator[Finding]:
    """What each installed kind of viewer checks itself: see `ViewerInfo.checks`."""
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            place = point.load().checks
            if not place:
                continue
            module, _, function = place.partition(":")
            found = list(getattr(import_module(module), function)())
        except Exception as error:  # a broken package must not end the others' checks
            text = f"its checks can't be made: {type(error).__name__}: {error}"
            cure = "Install the package that brings this viewer anew."
            yield Finding(point.name, "fail", text, cure)
            continue
        for check, state, text, cure in found:
            yield Finding(check, state, text, cure)
