"""A short session that only asks: no pixels, no thread."""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import Refused, ViewerUnreachable
from openhcs_stream.messages import MAJOR, MINOR, Bye, Hello, Request, decode, encode
from openhcs_stream.protocol import Ended, Opened, Replied, SendControl, SenderSession
from openhcs_stream.transport import LaneClosed, machine_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.transport import Lane

__all__ = ["ask_lane"]


def ask_lane(
    lane: Lane, address: str, verb: str, args: Mapping[str, Any], *, token: str, timeout_s: float
) -> Any:
    """Send one request on a fresh lane, wait for its answer, close the lane.

    Raises
    ------
    ViewerUnreachable
        No answer within `timeout_s` seconds.
    Refused
        The viewer can't do it, or takes no such session.
    """
    is_asked = False
    hello = Hello(
        MAJOR, MINOR, os.urandom(16).hex(), "control", f"{verb} {os.getpid()}",
        getpass.getuser(), machine_id(), os.getpid(), token,
    )  # fmt: skip
    session = SenderSession(hello)
    deadline = time.monotonic() + timeout_s
    try:
        waiting = session.start(time.monotonic())
        while True:
            for effect in waiting:
                match effect:
                    case SendControl(message=message):
                        lane.send(encode(message))
                    case Opened():
                        lane.send(encode(Request(1, verb, dict(args))))
                        is_asked = True
                    case Replied(ok=True, value=value):
                        with contextlib.suppress(LaneClosed):  # it was asked to stop
                            lane.send(encode(Bye()))
                        return value
                    case Replied(what=what, cure=cure):
                        raise Refused(f"the viewer refused {verb!r}: {what}", cure=cure)
                    case Ended(error=error) if error is not None:
                        raise error
            waiting = []
            frame = lane.receive()
            if frame is not None:
                waiting = session.receive(decode(frame.data), time.monotonic())
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise ViewerUnreachable(
                    f"no answer to {verb!r} from {address} within {timeout_s:g} s.",
                    cure="Look whether the viewer runs with `openhcs-stream status`; it may be "
                    "busy or stopped.",
                )
            poller = select.poll()
            poller.register(lane.fileno(), select.POLLIN)
            if not lane.has_input():
                poller.poll(min(left, 0.1) * 1000)
    except LaneClosed:
        # One that ends at once may be gone before its answer is out; it did what was asked.
        if not (is_asked and verb == "stop"):
            raise
        return None
    finally:
        lane.close()
