"""Running viewers for the commands to act on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.discovery import endpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass
class Started:
    """A viewer process that was started by the command."""

    process: subprocess.Popen[str]
    line: str = field(default="")  #: what it printed when it was ready

    @property
    def pid(self) -> int:
        return self.process.pid


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``openhcs-stream`` as a process of its own."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "openhcs_stream", *words],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Start a viewer in the foreground and wait until it says that it is ready."""
    running: list[subprocess.Popen[str]] = []

    def start_one(*options: str, kind: str = "memory") -> Started:
        process = subprocess.Popen(
            [sys.executable, "-m", "openhcs_stream", kind, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            assert process.stderr is not None
            pytest.fail(f"it did not start: {process.stderr.read()}")
        return Started(process, line.strip())

    yield start_one
    for process in running:
        with process:
            process.kill()


@pytest.fixture
def detached() -> Iterator[Sequence[None]]:
    """Ends, after the test, what it left running in the background."""
    yield ()
    for endpoint in endpoints():
        os.kill(endpoint.pid, signal.SIGKILL)
