from __future__ import annotations

import gc
import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.transport import ZmqLane, ZmqRouter

if TYPE_CHECKING:
    from collections.abc import Iterator


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="session")
def zmq_is_warm() -> None:
    """ZeroMQ's context, and its collector of sent blobs, open descriptors once for all."""
    with ZmqRouter(["tcp://127.0.0.1:0"]) as router, ZmqLane.connect(router.addresses[0]) as lane:
        lane.send(b"x", blobs=[memoryview(bytes(1 << 17))])
        deadline = time.monotonic() + 20
        while router.receive() is None:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.002)


@pytest.fixture(autouse=True)
def no_leaked_fds(zmq_is_warm: None) -> Iterator[None]:
    """Fail where a test leaves a descriptor open; ZeroMQ closes its own a little later."""
    before = count_fds()
    yield
    if count_fds() > before:
        gc.collect()
    deadline = time.monotonic() + 20
    while count_fds() > before:
        assert time.monotonic() < deadline, f"{count_fds()} descriptors are open, {before} before"
        select.select([], [], [], 0.002)
