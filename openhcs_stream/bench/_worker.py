"""A worker process of the benchmark: sends as many images as each line of its input says."""

from __future__ import annotations

import sys

from openhcs_stream.bench._limits import sources
from openhcs_stream.stream import connect

__all__ = ["PLACE", "work"]

#: Where every image of a benchmark goes, that is not kept.
PLACE: dict[str, int | str] = {"well": "A01", "z": 0}


def work(address: str) -> None:
    """Say "ready", then "done" after each number of images was displayed."""
    images = sources(8 << 20)
    with connect(address, name="bench worker", launch=False, timeout_s=60.0) as stream:
        print("ready", flush=True)
        for line in sys.stdin:
            for number in range(int(line)):
                stream.image(images[number % len(images)], name="raw", place=PLACE)
            stream.flush(60.0)
            print("done", flush=True)
