"""A session that only asks, with a viewer that answers little."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.messages import MAJOR, MINOR, Hello, Request, Welcome, decode, encode
from openhcs_stream.stream._control import ask_lane
from openhcs_stream.transport import InProcessLane, LaneClosed

if TYPE_CHECKING:
    from openhcs_stream.transport import Lane


def _end_when_asked(lane: Lane) -> None:
    """Greet, and close on the first request."""
    done = threading.Event()
    while not done.wait(0.001):
        frame = lane.receive()
        if frame is None:
            continue
        match decode(frame.data):
            case Hello():
                lane.send(encode(Welcome(MAJOR, MINOR, "napari", "napari", 1)))
            case Request():
                done.set()
    lane.close()


@pytest.mark.parametrize("verb", ["stop", "status"])
def test_a_viewer_that_is_gone_before_its_answer(verb: str) -> None:
    """One that was asked to stop has done so; of anything else nothing is known."""
    ours, theirs = InProcessLane.pair()
    viewer = threading.Thread(target=_end_when_asked, args=(theirs,))
    viewer.start()
    try:
        if verb == "stop":
            assert ask_lane(ours, "here", verb, {}, token="", timeout_s=10) is None
        else:
            with pytest.raises(LaneClosed):
                ask_lane(ours, "here", verb, {}, token="", timeout_s=10)
    finally:
        viewer.join(10)
