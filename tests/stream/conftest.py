"""Receivers for the worker's side to talk to: in a thread, and as a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream import discovery
from openhcs_stream.viewer import TICK_S, MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Served:
    """A receiver that runs in this process."""

    viewer: MemoryViewer
    receiver: Receiver

    @property
    def address(self) -> str:
        endpoint = self.receiver.endpoint
        assert endpoint is not None
        return endpoint.addresses[0]


@pytest.fixture
def serve_here() -> Iterator[Callable[..., Served]]:
    """Start receivers on threads of this process; keywords are those of `Receiver`."""
    running: list[tuple[Served, threading.Thread]] = []

    def start(viewer: MemoryViewer | None = None, **options: object) -> Served:
        served = Served(viewer or MemoryViewer(), None)  # type: ignore[arg-type]
        served.receiver = Receiver(served.viewer, **options)  # type: ignore[arg-type]
        served.receiver.start()
        thread = threading.Thread(
            target=served.viewer.run, args=(served.receiver.tick, TICK_S), daemon=True
        )
        thread.start()
        running.append((served, thread))
        return served

    yield start
    for served, thread in running:
        served.viewer.stop()
        thread.join(10)
        served.receiver.close()


@pytest.fixture
def served(serve_here: Callable[..., Served]) -> Served:
    return serve_here()


@pytest.fixture
def viewer_process() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start viewers as processes; gives (process, address). What still runs is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(*required: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve_memory.py")), *required],
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "the viewer process ended at once"
        return process, address

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    # Whoever looks for viewers next removes the files of those that were killed.
    assert all(each.pid == os.getpid() for each in discovery.endpoints())
