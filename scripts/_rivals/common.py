"""What every program of a comparison has in common; imports the standard library and numpy only.

A *sender* reads a line of JSON for each block ({"mode", "nbytes", "count"}) and answers with one
({"seconds", "blocked_us", "latency_us"}). A *receiver* touches each page of each image and counts
it in a small shared file, by which the sender knows that all have arrived.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
#: How long a block may take.
BLOCK_S = 120.0
_SOURCES_NBYTES = 192 << 20


def side(nbytes: int) -> int:
    """The images are square: so many uint16 on a side."""
    return int((nbytes // 2) ** 0.5)


def images(nbytes: int) -> list[np.ndarray]:
    """More images than fit into a cache."""
    count = max(2, min(64, _SOURCES_NBYTES // nbytes))
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4096, (side(nbytes), side(nbytes)), np.uint16)
    return [np.roll(first, number, axis=0) for number in range(count)]


def touch(pixels: np.ndarray) -> None:
    """Read a byte of each page."""
    pixels.reshape(-1).view(np.uint8)[::PAGE].max()


class Progress:
    """A number in a file that both sides map."""

    def __init__(self, path: str) -> None:
        if not Path(path).exists():
            Path(path).write_bytes(bytes(8))
        self._file = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self._file, 8)
        self._count = self.value

    @property
    def value(self) -> int:
        found: int = struct.unpack_from("<q", self._map)[0]
        return found

    def add(self, count: int = 1) -> None:
        self._count += count
        struct.pack_into("<q", self._map, 0, self._count)

    def wait(self, value: int) -> None:
        """Wait until it is reached; it looks all the time for a while, then less often."""
        begin = time.perf_counter()
        while self.value < value:
            waited = time.perf_counter() - begin
            if waited > BLOCK_S:
                raise TimeoutError(f"{self.value} of {value} images arrived in {BLOCK_S} s")
            if waited > 0.002:
                time.sleep(0.0002)


def drive(
    modes: dict[str, Callable[[np.ndarray], object]],
    progress: Progress | None,
    finish: Callable[[], object] = lambda: None,
    wait_one: Callable[[], object] | None = None,
) -> None:
    """Do the blocks that the input asks for.

    `modes` are ways to send one image. Everything has arrived when `finish` returns and, where
    there is one, `progress` says so; `wait_one` does the same for the image sent last.
    """
    print("ready", flush=True)
    made: dict[int, list[np.ndarray]] = {}
    for line in sys.stdin:
        task = json.loads(line)
        nbytes, count = task["nbytes"], task["count"]
        sources = made.get(nbytes)
        if sources is None:
            made.clear()
            sources = made[nbytes] = images(nbytes)
        send = modes[task["mode"]]
        answer: dict[str, float] = {}
        before = progress.value if progress is not None else 0
        if task.get("lockstep"):
            spans = []
            for number in range(count):
                begin = time.perf_counter()
                send(sources[number % len(sources)])
                if wait_one is not None:
                    wait_one()
                else:
                    finish()
                if progress is not None:
                    progress.wait(before + number + 1)
                spans.append(time.perf_counter() - begin)
            answer["latency_us"] = statistics.median(spans) * 1e6
        else:
            blocked = []
            begin = time.perf_counter()
            for number in range(count):
                start = time.perf_counter()
                send(sources[number % len(sources)])
                blocked.append(time.perf_counter() - start)
            finish()
            if progress is not None:
                progress.wait(before + count)
            answer["seconds"] = time.perf_counter() - begin
            answer["blocked_us"] = statistics.median(blocked) * 1e6
        print(json.dumps(answer), flush=True)


def role() -> tuple[str, str, str]:
    """("receive" or "send", address, progress file) of this program."""
    _, what, address, path = sys.argv
    return what, address, path
