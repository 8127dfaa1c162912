"""From the send call to the frame drawn: the worker, which sends, and the table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from openhcs_stream.stream import Stream, connect

#: Images a second.
_RATES = (30, 60)
_CHANNELS = ("DAPI", "GFP", "RFP", "Cy5")
#: What must be reached, milliseconds.
_DEMANDS = {
    "napari": {"drawn_p50_ms_at_30": 33, "drawn_p99_ms_at_30": 100, "lag_p95_ms_at_60": 40},
    "fiji": {"drawn_p50_ms_at_30": 50},
}
_STAGES = ("sent_to_kept", "kept_to_shown", "shown_to_set", "set_to_drawn")
_HERE = Path(__file__).parent


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_draw", description=__doc__)
    parser.add_argument("viewer", choices=("napari", "fiji"))
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="default: 8")
    parser.add_argument("--size", type=int, default=2048, metavar="PX", help="default: 2048")
    parser.add_argument("--window", default="", metavar="WxH", help="napari's; default: its own")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    rounds = [
        one_round(arguments.viewer, arguments.window, arguments.size, arguments.seconds)
        for _ in range(arguments.rounds)
    ]
    figures = {name: spread([each[name] for each in rounds]) for name in rounds[0]}
    if arguments.json:
        print(json.dumps({"viewer": arguments.viewer, "size": arguments.size, **figures}))
        return 0
    print(
        f"{arguments.viewer}: {len(_CHANNELS)} channels of {arguments.size} x {arguments.size}, "
        f"16 bits, sent in turn; medians (quartiles) of {len(rounds)} rounds"
    )
    demands = _DEMANDS[arguments.viewer]
    for name, found in figures.items():
        asked = f"   demand: {demands[name]}" if name in demands else ""
        print(f"  {name:34s} {found['median']:9.2f}  ({found['q1']:.2f}, {found['q3']:.2f}){asked}")
    return 0


def one_round(viewer: str, shape: str, size: int, seconds: float) -> dict[str, float]:
    """Start a viewer, send at each rate, and ask before and after what its own program needs."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 4096, (size, size), np.uint16) for _ in range(2 * len(_CHANNELS))]
    figures: dict[str, float] = {}
    with Window(viewer, shape) as window:
        bare = [window.ask("bare", size=size, channels=len(_CHANNELS))["ms"]]
        with connect(window.address, name="bench_draw", launch=False, timeout_s=60.0) as stream:
            number = 0
            for rate in _RATES:
                # The first makes windows and maps memory.
                number += send(stream, images, number, rate, 1.0)
                stream.flush(60.0)
                window.ask("begin")
                began = time.monotonic()
                count = send(stream, images, number, rate, seconds)
                rate_reached = count / (time.monotonic() - began)
                number += count
                stream.flush(60.0)
                figures |= figures_of(window.ask("end"), rate, count)
                figures[f"sent_per_s_at_{rate}"] = rate_reached
            window.ask("clear")
        bare.append(window.ask("bare", size=size, channels=len(_CHANNELS))["ms"])
    figures["bare_ms"] = statistics.median([*bare[0], *bare[1]])
    for rate in _RATES:
        ours = figures[f"shown_to_set_p50_ms_at_{rate}"] + figures[f"set_to_drawn_p50_ms_at_{rate}"]
        figures[f"viewer_part_over_bare_at_{rate}"] = ours / figures["bare_ms"]
        figures[f"drawn_over_bare_at_{rate}"] = (
            figures[f"drawn_p50_ms_at_{rate}"] / figures["bare_ms"]
        )
    return figures


def send(stream: Stream, images: list[Any], first: int, rate: float, seconds: float) -> int:
    """Send images at a steady rate, numbered from `first`; how many."""
    count = round(rate * seconds)
    began = time.monotonic()
    for number in range(count):
        wait = began + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        stream.image(
            images[number % len(images)],
            name="raw",
            place={"well": "A01", "channel": _CHANNELS[number % len(_CHANNELS)]},
            contrast_limits=(0.0, 4095.0),
            metadata={"number": first + number, "sent": time.monotonic_ns()},
        )
    return count


def figures_of(told: dict[str, Any], rate: int, count: int) -> dict[str, float]:
    """Percentiles of what the viewer's process noted, by name."""
    # Each frame: when it was sent, kept, shown, set and drawn, nanoseconds of the same clock.
    times = np.array(told["frames"], dtype=float) / 1e6
    spans = np.diff(times, axis=1)
    whole = times[:, -1] - times[:, 0]
    lag = told["lag_ms"]
    figures = {
        f"drawn_p50_ms_at_{rate}": float(np.percentile(whole, 50)),
        f"drawn_p99_ms_at_{rate}": float(np.percentile(whole, 99)),
        f"lag_p50_ms_at_{rate}": float(np.percentile(lag, 50)),
        f"lag_p95_ms_at_{rate}": float(np.percentile(lag, 95)),
        f"images_drawn_of_sent_at_{rate}": len(times) / count,
        f"draws_per_s_at_{rate}": told["draws"] / told["seconds"],
    }
    for name, column in zip(_STAGES, spans.T, strict=True):
        figures[f"{name}_p50_ms_at_{rate}"] = float(np.percentile(column, 50))
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return {"median": round(median, 3), "q1": round(q1, 3), "q3": round(q3, 3)}


class Window:
    """A viewer with a window in a process of its own, which notes when it draws.

    Parameters
    ----------
    viewer : "napari" or "fiji"
    shape : str
        Of napari's window, "600x400"; empty: its own.
    """

    def __init__(self, viewer: str, shape: str) -> None:
        self._folder = TemporaryDirectory(prefix="bench-draw-")
        own = Path(self._folder.name)
        environment = {
            **os.environ,
            "OPENHCS_STREAM_RUNTIME_DIR": str(own),
            "NAPARI_CONFIG": str(own / "napari.yaml"),
        }
        self._process = subprocess.Popen(
            [sys.executable, _HERE / f"_bench_draw_{viewer}.py", *filter(None, [shape])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.address: str = self._read()["address"]

    def ask(self, what: str, **more: Any) -> Any:
        """Have the viewer's process do something; its answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": what, **more}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the viewer ended (exit status {self._process.wait()}).")
        return json.loads(line)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # which tells it to end
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


if __name__ == "__main__":
    sys.exit(main())
