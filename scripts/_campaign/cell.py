"""A process in which trials run one after another, apart from everything else on the machine.

It has a home, a runtime folder and, where the system lets it, a /dev/shm of its own, and it adopts
whatever its descendants leave behind: what is below it in the tree of processes when a trial is
over, and is no viewer that goes on living, was left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.errors import StreamError
from scripts._campaign import points
from scripts._campaign.leftovers import (
    arenas_of,
    descriptors_of,
    names_below,
    threads_of,
    tree,
)
from scripts._ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Cell", "CellError", "Left", "Program", "Running", "wait_for"]

ROOT: Final = Path(__file__).resolve().parents[2]
#: For whatever goes away by itself.
SETTLE_S: Final = 15.0
#: For a viewer to be ready: napari under Xvfb on a machine that does four things at once.
START_S: Final = 90.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_PRIVATE_ALL: Final = 0x40000 | 0x4000
_SHM: Final = Path("/dev/shm")
#: A thread of a pool of Qt's, and what it waits at.
_QT_THREAD: Final = "Thread (pooled)"
_QT_DESCRIPTOR: Final = "anon_inode:[eventfd]"


class CellError(Exception):
    """The campaign itself could not do what it wanted: not a finding about the library."""


def wait_for(condition: Callable[[], Any], timeout_s: float = SETTLE_S) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def state_of(pid: int) -> str:
    """The letter of a process's state; "" where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Program:
    """A process of the campaign that tells JSON lines on its standard output."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        log: Path,
        point_file: Path,
        point: str = "",
    ) -> None:
        self.point_file = point_file
        self.log = log
        self.heard: list[dict[str, Any]] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        if point:
            self.arm(point, 1)
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**env, points.VARIABLE: str(point_file)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self.pid = self.process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def hear(self, *wanted: str, timeout_s: float) -> dict[str, Any] | None:
        """The next word of those; None where it does not come in time, or the program ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            if line is None:
                self._lines.put(None)
                return None
            with contextlib.suppress(json.JSONDecodeError):
                word = json.loads(line)
                self.heard.append(word)
                if not wanted or word.get("at") in wanted:
                    return word  # type: ignore[no-any-return]

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def arm(self, point: str, count: int) -> None:
        """Have it stop when it comes to a point for the `count`-th time from now on."""
        fresh = self.point_file.with_suffix(".new")
        fresh.write_text(f"{point} {count}")
        fresh.rename(self.point_file)

    def disarm(self) -> None:
        self.point_file.unlink(missing_ok=True)

    def is_stopped(self) -> bool:
        return state_of(self.pid) == "T"

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        return self.log.read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """After its end."""
        self.process.wait(SETTLE_S)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.disarm()
        self.log.unlink(missing_ok=True)


