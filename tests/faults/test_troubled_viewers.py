"""Viewers with a child, without memory, without descriptors: what their senders are told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream.errors import ItemFailed, Refused, StreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import Stream

SMALL = np.zeros((16, 16), np.uint8)


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks: None) -> None:
    """After each test: no descriptor, arena, name, thread, process or file."""


@pytest.fixture
def viewer() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("viewer_program.py"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()
    # Whoever looks for viewers next removes the files of those that were killed.
    assert all(each.pid == os.getpid() for each in openhcs_stream.discovery.endpoints())


def connect(address: str, **options: Any) -> Stream:
    return openhcs_stream.connect(address, timeout_s=10.0, **options)


def wait_for(condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


def test_death_of_a_viewer_that_has_a_forked_child_is_seen(
    viewer: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = viewer
    assert process.stdout is not None
    with contextlib.closing(connect(address)) as stream:
        stream.image(SMALL, name="fork").wait()
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            wait_for(lambda: stream.viewers == ())
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_viewer_that_has_no_memory_to_map_says_so(
    viewer: tuple[subprocess.Popen[str], str],
) -> None:
    _, address = viewer
    with contextlib.closing(connect(address)) as first:
        first.image(SMALL, name="no memory").wait()
        for _ in range(5):
            with contextlib.closing(connect(address, quota_nbytes=1 << 30)) as stream:
                receipt = stream.image(np.zeros((100 << 20,), np.uint8).reshape(100, -1))
                with pytest.raises(ItemFailed, match=r"would not map arena \d+ of \d+ bytes"):
                    receipt.wait()
        first.image(SMALL, name="first").wait()


def test_a_viewer_that_has_no_descriptors_left_says_so(
    viewer: tuple[subprocess.Popen[str], str],
) -> None:
    _, address = viewer
    with contextlib.closing(connect(address)) as first:
        first.image(SMALL, name="small").wait()
        with contextlib.closing(connect(address)) as second:
            second.image(SMALL, name="no files").wait()
            reasons = set()
            for side in range(100, 1000, 30):  # until a new arena is needed, and handed over
                try:
                    second.image(np.zeros((side, side), np.uint8), name=f"{side}").wait()
                except StreamError as error:
                    reasons.add(str(error))
                    break
            assert any("could not take" in reason for reason in reasons), reasons
        first.image(SMALL, name="small").wait()


@pytest.mark.parametrize("side_lane", [True, False], ids=["shared memory", "sockets"])
def test_more_senders_than_a_viewer_has_descriptors_for_are_refused(
    viewer: tuple[subprocess.Popen[str], str], side_lane: bool
) -> None:
    """ZeroMQ ends a process that has none left for a connection: it must not come to that."""
    process, address = viewer
    with contextlib.ExitStack() as streams:
        first = streams.enter_context(connect(address, side_lane=side_lane))
        first.image(SMALL, name="few files").wait()
        refusals = []
        for _ in range(60):
            try:
                stream = streams.enter_context(connect(address, side_lane=side_lane))
                stream.image(SMALL, name="crowd").wait()
            except Refused as error:
                refusals.append(str(error))
        assert process.poll() is None
        assert 0 < len(refusals) < 60
        assert all("ulimit -n" in refusal for refusal in refusals)
        first.image(SMALL, name="first").wait()


def test_what_a_viewer_displayed_before_its_end_counts_where_a_send_met_the_end_first(
    viewer: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = viewer
    with contextlib.closing(connect(address, reconnect_s=0)) as stream:
        with stream._group.leading():  # nobody reads what the viewer says
            shown = stream.image(SMALL, name="shown")
            wait_for(lambda: displayed(address) == 1)
            process.kill()
            process.wait()
            late = stream.image(SMALL, name="late")
            assert (shown.state, late.state) == ("sent", "sent")
        wait_for(lambda: stream.viewers == ())
        assert (shown.state, late.state) == ("displayed", "failed")


def displayed(address: str) -> int:
    (stream,) = openhcs_stream.ask(address, "status")["streams"]
    return int(stream["displayed"])
