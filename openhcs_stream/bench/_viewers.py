"""The receivers that a benchmark sends to, each a process of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from openhcs_stream.errors import ViewerUnreachable
from openhcs_stream.viewer import MemoryViewer, serve

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt

    from openhcs_stream.messages import LayerSpec

__all__ = ["Child", "serve_viewer", "start"]

_PAGE = 4096
#: Seconds that a receiver may take to start.
_START_S = 60.0


class TouchViewer(MemoryViewer):
    """The minimal viewer: it reads a byte of every page and keeps nothing."""

    name: ClassVar[str] = "touch"

    def keep(self, pixels: npt.NDArray[Any], recycled: Any, spec: LayerSpec) -> Any:
        """Read a byte of each page; what it "shows" is a single value, seen everywhere."""
        pixels.reshape(-1).view(np.uint8)[::_PAGE].max()
        return _nothing(pixels, recycled)


class MapViewer(TouchViewer):
    """As minimal, and it does not even look: what is left is the cost of telling."""

    name: ClassVar[str] = "map"

    def keep(self, pixels: npt.NDArray[Any], recycled: Any, spec: LayerSpec) -> Any:
        """Read nothing."""
        return _nothing(pixels, recycled)


def _nothing(pixels: npt.NDArray[Any], recycled: Any) -> Any:
    """What stands at the place already, as a viewer that writes over it would give."""
    if recycled is not None:
        return recycled
    return np.broadcast_to(pixels.dtype.type(0), pixels.shape)


VIEWERS: dict[str, type[MemoryViewer]] = {
    "touch": TouchViewer,
    "map": MapViewer,
    "keep": MemoryViewer,
}


class Child:
    """A process of this benchmark that said on its first line where it is.

    Parameters
    ----------
    *role : str
        What it is, see this package's ``__main__``.
    """

    def __init__(self, *role: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openhcs_stream.bench", *role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.address = self.read_line(_START_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_line(self, timeout_s: float) -> str:
        """Wait for a line.

        Raises
        ------
        ViewerUnreachable
            None came in time, or the process ended.
        """
        output = self._process.stdout
        assert output is not None
        deadline = time.monotonic() + timeout_s
        ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
        line = output.readline().strip() if ready else ""
        if not line:
            code = self._process.poll()
            self.close()
            raise ViewerUnreachable(
                f"a process of the benchmark said nothing within {timeout_s:g} s "
                f"(exit status {code}).",
                cure="Look at its messages above; `openhcs-stream doctor` may tell more.",
            )
        return line

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def minor_faults(self) -> int:
        """Page faults of the process so far that needed no disk."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return int(stat.read().rpartition(")")[2].split()[7])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start(name: str) -> Child:
    """Start a receiver: "touch", "map", "keep", or an installed viewer without a window."""
    if name in VIEWERS:
        return Child("viewer", name)
    return _Installed(name)


class _Installed(Child):
    """An installed viewer, found by its endpoint once it runs."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "openhcs_stream", name, "--headless", "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        import json

        self.address = json.loads(self.read_line(_START_S))["addresses"][0]


def serve_viewer(name: str) -> None:
    """Serve one of `VIEWERS` in this process and print its address."""
    serve(
        VIEWERS[name](),
        headless=True,
        on_ready=lambda endpoint: print(endpoint.addresses[0], flush=True),
    )
