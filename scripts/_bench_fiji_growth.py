"""What a plane costs that joins a growing hyperstack, beside rebuilding the whole of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

from openhcs_stream.messages import LayerSpec
from openhcs_stream.viewer import Arrival, Placement, Scene
from openhcs_stream_fiji import FijiViewer, create

#: Sizes at which the original's way is measured: all of them would take minutes.
_REBUILT = (1, 10, 50, 100, 200)
_EDGE = 20


def main() -> int:
    """Run it and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench_fiji_growth", description=__doc__)
    parser.add_argument("--planes", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--size", type=int, default=2048, metavar="PX", help="default: 2048")
    parser.add_argument("--headless", action="store_true", help="without windows")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    viewer = create(headless=arguments.headless, title="bench", options={})
    assert isinstance(viewer, FijiViewer)
    random = np.random.default_rng(0)
    shape = (arguments.size, arguments.size)
    images = [random.integers(0, 4096, shape, np.uint16) for _ in range(4)]
    for image in images:
        image.setflags(write=False)
    grown = grow(viewer, images, arguments.planes)
    rebuilt = {
        count: rebuild(viewer, images, count) for count in _REBUILT if count <= arguments.planes
    }
    viewer.close()
    first, last = np.median(grown[:_EDGE], axis=0), np.median(grown[-_EDGE:], axis=0)
    result = {
        "planes": arguments.planes,
        "shape": shape,
        "window": not arguments.headless,
        "kept_ms": [round(1e3 * float(edge[0]), 2) for edge in (first, last)],
        "shown_ms": [round(1e3 * float(edge[1]), 2) for edge in (first, last)],
        "last_over_first": round(float(last.sum() / first.sum()), 2),
        "rebuilt_ms": {count: round(1e3 * seconds, 1) for count, seconds in rebuilt.items()},
    }
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(f"{arguments.planes} planes of {shape[0]} x {shape[1]}, 16 bits, one by one; medians")
    print(f"  first {_EDGE}: copied {1e3 * first[0]:.1f} ms, shown {1e3 * first[1]:.1f} ms a plane")
    print(f"  last {_EDGE}:  copied {1e3 * last[0]:.1f} ms, shown {1e3 * last[1]:.1f} ms a plane")
    print(f"  last over first: {result['last_over_first']}")
    print("the whole hyperstack rebuilt for one more plane, when it has")
    for count, seconds in rebuilt.items():
        print(f"  {count:4} planes: {1e3 * seconds:.0f} ms")
    return 0


def grow(viewer: FijiViewer, images: list[Any], planes: int) -> Any:
    """(planes, 2): seconds to copy each plane into Java, and to show it."""
    spec = LayerSpec("image", "growing", "YX", ("z",))
    scene, placement = Scene(), Placement(spec, splits=viewer.splits)
    seconds = []
    for z in range(-3, planes):  # the first three open the window and load Java's classes
        if z == 0:
            for layer in scene.clear():
                viewer.remove_layer(layer)
        began = time.perf_counter()
        kept = viewer.keep(placement.arrange(images[z % len(images)]), None, spec)
        copied = time.perf_counter()
        changes = scene.commit([Arrival(z, placement.cut((z,), kept))])
        viewer.set_axes(scene.axes)
        for key, coords in changes.layers.items():
            viewer.show_layer(scene.layers[key], coords)
        if viewer.has_windows:
            viewer.java.on_event_thread(lambda: None)  # after what waits to be painted
        if z >= 0:
            seconds.append((copied - began, time.perf_counter() - copied))
    for layer in scene.clear():
        viewer.remove_layer(layer)
    return np.array(seconds)


def rebuild(viewer: FijiViewer, images: list[Any], count: int) -> float:
    """Seconds of the original's way: every plane is converted by JPype, into a new hyperstack."""
    java = viewer.java

    def build() -> Any:
        stack = java.ImageStack(images[0].shape[1], images[0].shape[0])
        for number in range(count):
            flat = images[number % len(images)].ravel().view(np.int16)
            stack.addSlice(str(number), java.shorts(flat))
        imp = java.ImagePlus("rebuilt", stack)
        imp.setDimensions(1, count, 1)
        imp.setOpenAsHyperStack(True)
        if viewer.has_windows:
            imp.show()
        return imp

    began = time.perf_counter()
    imp = java.on_event_thread(build) if viewer.has_windows else build()
    seconds = time.perf_counter() - began
    imp.changes = False
    if viewer.has_windows:
        java.on_event_thread(imp.close)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
