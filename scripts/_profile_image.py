"""Where the time of one image goes, on its way through the sender and through the viewer.

Both sides run twice, in processes of their own: plainly, for the processor time of each, and
under Python's profiler, for its shares. The profiler makes calls dearer, so that only shares are
taken from it; they are given as parts of the plain time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import openhcs_stream
from openhcs_stream.viewer import MemoryViewer, Receiver, serve

#: What belongs to a step, by the end of its file's name and perhaps the function's.
STEPS = (
    ("copy of the pixels", ("copy_into", "_batch.py put_small", "_base.py keep")),
    ("system calls", ("'send' of", "recvmsg_into", "'poll' of", "'recv' of")),
    ("encode, decode", ("msgspec", "messages.py")),
    ("check the call, place, layer", ("_sending.py", "_payload.py", "_layers.py", "_stream.py")),
    ("memory: slots and leases", ("_pool.py", "_arena.py", "_mapping.py", "_device.py")),
    ("credit and policy", ("_room.py", "_batch.py", "_links.py", "_lead.py")),
    ("receipts and accounts", ("_books.py", "_receipt.py", "_item.py", "_account.py")),
    ("protocol", ("_sender.py", "_receiver.py", "_effects.py", "_link.py", "_sessions.py")),
    ("queue tracker", ("tracker.py", "_counts.py")),
    ("place it in the viewer", ("_kept.py", "_placement.py", "_budget.py", "_base.py")),
    ("receiver, scene, layers", ("_serve.py", "_scene.py", "_stack.py", "_memory.py")),
    ("lanes, in Python", ("_unix.py", "_zmq.py", "_lane.py", "_wake.py")),
)


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/profile_image", description=__doc__)
    parser.add_argument("--side", type=int, default=181, help="pixels; default: 181 (64 KiB)")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1, help="images in a message; default: 1")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--viewer", choices=("plain", "profiled"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.viewer:
        return serve_here(is_profiled=arguments.viewer == "profiled")
    with tempfile.TemporaryDirectory(prefix="ohs-") as folder:
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = folder
        plain = run(arguments, is_profiled=False)
        profiled = run(arguments, is_profiled=True)
    result: dict[str, Any] = {
        side: {
            "cpu_us": plain[side]["cpu_us"],
            "share": profiled[side]["share"],
        }
        for side in ("sender", "viewer")
    }
    if arguments.json:
        print(json.dumps(result))
        return 0
    for side, found in result.items():
        print(f"{side}: {found['cpu_us']:.1f} microseconds of processor time an image")
        for step, share in found["share"].items():
            if share >= 0.005:
                print(f"  {step:34} {found['cpu_us'] * share:6.1f}   {100 * share:4.0f} %")
    return 0


def run(arguments: argparse.Namespace, *, is_profiled: bool) -> dict[str, Any]:
    """Send the images to a viewer of its own; what each side took."""
    kind = "profiled" if is_profiled else "plain"
    viewer = subprocess.Popen(
        [sys.executable, __file__, "--viewer", kind], stdout=subprocess.PIPE, text=True
    )
    assert viewer.stdout is not None
    address = viewer.stdout.readline().strip()
    image = np.zeros((arguments.side, arguments.side), np.uint16)
    profile = cProfile.Profile(time.thread_time)
    with openhcs_stream.connect(address) as stream:

        def send(count: int) -> None:
            for first in range(0, count, arguments.batch):
                if arguments.batch == 1:
                    stream.image(image, name="it", place={"z": first % 8})
                else:
                    with stream.batch():
                        for z in range(arguments.batch):
                            stream.image(image, name="it", place={"z": z % 8})
            stream.flush()

        send(2000)
        begin = time.process_time()
        if is_profiled:
            profile.enable()
        send(arguments.images)
        profile.disable()
        cpu_s = time.process_time() - begin
    openhcs_stream.ask(address, "stop")
    told = json.loads(viewer.stdout.read())
    viewer.wait(20)
    viewer.stdout.close()
    told["cpu_us"] = 1e6 * told.pop("cpu_s") / (arguments.images + 2000)
    sender: dict[str, Any] = {"cpu_us": 1e6 * cpu_s / arguments.images}
    if is_profiled:
        sender["share"] = shares(pstats.Stats(profile))
    return {"sender": sender, "viewer": told}


def serve_here(*, is_profiled: bool) -> int:
    """The viewer's process: serve until stopped, then tell what it took."""
    profile = cProfile.Profile(time.thread_time)
    if is_profiled:
        plain = Receiver._run  # noqa: SLF001  # the receiver's thread, in which the work is

        def run_profiled(self: Receiver) -> None:
            profile.enable()
            try:
                plain(self)
            finally:
                profile.disable()

        Receiver._run = run_profiled  # type: ignore[method-assign]  # noqa: SLF001
    begin = 0.0

    def ready(endpoint: Any) -> None:
        nonlocal begin
        print(endpoint.addresses[0], flush=True)
        begin = time.process_time()

    serve(MemoryViewer(), on_ready=ready)
    told: dict[str, Any] = {"cpu_s": time.process_time() - begin}
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(5)
    if is_profiled:
        told["share"] = shares(pstats.Stats(profile))
    print(json.dumps(told), flush=True)
    return 0


def shares(stats: pstats.Stats) -> dict[str, float]:
    """The share of each step in all the time that was seen."""
    spent = dict.fromkeys([*(name for name, _ in STEPS), "the rest"], 0.0)
    table: dict[tuple[str, int, str], tuple[Any, ...]] = stats.stats  # type: ignore[attr-defined]
    for (path, _, function), (_, _, own, _, _) in table.items():
        label = f"{Path(path).name} {function}"
        for name, marks in STEPS:
            if any(mark in label for mark in marks):
                spent[name] += own
                break
        else:
            spent["the rest"] += own
    total = sum(spent.values()) or 1.0
    return {name: round(own / total, 4) for name, own in spent.items()}


if __name__ == "__main__":
    raise SystemExit(main())