@dataclass
class Running:
    """A viewer of the cell."""

    kind: str
    program: Program
    name: str
    address: str
    port: int
    base: dict[str, Counter[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.program.pid

    @property
    def tcp(self) -> str:
        """An address at which it is again when it was started again."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def is_java(self) -> bool:
        return self.kind.startswith("fiji")

    def counts(self) -> dict[str, Counter[str]]:
        """What must be as much after a trial as before, each by its kinds."""
        counts = {
            "descriptors": descriptors_of(self.pid),
            "arenas": Counter({"arena": len(arenas_of(self.pid))}),
        }
        if not self.is_java:  # Java's collector starts and ends threads as it likes
            counts["threads"] = threads_of(self.pid)
            # Qt paints with as many threads as a picture is large, one for each processor at most,
            # each with a descriptor, and ends those that had nothing to do for half a minute.
            pooled = min(counts["threads"][_QT_THREAD], len(os.sched_getaffinity(0)))
            counts["threads"][_QT_THREAD] -= pooled
            counts["descriptors"][_QT_DESCRIPTOR] -= pooled
        return counts

    def beyond_base(self) -> list[str]:
        """What it holds more than its base, a line each."""
        now = self.counts()
        return [
            f"{self.name} holds {now[what].total() - base.total()} more {what}: "
            + ", ".join(f"{count} {kind}" for kind, count in (now[what] - base).items())
            for what, base in self.base.items()
            if now[what].total() > base.total()
        ]


@dataclass
class Left:
    """What was left behind by a trial, each as a readable line; bytes as a sum."""

    nbytes: int = 0
    names: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)


class Cell:
    """One place for trials; the process that makes it becomes the cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.home = folder / "home"
        folder.mkdir(mode=0o700, exist_ok=True)
        for each in (self.run, self.home, folder / "tmp", folder / "points", folder / "logs"):
            each.mkdir(mode=0o700)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.has_own_shm = own_shm()
        self.shm_before = names_below(_SHM)
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME",
                     "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):  # fmt: skip
            os.environ.pop(name, None)
        os.environ |= {
            "HOME": str(self.home),
            "OPENHCS_STREAM_RUNTIME_DIR": str(self.run),
            "NAPARI_CONFIG": str(self.home / "napari.yaml"),
            "TMPDIR": str(folder / "tmp"),
        }
        tempfile.tempdir = None
        self.viewers: list[Running] = []
        self.programs: list[Program] = []
        self._number = 0

    # --- programs -------------------------------------------------------------------------------

    def worker(self, *, env: dict[str, str] | None = None, **orders: Any) -> Program:
        """Start a sender."""
        return self.start(
            [sys.executable, "-m", "scripts._campaign.worker", json.dumps(orders)], env
        )

    def start(
        self, command: Sequence[str], env: dict[str, str] | None = None, *, point: str = ""
    ) -> Program:
        """Start a program, which stops when it comes to `point`."""
        self._number += 1
        number = str(self._number)
        program = Program(
            command,
            {**os.environ, **(env or {})},
            self.folder / "logs" / number,
            self.folder / "points" / number,
            point,
        )
        self.programs.append(program)
        return program

    def viewer(self, kind: str, *, name: str = "", port: int = 0, point: str = "") -> Running:
        """Start a viewer, which stops when it comes to `point`.

        "+" behind the kind gives it a window, and an X server of its own.
        """
        self._number += 1
        name = name or f"{kind.rstrip('+')}-{self._number}"
        port = port or free_port()
        command = [
            sys.executable, "-m", "scripts._campaign.viewer", kind.rstrip("+"), "--json",
            "--name", name, "--port", str(port),
        ]  # fmt: skip
        if kind.endswith("+"):
            script = 'source "$1"; shift; bring_display program; exec "$@"'
            setup = str(ROOT / "scripts" / "_setup.sh")
            command = ["bash", "-c", script, "bash", setup, *command]
        else:
            command.append("--headless")
        before = self.names(self.run)
        started = self.start(command, point=point)
        word = started.hear(timeout_s=START_S)
        if word is None:
            started.kill()
            raise CellError(f"the {kind} viewer did not start: {started.last_words()}")
        viewer = Running(kind, started, name, word["addresses"][0], port)
        viewer.names = self.names(self.run) - before
        self.viewers.append(viewer)
        return viewer

    def ready_viewer(self, kind: str, *, besides: Sequence[Running] = ()) -> Running:
        """A viewer of that kind that lives, known to be well; started where there is none."""
        for viewer in self.viewers:
            if viewer.kind == kind and viewer not in besides and not viewer.program.is_over():
                return viewer
        viewer = self.viewer(kind)
        for _ in range(2):
            problem = self.check(viewer)
            if problem:
                raise CellError(f"a fresh viewer is not well: {problem}")
        self.settle_base(viewer)
        return viewer

    def revive(self, dead: Running, *, relapse: str = "") -> Running:
        """Start a viewer again that has died: of the same name, on the same port, for all who wait.

        Nothing is asked of it, for its senders may be back at once. It stops when it comes to
        `relapse`.
        """
        viewer = self.viewer(dead.kind, name=dead.name, port=dead.port, point=relapse)
        viewer.base = dead.base
        viewer.names |= dead.names  # some lie there already, and are its own now
        return viewer

    def settle_base(self, viewer: Running) -> None:
        """Take the counts that a viewer comes back to, once they stay the same."""
        steady, counts = 0, viewer.counts()
        deadline = time.monotonic() + SETTLE_S
        while steady < 10 and time.monotonic() < deadline:
            time.sleep(0.03)
            steady = steady + 1 if viewer.counts() == counts else 0
            counts = viewer.counts()
        viewer.base = counts

    # --- survivors ------------------------------------------------------------------------------

    def check(self, viewer: Running, *, timeout_s: float = 20.0) -> str:
        """Have a new sender served, and compare each pixel; what is wrong, or nothing."""
        random = np.random.default_rng()
        # Large enough for what lasts to begin in a fresh viewer: pyzmq's thread for large blobs.
        image = random.integers(0, 2**16, (240, 200), dtype=np.uint16)
        labels = random.integers(0, 200, (240, 200), dtype=np.uint16)
        square = np.array([(5.0, 5.0), (5.0, 30.0), (30.0, 30.0), (30.0, 5.0)])
        place = {"z": 0}
        try:
            with openhcs_stream.connect(
                viewer.address, name="check", timeout_s=timeout_s, launch=False
            ) as stream:
                stream.image(image, name="check", place=place)
                stream.labels(labels, name="check labels", place=place)
                stream.rois([square], name="check rois", place=place)
                stream.flush()
                for layer, sent in (("check", image), ("check labels", labels)):
                    found = stream.request("read", layer=layer, place=place)
                    shown = np.frombuffer(found["data"], found["dtype"]).reshape(found["shape"])
                    if not np.array_equal(shown, sent):
                        return f"{viewer.name} shows other pixels than were sent"
                stream.request("clear")
        except StreamError as error:
            return f"{viewer.name} did not serve a new sender: {type(error).__name__}: {error}"
        return ""

    def shown_twice(self, viewer: Running) -> str:
        """What a viewer displayed of a stream more than once in its life; or nothing."""
        try:
            status = openhcs_stream.ask(viewer.address, "status", timeout_s=20.0)
        except StreamError as error:
            return f"{viewer.name} did not tell its status: {type(error).__name__}: {error}"
        twice = status["campaign"]["twice"]
        return f"{viewer.name} displayed items twice: {twice}" if twice else ""

    def back_to_base(self, viewer: Running) -> list[str]:
        """What a surviving viewer holds beyond its base, when everything has had its time."""
        wait_for(lambda: not viewer.beyond_base())
        return viewer.beyond_base()

    def forget(self, viewer: Running) -> None:
        """A viewer has died."""
        self.viewers.remove(viewer)
        viewer.program.close()
        self.programs.remove(viewer.program)

    # --- what is left ---------------------------------------------------------------------------

    def strangers(self) -> dict[int, str]:
        """Processes below the cell that belong to no living viewer; reaps on the way.

        Where there is none, there is none. Whatever lives below the cell is, or is below, a child
        of the cell, which nobody but the cell reaps; so a look that finds nobody, not even
        somebody to reap, has missed nobody. One that reaped has proved nothing yet: that process
        may have gone on as a child that began behind the look's back, as launched viewers do.
        """
        known = {each.pid for each in self.programs}
        while True:
            found = tree(os.getpid(), besides={each.pid for each in self.viewers})
            reaped = False
            for pid, state in list(found.items()):
                if state == "Z" and pid not in known:
                    try:
                        over, _ = os.waitpid(pid, os.WNOHANG)
                    except ChildProcessError:  # its own parent lives, and is not done with it
                        over = pid
                    else:
                        reaped = reaped or over != 0
                    if over:  # else threads of it still run
                        del found[pid]
            if not reaped:
                return found

    def names(self, run: Path) -> set[str]:
        """Names that are nobody's who lives; logs are kept on purpose, one a kind, up to 1 MiB."""
        mine = {name for viewer in self.viewers for name in viewer.names}
        found = names_below(run) | names_below(self.home / ".openhcs")
        found |= names_below(_SHM) - self.shm_before
        return {name for name in found if not name.endswith(".log")} - mine

    def look(self, *, run: Path | None = None) -> Left:
        """Look at what a trial left, when everything has had its time; clean up behind it."""
        run = run or self.run
        left = Left()
        wait_for(lambda: not self.strangers())
        for pid, state in self.strangers().items():
            left.processes.append(f"{pid} ({state}) {_command(pid)}")
        before = self.names(run)
        self.sweep(run)
        wait_for(lambda: not self.names(run), 2.0)
        left.names = sorted(self.names(run))
        left.swept = sorted(before - set(left.names))
        for name in left.names:
            with contextlib.suppress(OSError):
                status = os.lstat(name)
                left.nbytes += status.st_blocks * 512 if name.startswith(str(_SHM)) else 0
        wait_for(lambda: not self.arena_nbytes())
        left.nbytes += self.arena_nbytes()
        self.clean(left)
        return left

    def arena_nbytes(self) -> int:
        """Arenas in viewers, and in what does not belong there: all of the workers are dead."""
        pids = [*(viewer.pid for viewer in self.viewers), *self.strangers()]
        return sum({arena.inode: arena.nbytes for pid in pids for arena in arenas_of(pid)}.values())

    def sweep(self, run: Path) -> None:
        """What `openhcs-stream gc` does, and every look for a running viewer."""
        before = os.environ["OPENHCS_STREAM_RUNTIME_DIR"]
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = str(run)
        try:
            getattr(discovery, "sweep", discovery.endpoints)()
        finally:
            os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = before

    def clean(self, left: Left) -> None:
        """Remove what was left, so that it is not counted twice."""
        for pid in self.strangers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in left.names:
            with contextlib.suppress(OSError):
                os.unlink(name)
        wait_for(lambda: not self.strangers())

    def end_programs(self) -> None:
        """Kill every program that is no viewer, and close what belonged to it."""
        for program in [*self.programs]:
            if all(program is not viewer.program for viewer in self.viewers):
                program.kill()
                program.close()
                self.programs.remove(program)

    def end(self) -> None:
        """End everything."""
        for viewer in [*self.viewers]:
            viewer.program.kill()
            self.forget(viewer)
        self.end_programs()
        self.clean(Left())


def own_shm() -> bool:
    """Give this process a /dev/shm of its own; False where the system does not let it."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)) != 0:
        return False
    try:
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        return False
    if libc.mount(b"none", b"/", None, _MS_PRIVATE_ALL, None) != 0:
        return False
    return bool(libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1g,mode=1777") == 0)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    except OSError:
        return ""
