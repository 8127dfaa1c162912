"""Named points at which a process of the campaign stops itself, as if the machine had frozen it.

Which point is read from a file, whose path is in an environment variable: "map 3" stops the
process (SIGSTOP, all of its threads) when it comes to "map" for the third time. The library
knows nothing of this: its methods are wrapped here, from outside.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SENDER_POINTS", "VARIABLE", "VIEWER_POINTS", "install", "reach"]

#: Names the file.
VARIABLE: Final = "CAMPAIGN_POINT_FILE"

#: Where a sender can stop: before a call ("<"), or after it (">").
#: Those without a row are in `worker` itself.
SENDER_POINTS: Final[dict[str, tuple[str, str, str] | None]] = {
    "hello": ("openhcs_stream.protocol:SenderSession", "start", "<"),
    "lane": ("openhcs_stream.transport:UnixLane", "__init__", "<"),
    "linked": ("openhcs_stream.protocol:SenderSession", "lane_opened", "<"),
    "arena": ("openhcs_stream.pixels._arena:Arena", "take", "<"),
    "copy": ("openhcs_stream.pixels._arena:Slot", "array", "<"),
    "publish": ("openhcs_stream.pixels:PixelPool", "publish", ">"),
    "offer": ("openhcs_stream.protocol:SenderSession", "offer", ">"),
    "sent": ("openhcs_stream.protocol:SenderSession", "sent", ">"),
    "more": ("openhcs_stream.protocol:SenderSession", "sent_more", "<"),
    "bye": ("openhcs_stream.pixels:PixelPool", "close", "<"),
    "batch": None,
    "flush": None,
    "close": None,
    "exit": None,
    "fork": None,
    "forked": None,
}

VIEWER_POINTS: Final[dict[str, tuple[str, str, str] | None]] = {
    "hello": ("openhcs_stream.protocol:ReceiverSession", "__init__", "<"),
    "lane": ("openhcs_stream.protocol:ReceiverSession", "lane_opened", "<"),
    "map": ("openhcs_stream.pixels:MappedArenas", "add", "<"),
    "mapped": ("openhcs_stream.pixels:MappedArenas", "add", ">"),
    "item": ("openhcs_stream.pixels:MappedArenas", "array", ">"),
    "more": ("openhcs_stream.pixels:MappedArenas", "view", ">"),
    "received": ("openhcs_stream.protocol:ReceiverSession", "received", "<"),
    "displayed": ("openhcs_stream.protocol:ReceiverSession", "displayed", "<"),
    "bye": ("openhcs_stream.pixels:MappedArenas", "close", "<"),
    "keep": None,
    "show": None,
}


def install(points: dict[str, tuple[str, str, str] | None]) -> None:
    """Wrap the methods of a table, so that this process can stop at them."""
    for name, row in points.items():
        if row is not None:
            where, method, when = row
            module, _, owner = where.partition(":")
            wrap(getattr(__import__(module, fromlist=[owner]), owner), method, name, when)


def wrap(owner: type[Any], method: str, name: str, when: str) -> None:
    """Have a method's callers stop at a point: before ("<") or after (">") the call."""
    inner: Callable[..., Any] = getattr(owner, method)

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        if when == "<":
            reach(name)
            return inner(*args, **kwargs)
        result = inner(*args, **kwargs)
        reach(name)
        return result

    setattr(owner, method, outer)


def reach(name: str) -> None:
    """Stop here if this is the point that is asked for."""
    path = os.environ.get(VARIABLE)
    # Looked for first: where no more files can be opened, this must not be what fails.
    if not path or not os.path.exists(path):
        return
    try:
        wanted, count = Path(path).read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if wanted != name:
        return
    if int(count) > 1:
        Path(path).write_text(f"{name} {int(count) - 1}")
        return
    Path(path).unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGSTOP)
