"""How much memory this process may use: the machine's, and what its control groups leave of it."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    StrPath: TypeAlias = str | os.PathLike[str]

__all__ = ["has_memory_for", "memory_left_nbytes", "memory_limit_nbytes"]

_GROUPS: Final = "/proc/self/cgroup"
_ROOT: Final = "/sys/fs/cgroup"
_MACHINE: Final = "/proc/meminfo"
#: The first version writes the largest number of whole pages for no limit.
_UNLIMITED: Final = 1 << 62


#: What is left to everything else when memory runs short.
_SPARED_NBYTES: Final = 8 << 20
#: With so much left nobody asks again for a while: asking takes as long as a megabyte's pages.
_PLENTY_NBYTES: Final = 512 << 20
_WHILE_S: Final = 0.5


class _Files(NamedTuple):
    """Where one version of control groups tells of memory; cgroups(7)."""

    limit: str
    used: str
    #: In ``memory.stat``: copies of files, which are given up when memory is wanted.
    files: tuple[str, str]


_V1: Final = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2: Final = _Files("memory.max", "memory.current", ("inactive_file", "active_file"))


def memory_limit_nbytes(groups: StrPath = _GROUPS, root: StrPath = _ROOT) -> int:
    """Return how much memory this process may use: the machine's, or its control group's if less.

    Parameters
    ----------
    groups, root : path
        Where the kernel tells this process's control groups and where their limits are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, files in _folders(groups, root):
        limit = _number(f"{folder}/{files.limit}")
        if limit is not None:
            limits.append(limit)
    return min(limits)


def memory_left_nbytes(
    groups: StrPath = _GROUPS, root: StrPath = _ROOT, machine: StrPath = _MACHINE
) -> int:
    """Return how much more memory this process may use now, before something is killed for it.

    Parameters
    ----------
    groups, root, machine : path
        Where the kernel tells it.
    """
    left = [_machine_left(machine)]
    for folder, files in _folders(groups, root):
        limit = _number(f"{folder}/{files.limit}")
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _number(f"{folder}/{files.used}")
        if used is not None:
            left.append(limit - used + sum(_statistics(f"{folder}/memory.stat", files.files)))
    return min(left)


def has_memory_for(nbytes: int) -> bool:
    """Whether this process may use so much more memory, and something is left besides."""
    now = time.monotonic()
    asked_at, left = _last
    if now - asked_at > _WHILE_S or left - nbytes < _PLENTY_NBYTES:
        left = memory_left_nbytes()
        _last[0] = now
    enough = left - nbytes >= _SPARED_NBYTES
    _last[1] = left - nbytes if enough else left
    return enough


#: When it was asked how much is left, and what is left of that.
_last: Final[list[float]] = [float("-inf"), 0.0]


def _folders(groups: StrPath, root: StrPath) -> Iterator[tuple[str, _Files]]:
    """This process's control groups and all their parents, whose limits hold too."""
    for line in _lines(groups):
        number, controllers, name = line.split(":", 2)
        if number == "0":
            base, files = os.fspath(root), _V2
        elif "memory" in controllers.split(","):
            base, files = f"{os.fspath(root)}/memory", _V1
        else:
            continue
        # In a container the path may be the host's, and the container's own limit stands at the
        # top.
        parts = [part for part in name.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield "/".join([base, *parts[:depth]]), files


def _lines(path: StrPath) -> list[str]:
    # Not pathlib, which takes longer to import than all of this.
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _number(path: str) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None  # or "max"


def _statistics(path: str, names: tuple[str, ...]) -> list[int]:
    found = dict(line.split(" ", 1) for line in _lines(path) if " " in line)
    return [int(found[name]) for name in names if name in found]


def _machine_left(machine: StrPath) -> int:
    for line in _lines(machine):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return sys.maxsize
