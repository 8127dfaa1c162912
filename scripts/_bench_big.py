"""A z-stack that is larger than what either side may keep, plane by plane."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import openhcs_stream
from openhcs_stream.errors import Refused

if TYPE_CHECKING:
    import numpy.typing as npt

    from openhcs_stream import Stream

SIDE = 2048
PLANE_NBYTES = 2 * SIDE * SIDE
#: One of so many planes is read back at once, as soon as it is displayed.
_LOOK_EVERY = 64
_NOISE = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE), np.uint16)


def main() -> int:
    """Run it and print what was seen, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_big", description=__doc__)
    parser.add_argument("--gib", type=float, default=6.0, metavar="N")
    parser.add_argument("--quota", type=int, default=512, metavar="MIB")
    parser.add_argument("--viewer", default="memory", metavar="NAME")
    parser.add_argument("--memory", default="1G", metavar="SIZE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ohs-") as folder:
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = folder
        viewer = subprocess.Popen(
            [
                sys.executable, "-m", "openhcs_stream", arguments.viewer, "--headless", "--json",
                "--memory", arguments.memory, "--when-full", "oldest",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        try:
            assert viewer.stdout is not None
            address = json.loads(viewer.stdout.readline())["addresses"][0]
            seen = run(address, viewer.pid, int(arguments.gib * 2**30), arguments.quota << 20)
        finally:
            viewer.terminate()
            viewer.wait(30)
    if arguments.json:
        print(json.dumps(seen))
    else:
        for name, value in seen.items():
            print(f"{name:24s} {value}")
    return int(not seen["as_it_should_be"])


def run(address: str, viewer: int, nbytes: int, quota_nbytes: int) -> dict[str, Any]:
    """Stream the stack and look at what comes of it."""
    count = nbytes // PLANE_NBYTES
    wrong: list[int] = []
    most_shared = most_reserved = checked = 0
    wanted_by_looks = 0.0
    with (
        Watch(viewer) as watch,
        openhcs_stream.connect(address, quota_nbytes=quota_nbytes, timeout_s=120) as stream,
    ):
        began = time.perf_counter()
        receipts = []
        for z in range(count):
            receipts.append(stream.image(plane(z), name="stack", place={"z": z}))
            pool = stream._pool  # noqa: SLF001 - nobody else knows
            most_reserved = max(most_reserved, pool.stats().reserved_nbytes)
            shared = sum(512 * os.fstat(arena.fd).st_blocks for arena in pool.arenas())
            most_shared = max(most_shared, shared)
            if z % _LOOK_EVERY == 0:
                looked = time.perf_counter()
                receipts[-1].wait()
                checked += 1
                if not is_right(stream, z):
                    wrong.append(z)
                wanted_by_looks += time.perf_counter() - looked
        stream.flush(120)
        took = time.perf_counter() - began - wanted_by_looks
        displayed = sum(receipt.state == "displayed" for receipt in receipts)
        left = 0
        for z in range(count):
            try:
                right = is_right(stream, z)
            except Refused:
                continue  # it had to make room
            left += 1
            if not right:
                wrong.append(z)
    return {
        "planes": count,
        "gib": round(count * PLANE_NBYTES / 2**30, 2),
        "quota_mib": quota_nbytes >> 20,
        "most_reserved_mib": most_reserved >> 20,
        "most_shared_mib": most_shared >> 20,
        "sender_peak_mib": watch.peak_kib[os.getpid()] >> 10,
        "viewer_peak_mib": watch.peak_kib[viewer] >> 10,
        "displayed": displayed,
        "read_at_once": checked,
        "left_at_the_end": left,
        "wrong": wrong,
        "seconds": round(took, 2),
        "gib_a_second": round(count * PLANE_NBYTES / 2**30 / took, 2),
        "as_it_should_be": (
            displayed == count and not wrong and left > 0 and most_shared <= quota_nbytes
            and most_reserved <= quota_nbytes
        ),
    }  # fmt: skip


def plane(z: int) -> npt.NDArray[np.uint16]:
    """Another one at each z."""
    return _NOISE ^ np.uint16(z)


def is_right(stream: Stream, z: int) -> bool:
    """Whether the viewer has that plane as it was sent."""
    found = stream.request("read", name="stack", place={"z": z})
    return bool(np.array_equal(np.frombuffer(found["data"], np.uint16), plane(z).ravel()))


class Watch:
    """The most memory that this process and another have, of their own and shared."""

    def __init__(self, *others: int) -> None:
        self.peak_kib = dict.fromkeys((os.getpid(), *others), 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            for pid in self.peak_kib:
                status = Path(f"/proc/{pid}/status").read_text()
                kib = int(status.split("VmRSS:")[1].split()[0])
                self.peak_kib[pid] = max(self.peak_kib[pid], kib)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


if __name__ == "__main__":
    raise SystemExit(main())
