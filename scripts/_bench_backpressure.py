"""How long a send takes, by policy, whatever the viewer does: serves, is stopped, is dead.

A worker sends at a camera's pace to a viewer process of its own. What a call takes longer than the
bare copy of its pixels is what the viewer's state, the books and the messages cost it. A call that
copied nothing, as its item was dropped, has nothing taken off.

The bare copy is made in the same thread, half a period after each send, to memory that was written
some time ago: so is what a stream copies to, slot after slot. A copy repeated at once to the same
memory finds it in the processor's cache and takes a third of that time, which no sender at a
camera's pace ever sees.

Where other work shares the processors, a thread is put aside in the middle of a send or of a copy.
The kernel counts for how long (schedstat): "running" is without it, "bare" is the copies' own p99
over their median, with it. What holds a caller up on any machine, locks, waits and faults, is in
both. Faults are those of the calling thread, at most in one send and in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.errors import StreamError, ViewerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import WhenFull

POLICIES: tuple[WhenFull, ...] = ("drop", "latest", "sample")
STATES = ("serves", "stopped", "killed", "back")
#: Name, shape, images a second, seconds a row.
CASES = (("128 KiB", (256, 256), 200.0, 5.0), ("8 MiB", (2048, 2048), 30.0, 15.0))
#: Memory that bare copies go to in turn: more than a processor's cache.
RING_NBYTES = 128 << 20


class Call(NamedTuple):
    """One send, or one bare copy: seconds, how long it waited for a processor, page faults."""

    took_s: float
    waited_s: float
    faults: int
    copied: bool = True


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_backpressure", description=__doc__)
    parser.add_argument("--seconds", type=float, help="a row; default: 5, of 8 MiB 15")
    parser.add_argument("--image", choices=[case[0] for case in CASES], help="only this size")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print("what a send takes longer than the bare copy, ms")
        print(f"{'image':8} {'policy':7} {'viewer':8} {'p50':>7} {'p99':>7} {'most':>7} "
              f"{'running: p99':>13} {'most':>6} {'bare':>6} {'faults':>9}   "
              "sent dropped load")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ohs-") as folder:
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = folder
        for name, shape, pace, seconds in CASES:
            if arguments.image not in (None, name):
                continue
            for policy in POLICIES:
                for row in measure(name, shape, pace, policy, arguments.seconds or seconds):
                    rows.append(row)
                    if not arguments.json:
                        faults = f"{row['faults_most']}/{row['faults']}"
                        print(f"{name:8} {policy:7} {row['state']:8} {row['p50_ms']:7.2f} "
                              f"{row['p99_ms']:7.2f} {row['most_ms']:7.2f} "
                              f"{row['running_p99_ms']:13.2f} {row['running_most_ms']:6.2f} "
                              f"{row['bare_p99_ms']:6.2f} {faults:>9}  {row['sent']:5} "
                              f"{row['dropped']:7} {row['load']:4.1f}", flush=True)  # fmt: skip
    worst = max(row["p99_ms"] for row in rows)
    running = max(row["running_p99_ms"] for row in rows)
    if arguments.json:
        print(json.dumps({"rows": rows, "worst_p99_ms": worst, "worst_running_p99_ms": running}))
    else:
        print(f"worst p99: {worst:.2f} ms; running: {running:.2f} ms")
    return 0


def measure(
    name: str, shape: tuple[int, int], pace: float, policy: WhenFull, seconds: float
) -> Iterator[dict[str, Any]]:
    """One stream under one policy, through all states of its viewer."""
    image = np.random.default_rng(0).integers(0, 4096, shape, np.uint16)
    copy = bare_copy(image)
    viewer = start_viewer()
    stream = openhcs_stream.connect("memory", launch=False, when_full=policy)
    with contextlib.closing(stream):

        def send(t: int) -> bool:
            """Send one; whether its pixels were copied."""
            try:
                return stream.image(image, name="it", place={"time": t}).state != "dropped"
            except ViewerLost:
                return False

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
            sends, copies = timed(send, copy, pace, seconds)
            after = stream.status()[0]
            bare = statistics.median(call.took_s for call in copies)
            run = statistics.median(call.took_s - call.waited_s for call in copies)
            over = sorted(1e3 * max(0.0, x.took_s - bare * x.copied) for x in sends)
            running = sorted(1e3 * max(0.0, x.took_s - x.waited_s - run * x.copied) for x in sends)
            over_bare = sorted(1e3 * (x.took_s - bare) for x in copies)
            yield {
                "image": name,
                "policy": policy,
                "state": state,
                "p50_ms": round(statistics.median(over), 3),
                "p99_ms": round(p99(over), 3),
                "most_ms": round(over[-1], 3),
                "running_p99_ms": round(p99(running), 3),
                "running_most_ms": round(running[-1], 3),
                "bare_copy_ms": round(1e3 * bare, 3),
                "bare_p99_ms": round(p99(over_bare), 3),
                "faults": sum(x.faults for x in sends),
                "faults_most": max(x.faults for x in sends),
                "load": round(os.getloadavg()[0], 1),
                "sent": after.sent - before.sent,
                "dropped": after.dropped - before.dropped,
            }
        with contextlib.suppress(StreamError):
            stream.flush(timeout_s=20)
    viewer.kill()
    viewer.wait()


def p99(ordered: list[float]) -> float:
    """The value that one of a hundred is above."""
    return ordered[int(len(ordered) * 0.99)]


def timed(
    send: Callable[[int], bool], copy: Callable[[int], bool], pace: float, seconds: float
) -> tuple[list[Call], list[Call]]:
    """Send at a pace, and copy as often, in between. A call that fails at once is one too."""
    sends: list[Call] = []
    copies: list[Call] = []
    start = due = time.perf_counter()
    while due - start < seconds:
        for calls, call in ((sends, send), (copies, copy)):
            time.sleep(max(0.0, due - time.perf_counter()))
            waited, faults = waited_s(), faults_here()
            begin = time.perf_counter()
            copied = call(len(calls))
            took = time.perf_counter() - begin
            calls.append(Call(took, waited_s() - waited, faults_here() - faults, copied))
            due += 0.5 / pace
    return sends, copies


def waited_s() -> float:
    """How long this thread has waited for a processor although it could run; 0 if unknown."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


def faults_here() -> int:
    """Page faults of this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def bare_copy(image: np.ndarray[Any, Any]) -> Callable[[int], bool]:
    """What copies the image to the next piece of a ring of memory that is there."""
    pixels = image.copy()
    ring = [np.zeros_like(image) for _ in range(RING_NBYTES // image.nbytes)]
    for out in ring:
        out[:] = 1

    def copy(number: int) -> bool:
        np.copyto(ring[number % len(ring)], pixels)
        return True

    return copy


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
