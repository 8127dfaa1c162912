from __future__ import annotations

from typing import TYPE_CHECKING

import zmq

from openhcs_stream.transport import ZmqPusher, _push

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_pushes_to_a_listener_that_comes_later(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/acks"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pusher = ZmqPusher(address)
    listener = context.socket(zmq.PULL)
    try:
        assert pusher.send(b"{}")
        listener.setsockopt(zmq.RCVTIMEO, 20_000)
        listener.bind(address)
        assert listener.recv() == b"{}"
    finally:
        pusher.close()
        listener.close()
        context.term()


def test_lets_go_where_nobody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_push, "_HIGH_WATER", 2)
    pusher = ZmqPusher(f"ipc://{tmp_path}/nobody")
    try:
        assert [pusher.send(b"{}") for _ in range(5)] == [True, True, False, False, False]
    finally:
        pusher.close()
    assert caplog.text.count("are let go") == 1
