"""One send, two real viewers: napari and Fiji as processes of their own, without a window."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.errors import ItemFailed, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from openhcs_stream.discovery import Endpoint

START_S = 50


@pytest.fixture
def both() -> Iterator[tuple[Endpoint, Endpoint]]:
    """napari and Fiji, running; whatever still runs at the end is stopped."""
    started: list[Endpoint] = []
    try:
        for kind in ("napari", "fiji"):
            started += [discovery.launch(kind, timeout_s=START_S, options=("--headless",))]
        yield started[0], started[1]
    finally:
        for each in started:
            with contextlib.suppress(PeerError):  # killed by the test
                openhcs_stream.ask(each, "stop")
        wait_for(lambda: not discovery.endpoints())


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def read(viewer: Endpoint, layer: str, place: dict[str, Any]) -> npt.NDArray[Any]:
    found = openhcs_stream.ask(viewer, "read", layer=layer, place=place)
    array: npt.NDArray[Any] = np.frombuffer(found["data"], found["dtype"])
    return array.reshape(found["shape"])


@pytest.mark.timeout(150)
def test_both_show_the_same_and_one_outlives_the_other(both: tuple[Endpoint, Endpoint]) -> None:
    napari, fiji = both
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 2**16, (3, 64, 48), dtype=np.uint16)
    labels = rng.integers(0, 200, (64, 48), dtype=np.uint16)
    square = np.array([(5.0, 5.0), (5.0, 30.0), (30.0, 30.0), (30.0, 5.0)])
    with openhcs_stream.connect(
        ["napari", "fiji"], reconnect_s=0, timeout_s=20, launch=False
    ) as stream:
        for z, plane in enumerate(planes):
            stream.image(plane, name="raw", place={"well": "A01", "z": z})
        # One slot each, however many viewers read it.
        assert stream._pool.stats().leases <= len(planes)
        stream.labels(labels, name="cells", place={"well": "A01", "z": 1})
        stream.rois([square], name="outlines", place={"well": "A01", "z": 1})
        stream.flush()
        for viewer in both:
            for z, plane in enumerate(planes):
                np.testing.assert_array_equal(
                    read(viewer, "raw", {"well": "A01", "z": z}), plane, err_msg=viewer.viewer
                )
            np.testing.assert_array_equal(read(viewer, "cells", {"well": "A01", "z": 1}), labels)
        assert [queue.displayed for queue in stream.status()] == [5, 5]

        os.kill(fiji.pid, signal.SIGKILL)
        wait_for(lambda: stream.status() and stream.viewers == (napari.name,))
        receipt = stream.image(planes[0] + 1, name="raw", place={"well": "A01", "z": 7})
        try:
            receipt.wait()
        except ItemFailed:  # told to Fiji a moment before its end was seen
            receipt = stream.image(planes[0] + 1, name="raw", place={"well": "A01", "z": 7}).wait()
        np.testing.assert_array_equal(read(napari, "raw", {"well": "A01", "z": 7}), planes[0] + 1)
