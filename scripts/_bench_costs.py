"""What the library costs its caller: importing it, connecting, sending many small things.

Times of the caller alone, with a viewer process of its own on the other side: medians and
quartiles of several rounds, alternating with what they are compared to.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np

import openhcs_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openhcs_stream import Stream

_BARE = "import numpy, zmq"
_OURS = "import numpy, zmq; import openhcs_stream"
_READY = "import numpy, zmq; from openhcs_stream import connect"
_VIEWER = (
    "from openhcs_stream.viewer import MemoryViewer, serve; "
    "serve(MemoryViewer(), on_ready=lambda e: print(e.addresses[0], flush=True))"
)
_ITEMS = 1000
_BATCH = 100


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_costs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    result = over(arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="ohs-") as folder:
        os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = folder
        viewer = subprocess.Popen([sys.executable, "-c", _VIEWER], stdout=subprocess.PIPE)
        assert viewer.stdout is not None
        address = viewer.stdout.readline().decode().strip()
        try:
            result["connect_ms"] = quartiles(
                [1e3 * connecting(address) for _ in range(arguments.rounds)]
            )
            with openhcs_stream.connect(address) as stream:
                for send in (singly, in_batches):  # what is made once is made here
                    send(stream)
                costs: dict[str, list[float]] = {"item_us": [], "item_in_batch_us": []}
                for _ in range(arguments.rounds):
                    costs["item_us"].append(1e6 * singly(stream))
                    costs["item_in_batch_us"].append(1e6 * in_batches(stream))
            result |= {name: quartiles(values) for name, values in costs.items()}
        finally:
            viewer.kill()
            viewer.wait()
            viewer.stdout.close()
    if arguments.json:
        print(json.dumps(result))
        return 0
    titles = {
        "import_ms": "importing it, over numpy and zmq, ms",
        "import_connect_ms": "importing what connects and sends, too, ms",
        "connect_ms": "connecting to a viewer that runs, ms",
        "item_us": f"each of {_ITEMS} images of 16 x 16, one by one, microseconds",
        "item_in_batch_us": f"the same in batches of {_BATCH}, microseconds",
    }
    for name, figures in result.items():
        print(f"{titles[name]:64} {figures['median']:8.1f}   "
              f"({figures['q1']:.1f} to {figures['q3']:.1f})")  # fmt: skip
    return 0


def over(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds that importing the library takes longer than importing what it needs.

    All is compiled beforehand, as an installer leaves it.
    """
    spans: dict[str, list[float]] = {"import_ms": [], "import_connect_ms": []}
    with tempfile.TemporaryDirectory(prefix="ohs-") as compiled:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        importing(_READY, env)
        for _ in range(rounds):
            bare, ours, ready = (importing(code, env) for code in (_BARE, _OURS, _READY))
            spans["import_ms"].append(1e3 * (ours - bare))
            spans["import_connect_ms"].append(1e3 * (ready - bare))
    return {name: quartiles(values) for name, values in spans.items()}


def importing(code: str, env: dict[str, str]) -> float:
    """Seconds of a fresh interpreter."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    return time.perf_counter() - begin


def connecting(address: str) -> float:
    """Seconds of one connect."""
    begin = time.perf_counter()
    with contextlib.closing(openhcs_stream.connect(address)):
        return time.perf_counter() - begin


_TINY = np.zeros((16, 16), np.uint8)


def singly(stream: Stream) -> float:
    """Seconds that one item takes in the caller."""

    def send() -> None:
        for z in range(_ITEMS):
            stream.image(_TINY, name="tiny", place={"z": z})

    return timed(stream, send)


def in_batches(stream: Stream) -> float:
    """The same in batches."""

    def send() -> None:
        for first in range(0, _ITEMS, _BATCH):
            with stream.batch():
                for z in range(first, first + _BATCH):
                    stream.image(_TINY, name="tiny", place={"z": z})

    return timed(stream, send)


def timed(stream: Stream, send: Callable[[], None]) -> float:
    """Seconds an item; what the viewer makes of it afterwards is not counted."""
    begin = time.perf_counter()
    send()
    span = time.perf_counter() - begin
    stream.flush()
    return span / _ITEMS


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4)
    return {"median": round(median, 2), "q1": round(q1, 2), "q3": round(q3, 2)}


if __name__ == "__main__":
    raise SystemExit(main())
