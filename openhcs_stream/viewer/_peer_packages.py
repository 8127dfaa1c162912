"""Which release of a package another process of this user runs with.

OpenHCS's clients of the second generation use only a viewer that calls itself by their own
version, which their requests don't tell. It stands in the environment that they run from, whose
folder every extension module that they have loaded lies in.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["installed_versions"]

#: Lines of a process's memory map that are looked at: a viewer or worker has a few thousand.
_MOST_LINES: Final = 50_000
_MOST_FOLDERS: Final = 8
_FOLDER = re.compile(r"(/.*?/(?:site|dist)-packages)/")


def installed_versions(pid: int, names: Iterable[str]) -> dict[str, str]:
    """Tell the versions of packages in the environment of a process.

    Parameters
    ----------
    pid : int
        Of this user, on this machine; 0 or one that can't be looked at: none are found.
    names : iterable of str
        Names of distributions, in lower case.

    Returns
    -------
    dict of name to version
        Of those that were found.
    """
    wanted = tuple(names)
    if pid == os.getpid():
        return {name: found for name in wanted if (found := _own(name))}
    return dict(_of_process(pid, _started(pid), wanted))


@functools.lru_cache(maxsize=64)
def _of_process(pid: int, _: str, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """As `installed_versions`; a number that is given to another process starts anew."""
    found: dict[str, str] = {}
    for folder in _folders(pid):
        for name in names:
            if name not in found and (release := _release(folder, name)):
                found[name] = release
    return tuple(found.items())


def _started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _own(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _folders(pid: int) -> list[Path]:
    """Folders of packages from which a process has loaded something."""
    if pid <= 0 or not sys.platform.startswith("linux"):
        return []
    folders: dict[str, None] = {}
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines):
                match = _FOLDER.search(line)
                if match is not None:
                    folders[match.group(1)] = None
                if number >= _MOST_LINES or len(folders) >= _MOST_FOLDERS:
                    break
    except OSError:  # it is gone, or another user's
        return []
    return [Path(folder) for folder in folders]


def _release(folder: Path, name: str) -> str:
    try:
        entries = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return ""
    pattern = re.compile(rf"{re.escape(name)}-([0-9][0-9A-Za-z.+!]*)\.(?:dist|egg)-info", re.I)
    releases = [match.group(1) for entry in entries if (match := pattern.fullmatch(entry))]
    return releases[0] if len(releases) == 1 else ""
