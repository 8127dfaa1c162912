"""What a piece of code leaves behind in its process and on its machine, and whose it is.

Looked at from outside: the names in ``/dev/shm``, open descriptors, mapped arenas, threads, child
processes and files in the runtime folder. Nothing of the library is asked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["SETTLE_S", "Leak", "LeakError", "Snapshot", "watch_leaks"]

#: Seconds that things may take to go away by themselves: ZeroMQ closes sockets on its own thread,
#: and a viewer notices the end of a stream when its loop comes round.
SETTLE_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.02

_RUNTIME_VARIABLE = "OPENHCS_STREAM_RUNTIME_DIR"
_SHM = Path("/dev/shm")
#: Lines of /proc/PID/maps that are arenas of this library: the inode, then the name.
_ARENA = re.compile(r"(\d+)\s+/memfd:(openhcs-stream\S*)")
#: Processes that multiprocessing keeps for the life of the interpreter.
_LASTING_CHILDREN = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


@dataclass(frozen=True, order=True)
class Leak:
    """One thing that was left."""

    kind: str  #: "thread", "child process", "descriptor", "arena", "shared memory", "file"
    name: str
    #: More for a person to find it by: a thread's stack, a process's command.
    detail: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f"\n{self.detail}" if self.detail else "")


class LeakError(AssertionError):
    """Something was left behind.

    Attributes
    ----------
    leaks : tuple of Leak
    """

    def __init__(self, leaks: Iterable[Leak], settle_s: float) -> None:
        self.leaks = tuple(leaks)
        listed = "\n".join(f"  - {leak}" for leak in self.leaks)
        super().__init__(f"{len(self.leaks)} left behind after {settle_s:g} s:\n{listed}")


@dataclass(frozen=True)
class Snapshot:
    """What there is now. Make it with `take`.

    On systems without ``/proc`` only threads and files are seen.
    """

    names: dict[tuple[str, str], str]  #: (kind, what tells it from others) to its readable name

    @classmethod
    def take(cls) -> Snapshot:
        """Look at this process and its machine."""
        _begin_what_lasts()
        gc.collect()
        names: dict[tuple[str, str], str] = {}
        for look in (_threads, _children, _descriptors, _arenas, _shm_names, _runtime_files):
            names |= look()
        return cls(names)

    def leaks(self, *, settle_s: float = SETTLE_S) -> tuple[Leak, ...]:
        """What is there now and was not then.

        Parameters
        ----------
        settle_s : float
            How long to wait for things to go away; returns as soon as nothing is left.

        Returns
        -------
        tuple of Leak
            What was there at *every* look: names that another process made and removed meanwhile
            are not blamed on this one.
        """
        deadline = time.monotonic() + settle_s
        left: dict[tuple[str, str], str] | None = None
        while True:
            now = Snapshot.take().names
            new = {key: name for key, name in now.items() if key not in self.names}
            left = new if left is None else {k: v for k, v in new.items() if k in left}
            if not left or time.monotonic() >= deadline:
                break
            time.sleep(_LOOK_EVERY_S)
        return tuple(
            sorted(
                Leak(kind, name, _detail(kind, key))
                for (kind, key), name in left.items()
                if not (kind == "shared memory" and _is_anothers(key))
            )
        )


@contextlib.contextmanager
def watch_leaks(*, settle_s: float = SETTLE_S) -> Iterator[Snapshot]:
    """Check that the block leaves nothing behind.

    Parameters
    ----------
    settle_s : float
        How long to wait at the end for things to go away by themselves.

    Yields
    ------
    Snapshot
        What there was before.

    Raises
    ------
    LeakError
        Something is left; its text names each thing. Not raised where the block itself raised.

    Examples
    --------
    >>> with watch_leaks():
    ...     file = open("/dev/null")
    ...     file.close()
    """
    before = Snapshot.take()
    yield before
    leaks = before.leaks(settle_s=settle_s)
    if leaks:
        raise LeakError(leaks, settle_s)


# --- looking ------------------------------------------------------------------------------------


def _begin_what_lasts() -> None:
    """ZeroMQ's context lives as long as the process, with descriptors of its own: begin it now."""
    global _begun
    if _begun:
        return
    from openhcs_stream.transport import ZmqLane

    ZmqLane.connect(f"ipc://@openhcs-stream-nobody-{os.getpid()}").close()
    _begun = True
    # The socket is closed on ZeroMQ's own thread; until then it would count as ours.
    count = -1
    while count != (count := len(_descriptors())):
        time.sleep(_LOOK_EVERY_S)


_begun = False


def _threads() -> dict[tuple[str, str], str]:
    return {
        ("thread", str(thread.ident)): repr(thread.name)
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
    }


def _children() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    me = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (any name) state ppid ...": the name may hold spaces and brackets.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it ended
            continue
        if parent != me or any(each in command for each in _LASTING_CHILDREN):
            continue
        pid = stat.parent.name
        found["child process", pid] = pid + (" (ended, not waited for)" if state == "Z" else "")
    return found


def _descriptors() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    lasting = getattr(getattr(tracker, "_resource_tracker", None), "_fd", None)
    for fd in _listed("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the listing's own
            continue
        if fd != str(lasting):
            found["descriptor", f"{fd} {target}"] = f"{fd}: {target}"
    return found


def _arenas() -> dict[tuple[str, str], str]:
    try:
        maps = Path("/proc/self/maps").read_text(errors="replace")
    except OSError:
        return {}
    return {("arena", inode): f"{name} (inode {inode})" for inode, name in _ARENA.findall(maps)}


def _shm_names() -> dict[tuple[str, str], str]:
    return {("shared memory", name): str(_SHM / name) for name in _listed(str(_SHM))}


def _runtime_files() -> dict[tuple[str, str], str]:
    folder = os.environ.get(_RUNTIME_VARIABLE)
    if not folder:  # a user's own: others may be at work there
        return {}
    return {("file", str(path)): str(path) for path in Path(folder).rglob("*") if not path.is_dir()}


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# --- telling ------------------------------------------------------------------------------------


def _detail(kind: str, key: str) -> str:
    details: dict[str, Callable[[str], str]] = {"thread": _stack, "child process": _command}
    return details[kind](key) if kind in details else ""


def _stack(ident: str) -> str:
    frame = sys._current_frames().get(int(ident))  # noqa: SLF001  there is no public way
    return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else ""


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def _is_anothers(name: str) -> bool:
    """Whether a living process that is neither this one nor its child has a name open."""
    path = str(_SHM / name)
    mine = {str(os.getpid()), *(pid for _, pid in _children())}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name in mine:
            continue
        try:
            if path in maps.read_text(errors="replace"):
                return True
        except OSError:
            continue
    return False
