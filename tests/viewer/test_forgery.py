"""Whatever a peer calls itself and its things: no line of a log, table or error can be forged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from openhcs_stream import messages as m
from openhcs_stream.errors import StreamError
from openhcs_stream.protocol import Ended, Moved, Replied, SenderSession
from openhcs_stream.testing import RunningReceiver, run_receiver
from openhcs_stream.transport import ZmqLane
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openhcs_stream.viewer import Coords, SceneLayer

FORGED = "2026-01-01 00:00:00 ERROR forged"
EVIL = f"x\n{FORGED}\r\x1b[2J\x1b]0;title\x07\u202etxt.exe\u2066\u200b\x9b31m\x00"


class Complaining(MemoryViewer):
    """A viewer whose drawing fails with the names that it was given."""

    def show_layer(self, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        raise RuntimeError(f"can't draw {layer.key.name} at {arrived}: {layer.title}")


@pytest.fixture
def running(caplog: pytest.LogCaptureFixture) -> Iterator[RunningReceiver[Any]]:
    caplog.set_level(logging.DEBUG)
    with run_receiver(Complaining(), publish=True, port=0) as receiver:
        yield receiver


class Peer:
    """A session by hand, that says what no library would let it say."""

    def __init__(self, address: str, *, token: str = "", session: str = "a" * 32) -> None:
        self.lane = ZmqLane.connect(address)
        self.said: list[m.Message] = []
        self.hello = m.Hello(1, 0, session, "stream", EVIL, EVIL, "elsewhere", 1, token, (EVIL,))
        self.send(self.hello)

    def send(self, message: m.Message, *blobs: bytes) -> None:
        assert self.lane.send(m.encode(message), blobs=[memoryview(each) for each in blobs])

    def wait_for(self, *kinds: type[Any]) -> Any:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            frame = self.lane.receive()
            if frame is not None:
                self.said.append(m.decode(frame.data))
                if isinstance(self.said[-1], kinds):
                    return self.said[-1]
        raise AssertionError(f"no {kinds} came; {self.said}")


def assert_clean(text: str, where: str, *, lines: bool = False) -> None:
    for line in text.split("\n") if lines else [text]:
        assert line.isprintable(), f"{where}: {line!r}"
        assert not line.startswith(FORGED), where


def test_in_the_viewer_s_log_and_answers(
    running: RunningReceiver[Any], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = running.receiver.endpoint
    assert endpoint is not None
    peer = Peer(running.address)
    peer.wait_for(m.Welcome)
    peer.send(
        m.LayerDeclared(
            0,
            m.LayerSpec(
                "image", EVIL, "YX", (EVIL,), source=EVIL, unit=EVIL, colormap=EVIL, blending=EVIL
            ),
        )
    )
    item = m.Item(0, 0, (EVIL,), (2, 2), "|u1", 4, (m.Part(-1, 0, 4, 1),), {EVIL: EVIL, "id": EVIL})
    peer.send(m.Items((item,)), b"abcd")
    report = peer.wait_for(m.Report)
    while not report.failed:
        report = peer.wait_for(m.Report)
    assert "can't draw x" in report.failed[0].reason
    assert_clean(report.failed[0].reason, "the reason of a failure")
    for verb, args in (
        (EVIL[:60], {}),
        ("read", {"layer": EVIL}),
        ("read", {"name": EVIL, "kind": EVIL, "source": EVIL, "place": {EVIL: EVIL}}),
        ("places", {"name": EVIL, "place": {EVIL: f"{EVIL}?"}}),
        ("screenshot", {EVIL: EVIL}),
        ("edits", {EVIL: EVIL}),
        ("ask", {"text": EVIL, EVIL: 1}),
        ("withdraw", {EVIL: EVIL}),
    ):
        peer.send(m.Request(1, verb, args))
        reply = peer.wait_for(m.Reply)
        assert not reply.ok, verb
        assert_clean(reply.what, f"the answer to {verb!r}")
        assert_clean(reply.cure, f"the cure of {verb!r}")
    for _, told in strings_of(running.receiver.status()):
        assert_clean(told, "status")
    table = subprocess.run(
        [sys.executable, "-m", "openhcs_stream", "status"],
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert FORGED[:10] in table.stdout
    assert_clean(table.stdout + table.stderr, "the table of openhcs-stream status", lines=True)
    # Sessions that are ended for what they sent.
    peer.send(m.Items((m.Item(7, 99, (EVIL,), (), EVIL[:4], 0, ()),)))
    end = peer.wait_for(m.Refusal, m.Bye)
    assert_clean(end.what if isinstance(end, m.Refusal) else end.reason, "the reason of an end")
    peer.lane.close()
    for number, content in enumerate((EVIL.encode(), b"\x92\xa5" + EVIL.encode()[:5], b"\x90")):
        other = Peer(running.address, session=f"{number}" * 32)
        other.wait_for(m.Welcome)
        other.lane.send(b"\x91" + content)
        other.wait_for(m.Refusal, m.Bye)
        other.lane.close()
    _assert_log_is_clean(caplog)


def test_of_other_people_s_senders(
    running: RunningReceiver[Any], caplog: pytest.LogCaptureFixture
) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender = context.socket(zmq.REQ)
    sender.setsockopt(zmq.LINGER, 0)
    sender.setsockopt(zmq.RCVTIMEO, 20_000)
    assert running.receiver.endpoint is not None
    sender.connect(running.receiver.endpoint.addresses[-1])
    image = {
        "path": EVIL, "image_id": EVIL[:99], "data_type": EVIL[:99], "shm_name": EVIL,
        "metadata": {EVIL[:90]: EVIL}, "shape": [2, 2], "dtype": EVIL[:16],
    }  # fmt: skip
    shown = {**image, "data_type": "image", "dtype": "uint8", "data": [[1, 2], [3, 4]]}
    del shown["shm_name"]
    try:
        for content in (
            {"type": EVIL[:100]},
            {"type": "batch", "images": [image, {**image, "data_type": "image"}, shown]},
            {EVIL: EVIL},
        ):
            sender.send(json.dumps(content).encode())
            json.loads(sender.recv())  # JSON escapes what is in it
    finally:
        sender.close()
        context.term()
    _assert_log_is_clean(caplog)


def _assert_log_is_clean(caplog: pytest.LogCaptureFixture) -> None:
    ours = [each for each in caplog.records if each.name.startswith("openhcs_stream")]
    assert any("forged" in each.getMessage() for each in ours), "nothing of it was logged"
    for each in ours:
        assert_clean(each.getMessage(), f"the log of {each.name}:{each.lineno}")


def test_what_a_viewer_says_to_a_sender() -> None:
    """The other way round: a false viewer can't write into a worker's log or terminal either."""
    hello = m.Hello(1, 0, "a" * 32, "stream", "w", "u", "h", 1)

    def opened() -> SenderSession:
        session = SenderSession(hello)
        session.start(0.0)
        session.receive(m.Welcome(1, 0, EVIL, EVIL, 1), 0.0)
        session.sent([(1, (1,))])
        return session

    texts: list[str] = []
    greeting = SenderSession(hello)
    greeting.start(0.0)
    for effect in greeting.receive(m.Refusal(EVIL, EVIL), 0.0):
        if isinstance(effect, Ended) and effect.error is not None:
            texts += [str(effect.error), effect.error.what, effect.error.cure]
    for message in (m.Report(failed=(m.Failure(1, EVIL),)), m.Bye(EVIL)):
        for each in opened().receive(message, 0.0):
            if isinstance(each, Moved):
                texts += [reason for _, reason in each.failed]
            elif isinstance(each, Ended) and each.error is not None:
                texts.append(str(each.error))
    assert len(texts) >= 5
    for text in texts:
        assert_clean(text, "what a sender hears")
    (reply,) = opened().receive(m.Reply(1, False, None, EVIL, EVIL), 0.0)
    assert isinstance(reply, Replied)
    assert_clean(str(StreamError(reply.what, cure=reply.cure)), "a refusal")


def strings_of(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield where, key
            yield from strings_of(each, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from strings_of(each, where)
