"""Named shared memory, receivers, and senders of other projects: real, and cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream.viewer import MemoryViewer, Receiver
from scripts._ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

    from openhcs_stream.viewer import SceneLayer, Viewer

if not sys.platform.startswith("linux"):
    pytest.skip("named shared memory is read on Linux only", allow_module_level=True)

SHM = Path("/dev/shm")
SENDER = Path(__file__).with_name("plain_sender.py")


class Blocks:
    """Makes named blocks, and knows which of them are still there."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def new_name(self) -> str:
        """A name as the first generation gives it."""
        name = f"fiji_{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        return name

    def fill(self, content: npt.NDArray[np.generic] | bytes, name: str | None = None) -> str:
        """A block that holds an array's bytes in C order; its name."""
        name = name or self.new_name()
        data = content if isinstance(content, bytes) else content.tobytes()
        # What shm_open does on Linux. multiprocessing.shared_memory would have its tracker remove
        # the block at the end of the test, and hide what the receiver leaves behind.
        with open(
            SHM / name, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as block:
            block.write(data)
        return name

    def exists(self, name: str) -> bool:
        return os.path.lexists(SHM / name)


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    made = Blocks()
    yield made
    for name in made.names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SHM / name)


def until(reached: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := reached()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)
    return value


class Running:
    """A viewer that is being served, and stopped at the end."""

    def __init__(self, viewer: Viewer | None = None, **options: Any) -> None:
        self.viewer = viewer or MemoryViewer()
        self.port = free_port()
        self.receiver = Receiver(self.viewer, port=self.port, **options)
        self.receiver.start()
        self.thread = threading.Thread(target=self.viewer.run, args=(self.receiver.tick, 0.01))
        self.thread.start()

    @property
    def layers(self) -> list[SceneLayer]:
        """What is shown, in the order in which it came."""
        return list(self.receiver.scene.layers.values())

    def layer(self, kind: str) -> SceneLayer:
        """The one layer of a kind."""
        (found,) = (layer for layer in self.layers if layer.kind == kind)
        return found

    def stop(self) -> None:
        self.viewer.stop()
        self.thread.join(10)
        self.receiver.close()


@pytest.fixture
def running(home: Path) -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Running]]:
    """Serves viewers of a test's own: (viewer, and what a `Receiver` takes)."""
    served: list[Running] = []

    def start(viewer: Viewer, **options: Any) -> Running:
        served.append(Running(viewer, **options))
        return served[-1]

    yield start
    for each in served:
        each.stop()


class PlainSender:
    """A process of `plain_sender.py`."""

    def __init__(
        self,
        generation: int,
        viewer: str,
        port: int,
        *,
        mode: str = "ipc",
        family: str = "openhcs",
        listen: bool = True,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SENDER), str(generation), viewer, str(port), mode, family],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if listen:
            self.do("listen")

    def tell(self, do: str, **task: Any) -> None:
        """Begin something; `hear` gives its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **task}) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"a plain sender ended: {self._errors()}"
        return json.loads(line)

    def do(self, do: str, **task: Any) -> Any:
        """Have it do something; its answer."""
        self.tell(do, **task)
        return self.hear()

    def send(self, *items: dict[str, Any], **envelope: Any) -> Any:
        """Send a batch: {"ids": ..., "reply": ...}."""
        return self.do("send", items=list(items), **envelope)

    def acks(self, count: int, timeout_s: float = 15.0) -> dict[str, Any]:
        """Acknowledgements by id; no id is told of twice."""
        found = self.do("acks", count=count, timeout_s=timeout_s)["acks"]
        by_id = {ack["image_id"]: ack for ack in found}
        assert len(by_id) == len(found)
        return by_id

    def control(self, type_: str, **more: Any) -> Any:
        """The answer to a control request."""
        return self.do("control", request={"type": type_, **more})["answer"]

    def _errors(self) -> str:
        return self.process.communicate(timeout=10)[1]

    def close(self) -> None:
        if self.process.poll() is None:
            _, errors = self.process.communicate(timeout=10)
            assert errors == ""
            assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def start_sender(home: Path) -> Iterator[Callable[..., PlainSender]]:
    """Starts senders: (generation, viewer, port, mode=, family=, listen=)."""
    started: list[PlainSender] = []

    def start(*arguments: Any, **options: Any) -> PlainSender:
        started.append(PlainSender(*arguments, **options))
        return started[-1]

    yield start
    for sender in started:
        sender.close()
