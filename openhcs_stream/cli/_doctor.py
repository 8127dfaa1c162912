"""``openhcs-stream doctor``: what this machine lacks, and how to mend it. Changes nothing."""

from __future__ import annotations

import ctypes.util
import errno
import fcntl
import json
import mmap
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openhcs_stream.discovery import ENTRY_POINTS, endpoints, runtime_folder, stale_files
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

__all__ = ["Finding", "add_arguments", "examine", "run"]

_REQUIRED = ("openhcs-stream", "numpy", "pyzmq", "msgspec", "roifile")
_OPTIONAL = (
    ("napari", "openhcs-stream[napari]", "the napari viewer"),
    ("tifffile", "openhcs-stream[images]", "sending TIFF files"),
    ("imageio", "openhcs-stream[images]", "sending PNG and JPEG files"),
    ("zarr", "zarr", "sending OME-Zarr images"),
    ("scikit-image", "openhcs-stream[demo]", "the demo"),
    ("rich", "openhcs-stream[demo]", "the progress bar"),
)
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
_PORTS = (5555, 5565)
_MIB = 1 << 20
#: Files that a viewer with a few dozen streams opens at once.
_FILES = 1024
_WINDOW_TIMEOUT_S = 60.0
_OPEN_WINDOW = """
import napari, qtpy
from qtpy.QtWidgets import QApplication, QWidget
application = QApplication([])
widget = QWidget()
widget.show()
application.processEvents()
print(napari.__version__, qtpy.API_NAME, qtpy.QT_VERSION, application.platformName())
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : str
        What was looked at.
    state : "ok", "warn" or "fail"
        Whether everything works, something does not, or nothing does.
    text : str
        What was found.
    cure : str
        What to do about it; empty where nothing is to be done.
    """

    check: str
    state: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    findings = list(examine())
    failed = sum(finding.state == "fail" for finding in findings)
    if arguments.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(each) for each in findings]}))
        return 1 if failed else 0
    for finding in findings:
        print(f"{finding.state:<5} {finding.check:<15} {finding.text}", flush=True)
        if finding.cure:
            print(f"{'':<21} -> {finding.cure}")
    warned = sum(finding.state == "warn" for finding in findings)
    print(f"\n{len(findings)} checks: {failed} failed, {warned} with a warning.")
    return 1 if failed else 0


def examine() -> Iterator[Finding]:
    """Look at everything, one after the other."""
    for check in _CHECKS:
        yield from check()


# --- Python ---------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", found)


def _packages() -> Iterator[Finding]:
    for name in _REQUIRED:
        found = _version(name)
        if found:
            yield Finding(name, "ok", found)
        else:
            yield Finding(name, "fail", "is not installed", "`pip install openhcs-stream`")
    for name, extra, needed_for in _OPTIONAL:
        found = _version(name)
        if found:
            yield Finding(name, "ok", found)
        else:
            text = f"is not installed; only {needed_for} needs it"
            yield Finding(name, "warn", text, f"`pip install '{extra}'`")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _viewers() -> Iterator[Finding]:
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    if not found:
        text = "no viewer is registered"
        yield Finding("viewers", "fail", text, "Install openhcs-stream with pip.")
    for point in found:
        module = point.value.partition(":")[0]
        try:
            is_there = find_spec(module) is not None
        except ImportError:
            is_there = False
        if is_there:
            yield Finding("viewers", "ok", f"{point.name}: {point.value}")
        else:
            text = f"{point.name}: its module {module} is missing"
            yield Finding("viewers", "fail", text, "Install the package that brings it again.")


# --- windows --------------------------------------------------------------------------------------


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _display() -> Iterator[Finding]:
    xvfb = shutil.which("Xvfb")
    if _has_display():
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


def _libraries() -> Iterator[Finding]:
    if sys.platform != "linux" or find_spec("napari") is None:
        return
    missing = [name for name in _LIBRARIES if ctypes.util.find_library(name) is None]
    if not missing:
        yield Finding("libraries", "ok", "those of Qt and OpenGL are there")
        return
    packages = " ".join(_LIBRARIES[name] for name in missing)
    yield Finding(
        "libraries",
        "fail" if _has_display() else "warn",
        f"Qt's windows need {', '.join(missing)}",
        f"On Debian and Ubuntu: `apt-get install {packages}`",
    )


def _window() -> Iterator[Finding]:
    """In a process of its own: Qt ends the process where it can't open a window."""
    if find_spec("napari") is None:
        return
    if not _has_display():
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
        yield Finding("window", "ok", f"napari opens one: {tried.stdout.strip()}")
        return
    words = [line for line in tried.stderr.splitlines() if line.strip()]
    cure = "Install `openhcs-stream[napari]` anew, and what libraries, above, names."
    yield Finding("window", "fail", f"napari opens none: {' '.join(words[-2:])[:400]}", cure)


