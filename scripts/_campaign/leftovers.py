"""What there is: processes, descriptors, mapped arenas, names. Read from /proc and the folders."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "ArenaUse",
    "arenas_of",
    "descriptors_of",
    "more_than",
    "names_below",
    "own_counts",
    "settled_counts",
    "threads_of",
    "tree",
]

#: start-end perms offset dev inode path
_ARENA: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)\s+/memfd:openhcs-stream\S*", re.MULTILINE
)


@dataclass(frozen=True)
class ArenaUse:
    """One arena that a process has mapped, or only open."""

    inode: int
    nbytes: int


def arenas_of(pid: int | str) -> set[ArenaUse]:
    """Arenas of the library that a process holds, by its maps and by its descriptors."""
    found: dict[int, int] = {}
    try:
        for start, end, _, inode in _ARENA.findall(Path(f"/proc/{pid}/maps").read_text()):
            found[int(inode)] = found.get(int(inode), 0) + int(end, 16) - int(start, 16)
    except OSError:
        return set()
    for fd, target in _links(pid):
        if target.startswith("/memfd:openhcs-stream"):
            try:
                status = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            found.setdefault(status.st_ino, status.st_size)
    return {ArenaUse(inode, nbytes) for inode, nbytes in found.items()}


def descriptors_of(pid: int | str) -> Counter[str]:
    """Descriptors by their kind, but for regular files: Java opens its libraries when it likes."""
    return Counter(
        re.sub(r":\[\d+\]$", "", target)
        for _, target in _links(pid)
        if not target.startswith("/") or "memfd:" in target
    )


def threads_of(pid: int | str) -> Counter[str]:
    """Threads by the names that the system knows them by."""
    found: Counter[str] = Counter()
    tasks = Path(f"/proc/{pid}/task")
    with contextlib.suppress(OSError):  # it ended
        for task in os.listdir(tasks):
            with contextlib.suppress(OSError):
                found[(tasks / task / "comm").read_text().strip()] += 1
    return found


def own_counts() -> dict[str, int]:
    """Of this process, before and after."""
    return {
        "descriptors": descriptors_of("self").total(),
        "threads": threads_of("self").total(),
        "arenas": len(arenas_of("self")),
    }


def settled_counts(timeout_s: float = 5.0) -> dict[str, int]:
    """Of this process, once they stay the same: threads begin and sockets close when they like."""
    deadline = time.monotonic() + timeout_s
    counts, steady = own_counts(), 0
    while steady < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
        now = own_counts()
        steady = steady + 1 if now == counts else 0
        counts = now
    return counts


def more_than(base: dict[str, int], timeout_s: float = 10.0) -> dict[str, int]:
    """What this process has more of than it had, once everything had time to go."""
    deadline = time.monotonic() + timeout_s
    while True:
        gc.collect()
        now = own_counts()
        more = {key: now[key] - count for key, count in base.items() if now[key] > count}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.02)


def tree(root: int, *, besides: Collection[int] = ()) -> dict[int, str]:
    """Descendants of a process, with their state ("Z" has ended and is not reaped).

    `besides`: descendants that are left out, with those below them.

    It is no snapshot. Of a process that goes on as its own child while this looks, only the end
    of the parent may be seen; see `Cell.strangers`.
    """
    parents: dict[int, list[tuple[int, str]]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:  # it ended
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        parents.setdefault(int(parent), []).append((int(pid), state))
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        for child, state in parents.get(waiting.pop(), ()):
            if child not in found and child not in besides:
                found[child] = state
                waiting.append(child)
    return found


def names_below(folder: Path) -> set[str]:
    """Files, sockets and links below a folder; folders themselves are no names."""
    return {str(Path(where) / name) for where, _, names in os.walk(folder) for name in names}


def _links(pid: int | str) -> list[tuple[str, str]]:
    found = []
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for fd in fds:
        try:
            found.append((fd, os.readlink(f"/proc/{pid}/fd/{fd}")))
        except OSError:  # closed meanwhile
            continue
    return found
