"""What this machine can do at most: copies, fresh memory, round trips."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from openhcs_stream.bench._report import Figure
from openhcs_stream.pixels import PixelPool

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["BareCopy", "measure_limits", "sources"]

#: Together larger than any cache, so that what is copied comes from memory as a camera's would.
_SOURCES_NBYTES = 192 << 20
_ROUND_TRIPS = 500


def sources(nbytes: int) -> list[npt.NDArray[np.uint16]]:
    """Images of that many bytes, more of them than fit into a cache."""
    count = max(2, min(64, _SOURCES_NBYTES // nbytes))
    rng = np.random.default_rng(0)
    side = int((nbytes // 2) ** 0.5)
    shape = (nbytes // 2 // side, side)
    first = rng.integers(0, 4096, shape, np.uint16)
    return [np.roll(first, number, axis=0) for number in range(count)]


class BareCopy:
    """`np.copyto` into the slots of a pool like a stream's: nothing else."""

    def __init__(self, images: list[npt.NDArray[np.uint16]]) -> None:
        self._images = images
        self._pool = PixelPool(quota_nbytes=1 << 30)
        nbytes = images[0].nbytes
        slots = []
        for _ in range(4):
            slot = self._pool.acquire(nbytes)
            if slot is not None:
                slots.append(slot.array(images[0].shape, "<u2"))
        self._slots = slots

    def run(self, count: int) -> float:
        """Copy `count` images; returns seconds."""
        images, slots = self._images, self._slots
        begin = time.perf_counter()
        for number in range(count):
            np.copyto(slots[number % len(slots)], images[number % len(images)])
        return time.perf_counter() - begin

    def run_beside(self, other: BareCopy, count: int) -> float:
        """As `run`, while another copies as many: what a viewer that keeps each image comes to."""
        thread = threading.Thread(target=other.run, args=(count,))
        begin = time.perf_counter()
        thread.start()
        self.run(count)
        thread.join()
        return time.perf_counter() - begin

    def close(self) -> None:
        """Let go of the memory."""
        self._slots.clear()
        self._pool.close()


def measure_limits(rounds: int) -> dict[str, Figure]:
    """Copies between warm memory, into fresh memory (GB/s), and round trips (microseconds)."""
    nbytes = 8 << 20
    source = np.ones(nbytes, np.uint8)
    target = np.ones(nbytes, np.uint8)
    found = {
        "copy_8MiB_GB_per_s": _rates(lambda: np.copyto(target, source), nbytes, rounds),
        "fresh_shared_memory_8MiB_GB_per_s": _rates(lambda: _fresh(source), nbytes, rounds),
        "round_trip_unix_us": Figure.of([_round_trip() for _ in range(max(3, rounds // 2))]),
    }
    return found


def _rates(act: Callable[[], object], nbytes: int, rounds: int) -> Figure:
    act()
    values = []
    for _ in range(max(3, rounds)):
        begin = time.perf_counter()
        for _ in range(8):
            act()
        values.append(8 * nbytes / (time.perf_counter() - begin) / 1e9)
    return Figure.of(values)


def _fresh(source: npt.NDArray[Any]) -> None:
    """A copy into memory that nobody has used yet, as one segment for each image needs it."""
    pool = PixelPool(quota_nbytes=8 * source.nbytes)
    try:
        slot = pool.acquire(source.nbytes)
        assert slot is not None
        np.copyto(slot.array(source.shape, "|u1"), source)
    finally:
        pool.close()


def _round_trip() -> float:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        while (data := there.recv(64)) != b"":
            there.send(data)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    begin = time.perf_counter()
    for _ in range(_ROUND_TRIPS):
        here.send(b"ping")
        here.recv(64)
    spent = time.perf_counter() - begin
    here.close()
    thread.join()
    there.close()
    return spent / _ROUND_TRIPS * 1e6