# --- memory and descriptors -----------------------------------------------------------------------


def _shared_memory() -> Iterator[Finding]:
    if sys.platform != "linux":
        text = f"only Linux is supported for now; this is {platform.system()}"
        yield Finding("memfd", "warn", text, "Pixels travel through ZeroMQ, more slowly.")
        return
    try:
        fd = os.memfd_create("openhcs-stream-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        finally:
            os.close(fd)
    except OSError as error:
        cure = "Allow memfd_create (a seccomp profile may forbid it); without it pixels travel "
        text = f"shared memory can't be made: {error.strerror}"
        yield Finding("memfd", "fail", text, cure + "through ZeroMQ.")
    else:
        yield Finding("memfd", "ok", "shared memory can be made and sealed")
    yield from _dev_shm()


def _dev_shm() -> Iterator[Finding]:
    """Named blocks of OpenHCS senders lie there; our own pixels do not."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        text = f"can't be looked at: {error.strerror}"
        yield Finding("/dev/shm", "warn", text, "OpenHCS senders need it; mount a tmpfs there.")
        return
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    text = f"{size // _MIB} MiB, {free // _MIB} MiB free"
    if free < 256 * _MIB:
        cure = "Images of OpenHCS senders may not fit; in a container use --shm-size=2g."
        yield Finding("/dev/shm", "warn", text, cure)
    else:
        yield Finding("/dev/shm", "ok", text)


def _passing() -> Iterator[Finding]:
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(ours, [b"x"], [ours.fileno()])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        for fd in fds:
            os.close(fd)
    except OSError as error:
        text = f"unix sockets that pass memory don't work: {error.strerror}"
        yield Finding("unix sockets", "fail", text, "Pixels travel through ZeroMQ, more slowly.")
    else:
        yield Finding("unix sockets", "ok", "they pass memory between processes")


def _limits() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(soft)} open files, at most {_limit(hard)}"
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        yield Finding("nofile", "warn", text, f"Raise it: `ulimit -n {_FILES * 4}`.")
    else:
        yield Finding("nofile", "ok", text)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    kib = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    yield Finding("memlock", "ok", f"{kib} of locked memory; none is needed")
    yield from _memory_limit()


def _limit(number: int) -> str:
    import resource

    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _memory_limit() -> Iterator[Finding]:
    """A memfd's pages count against the control group, also of a container."""
    limit = min((bytes_ for bytes_ in map(_read_limit, _limit_files()) if bytes_), default=0)
    if not limit or limit >= 1 << 60:  # version 1 writes a huge number for none
        yield Finding("cgroup memory", "ok", "no limit")
    elif limit < 2048 * _MIB:
        cure = "Shared memory counts against it: allow 2 GiB, or give connect() a quota_nbytes."
        yield Finding("cgroup memory", "warn", f"limited to {limit // _MIB} MiB", cure)
    else:
        yield Finding("cgroup memory", "ok", f"limited to {limit // _MIB} MiB")


def _limit_files() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            folder = root / group.strip("/")
            while folder.is_relative_to(root):  # each level limits those below
                yield folder / "memory.max"
                folder = folder.parent
        elif "memory" in controllers.split(","):
            yield root / "memory" / group.strip("/") / "memory.limit_in_bytes"
            yield root / "memory" / "memory.limit_in_bytes"


def _read_limit(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


# --- files and ports ------------------------------------------------------------------------------


def _runtime() -> Iterator[Finding]:
    try:
        folder = runtime_folder()
        stale = stale_files()
        running = len(endpoints(clear=False))
    except UsageError as error:
        yield Finding("runtime folder", "fail", error.what, error.cure)
        return
    yield Finding("runtime folder", "ok", f"{folder}, {running} running viewers")
    if stale:
        names = ", ".join(path.name for path in stale[:5])
        cure = "`openhcs-stream status` removes them."
        yield Finding("stale files", "warn", f"{len(stale)} of ended viewers: {names}", cure)
    else:
        yield Finding("stale files", "ok", "none")


def _ports() -> Iterator[Finding]:
    for port in _PORTS:
        check = f"port {port}"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            # As ZeroMQ does: connections that linger from before are no obstacle.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    text = f"can't be used: {error.strerror}"
                    yield Finding(check, "warn", text, "Choose another one with --port.")
                    continue
                text = f"is in use{_used_by(port)}"
                cure = "Choose another one with --port, or 0 for any free one."
                yield Finding(check, "warn", text, cure)
            else:
                yield Finding(check, "ok", "is free")


def _used_by(port: int) -> str:
    for endpoint in endpoints(clear=False):
        if endpoint.port == port:
            return f" by the running viewer {endpoint.name!r} (pid {endpoint.pid})"
    return ""


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _viewers,
    _display,
    _libraries,
    _window,
    _shared_memory,
    _passing,
    _limits,
    _runtime,
    _ports,
)
