"""What ``openhcs-stream doctor`` looks at for Fiji: Java, ImageJ's jar, pyimagej, a Fiji folder."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from openhcs_stream.errors import UsageError
from openhcs_stream_fiji._jar import IMAGEJ_VERSION, found_jar, is_fetchable
from openhcs_stream_fiji._java import find_java

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "checks"]

#: What was looked at, how it is, what was found, and the cure.
Finding: TypeAlias = tuple[str, Literal["ok", "warn", "fail"], str, str]

_FETCH_TIMEOUT_S = 5.0
_LAUNCHERS = ("fiji", "fiji-linux-x64", "ImageJ-linux64", "ImageJ")
_FOLDERS = ("Fiji.app", "Fiji", "fiji")


def checks() -> Iterator[Finding]:
    """Each in turn; without JPype nothing else is looked at."""
    if find_spec("jpype") is None:
        yield (
            "java", "warn", "JPype is not installed; only the Fiji viewer needs it",
            "`pip install 'openhcs-stream[fiji]'`",
        )  # fmt: skip
        return
    yield _java()
    yield _jar()
    yield _fiji()


def _java() -> Finding:
    try:
        library = find_java("")
    except UsageError as error:
        return "java", "fail", error.what, error.cure
    return "java", "ok", f"{_version(library)} ({library})", ""


def _version(library: Path) -> str:
    """As the Java's own file ``release`` has it, some folders up."""
    for folder in library.parents[1:4]:
        try:
            lines = (folder / "release").read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("JAVA_VERSION="):
                return line.partition("=")[2].strip('"')
    return "of unknown version"


def _jar() -> Finding:
    try:
        path = found_jar()
    except UsageError as error:
        return "imagej", "fail", error.what, error.cure
    if path is not None:
        return "imagej", "ok", str(path), ""
    if is_fetchable(_FETCH_TIMEOUT_S):
        text = f"ImageJ {IMAGEJ_VERSION} is not here yet; the first start fetches it (2.6 MB)"
        return "imagej", "ok", text, ""
    return (
        "imagej", "fail", f"ImageJ {IMAGEJ_VERSION} is not here, and Maven Central does not answer",
        "Check the network (HTTPS_PROXY), or name a jar that you have: "
        "OPENHCS_STREAM_IMAGEJ_JAR=/path/to/ij.jar.",
    )  # fmt: skip


def _fiji() -> Finding:
    """Nobody needs one: ImageJ comes by itself."""
    folder = _folder()
    if folder is None:
        return "fiji", "ok", "no Fiji of your own was found; ImageJ itself is used", ""
    if find_spec("imagej") is None and not (folder / "ij.jar").is_file():
        return (
            "fiji", "warn", f"there is a Fiji in {folder}; pyimagej, which it needs, is missing",
            "`pip install 'openhcs-stream[fiji-full]'`",
        )  # fmt: skip
    return "fiji", "ok", f"use your own with --fiji {folder}", ""


def _folder() -> Path | None:
    """Where people put it, and where its launcher is."""
    found = [shutil.which(name) for name in _LAUNCHERS]
    launchers = [Path(each).resolve().parent for each in found if each]
    homes = [Path.home(), Path("/opt"), Path("/Applications"), Path("/usr/local")]
    named = [Path(os.environ[name]) for name in ("FIJI_HOME", "IJ_DIR") if os.environ.get(name)]
    for folder in (*named, *launchers, *(home / name for home in homes for name in _FOLDERS)):
        if (folder / "jars").is_dir() or (folder / "ij.jar").is_file():
            return folder
    return None
