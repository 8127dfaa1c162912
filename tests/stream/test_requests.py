"""A request follows what was sent before it, though the two go different ways."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import openhcs_stream
from openhcs_stream.errors import DeadlineExceeded
from openhcs_stream.stream._link import Link
from tests.stream.processes import stop

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from openhcs_stream.messages import Request

    ViewerProcess = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What links are asked from now on, and whether their viewers had everything by then."""
    found: list[tuple[str, bool]] = []
    ask = Link.ask

    def noted(self: Link, request: Request, **more: Any) -> None:
        found.append((request.verb, self.session.is_received))
        ask(self, request, **more)

    monkeypatch.setattr(Link, "ask", noted)
    return found


def test_a_request_follows_what_was_sent(
    viewer_process: ViewerProcess, asked: list[tuple[str, bool]]
) -> None:
    process, address = viewer_process()
    with openhcs_stream.connect(address) as stream, ThreadPoolExecutor(1) as thread:
        stream.points([(0, 0)], name="spots").wait()
        stop(process.pid)
        for n in range(20):
            stream.points([(n, n)], name="spots")
        with pytest.raises(DeadlineExceeded):
            stream.get_points("spots", timeout_s=0.2)
        asked.clear()
        got = thread.submit(stream.get_points, "spots", timeout_s=20)
        process.send_signal(signal.SIGCONT)
        assert got.result(30).tolist() == [[19, 19]]
        assert asked == [("read", True)]
        stream.points([(5, 5)], name="spots")
        with pytest.raises(DeadlineExceeded):  # nobody is there to answer
            stream.ask("Is it right?", on="spots", timeout_s=2)
        assert asked[1:] == [("ask", True)]


def test_the_status_is_not_waited_for(
    viewer_process: ViewerProcess, asked: list[tuple[str, bool]]
) -> None:
    process, address = viewer_process()
    with openhcs_stream.connect(address) as stream:
        stop(process.pid)
        stream.points([(1, 1)], name="spots")
        with pytest.raises(DeadlineExceeded):
            stream.request("status", timeout_s=0.1)
        assert asked == [("status", False)]
        process.send_signal(signal.SIGCONT)
        stream.flush()
