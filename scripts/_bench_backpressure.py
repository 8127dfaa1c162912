"""How long a send takes, by policy, whatever the viewer does: serves, is stopped, is dead.

A worker sends at a camera's pace to a viewer process of its own. What a call takes longer than the
bare copy of its pixels is what the viewer's state, the books and the messages cost it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.errors import StreamError, ViewerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import WhenFull

POLICIES: tuple[WhenFull, ...] = ("drop", "latest", "sample")
STATES = ("serves", "stopped", "killed", "back")
#: Name, shape, images a second.
CASES = (("128 KiB", (256, 256), 200.0), ("8 MiB", (2048, 2048), 30.0))


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_backpressure", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="a row; default: 5")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print("what a send takes longer than the bare copy, ms")
        print(f"{'image':8} {'policy':7} {'viewer':8} {'p50':>7} {'p99':>7} {'most':>7}   "
              "sent dropped")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ohs-") as folder:
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = folder
        for name, shape, pace in CASES:
            for policy in POLICIES:
                for row in measure(name, shape, pace, policy, arguments.seconds):
                    rows.append(row)
                    if not arguments.json:
                        print(f"{name:8} {policy:7} {row['state']:8} {row['p50_ms']:7.2f} "
                              f"{row['p99_ms']:7.2f} {row['most_ms']:7.2f}  {row['sent']:5} "
                              f"{row['dropped']:7}", flush=True)  # fmt: skip
    worst = max(row["p99_ms"] for row in rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "worst_p99_ms": worst}))
    else:
        print(f"worst p99: {worst:.2f} ms")
    return 0


def measure(
    name: str, shape: tuple[int, int], pace: float, policy: WhenFull, seconds: float
) -> Iterator[dict[str, Any]]:
    """One stream under one policy, through all states of its viewer."""
    image = np.random.default_rng(0).integers(0, 4096, shape, np.uint16)
    bare_s = bare_copy_s(image)
    viewer = start_viewer()
    stream = openhcs_stream.connect("memory", launch=False, when_full=policy)
    with contextlib.closing(stream):

        def send(t: int) -> object:
            return stream.image(image, name="it", place={"time": t})

        for t in range(20):
            stream.image(image, name="it", place={"time": t}).wait()
        for state in STATES:
            if state == "stopped":
                viewer.send_signal(signal.SIGSTOP)
            elif state == "killed":
                viewer.kill()
                viewer.wait()
            elif state == "back":
                viewer = start_viewer()
                while not stream.viewers:
                    time.sleep(0.01)
            before = stream.status()[0]
            spans = timed(
                lambda t: stream.image(image, name="it", place={"time": t}), pace, seconds
            )
            after = stream.status()[0]
            own = sorted(max(0.0, 1e3 * (span - bare_s)) for span in spans)
            yield {
                "image": name,
                "policy": policy,
                "state": state,
                "p50_ms": round(statistics.median(own), 3),
                "p99_ms": round(own[int(len(own) * 0.99)], 3),
                "most_ms": round(own[-1], 3),
                "bare_copy_ms": round(1e3 * bare_s, 3),
                "sent": after.sent - before.sent,
                "dropped": after.dropped - before.dropped,
            }
        with contextlib.suppress(StreamError):
            stream.flush(timeout_s=20)
    viewer.kill()
    viewer.wait()


def timed(send: Callable[[int], object], pace: float, seconds: float) -> list[float]:
    """Call at a pace; how long each call took. One that fails at once is one too."""
    spans = []
    start = due = time.perf_counter()
    count = 0
    while due - start < seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        begin = time.perf_counter()
        with contextlib.suppress(ViewerLost):
            send(count)
        spans.append(time.perf_counter() - begin)
        count += 1
        due += 1 / pace
    return spans


def bare_copy_s(image: np.ndarray[Any, Any]) -> float:
    """What copying the image to memory that is there takes; the median."""
    out = np.empty_like(image)
    spans = []
    for _ in range(30):
        begin = time.perf_counter()
        np.copyto(out, image)
        spans.append(time.perf_counter() - begin)
    return statistics.median(spans)


def start_viewer() -> subprocess.Popen[bytes]:
    """A viewer that keeps the newest 256 MiB, in a process of its own."""
    before = {each.pid for each in discovery.endpoints()}
    viewer = subprocess.Popen(
        [sys.executable, "-c", "from openhcs_stream.viewer import MemoryViewer, serve; "
         "serve(MemoryViewer(), memory_nbytes=256 << 20, when_memory_full='oldest')"]
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not {each.pid for each in discovery.endpoints()} - before:
        if viewer.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the viewer did not start")
        time.sleep(0.01)
    return viewer


if __name__ == "__main__":
    raise SystemExit(main())
