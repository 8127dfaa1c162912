"""Fixtures for tests of what uses openhcs-stream; pytest finds them where it is installed.

Only fixtures, each imported when a test asks for it: other projects' tests are left alone.

=================== =============================================================================
`no_leaks`          The test fails if it leaves threads, children, descriptors, memory or files.
`stream_runtime`    A runtime folder and a home of the test's own: no running viewer is found.
`memory_receiver`   A receiver with a viewer in memory, on a thread; connect to its ``address``.
`inproc_receiver`   The same without any socket.
=================== =============================================================================
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openhcs_stream.testing import RunningReceiver
    from openhcs_stream.viewer import MemoryViewer

__all__ = ["inproc_receiver", "memory_receiver", "no_leaks", "stream_runtime"]

pytest.register_assert_rewrite("openhcs_stream.testing._conformance")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail if the test leaves something behind; what earlier fixtures hold is theirs."""
    from openhcs_stream.testing import watch_leaks

    with watch_leaks():
        yield


@pytest.fixture
def stream_runtime() -> Iterator[Path]:
    """Point OPENHCS_STREAM_RUNTIME_DIR and HOME at empty folders, for children as well.

    Yields
    ------
    Path
        The runtime folder. It has a short name: that of a unix socket has room for 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="ohs-"))
    runtime, home = folder / "run", folder / "home"
    for each in (runtime, home):
        each.mkdir(mode=0o700)
    # Without its key no program gets at the display.
    key = Path.home() / ".Xauthority"
    with pytest.MonkeyPatch.context() as patch:
        if "XAUTHORITY" not in os.environ and key.exists():
            patch.setenv("XAUTHORITY", str(key))
        patch.setenv("HOME", str(home))
        patch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(runtime))
        yield runtime
    shutil.rmtree(folder)


@pytest.fixture
def memory_receiver(stream_runtime: Path) -> Iterator[RunningReceiver[MemoryViewer]]:
    """A receiver over a `MemoryViewer`, on a thread: ``connect(memory_receiver.address)``."""
    from openhcs_stream.testing import run_receiver
    from openhcs_stream.viewer import MemoryViewer

    with run_receiver(MemoryViewer()) as running:
        yield running


@pytest.fixture
def inproc_receiver(stream_runtime: Path) -> Iterator[RunningReceiver[MemoryViewer]]:
    """As `memory_receiver`, over the in-process lane: "inproc://NAME"."""
    from openhcs_stream.testing import run_receiver
    from openhcs_stream.viewer import MemoryViewer

    with run_receiver(MemoryViewer(), in_process=True) as running:
        yield running
