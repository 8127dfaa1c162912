"""A viewer of the campaign, as a program: ``openhcs-stream KIND ...`` that can stop at points.

Environment variables give it troubles: CAMPAIGN_SLOW_S seconds for each drawing, an exception for
layers whose name holds CAMPAIGN_RAISES, CAMPAIGN_AS_MIB of address space beyond what it has when
it is ready, CAMPAIGN_FILES more open files than then. Its status tells how many items of each
stream, by the stream's name, it has displayed in its life, and how many of them twice.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scripts._campaign import points

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.viewer import Coords, SceneLayer, Viewer

#: Sessions whose items are remembered one by one.
SESSIONS: Final = 16


def main() -> int:
    """Run the command of the package itself, with its viewer's class wrapped."""
    from openhcs_stream import viewer as room
    from openhcs_stream.cli import main as command

    threading.Thread(target=end_with_the_cell, daemon=True).start()
    points.install(points.VIEWER_POINTS)
    create = room.create

    def wrapped(*args: Any, **kwargs: Any) -> Viewer:
        made = create(*args, **kwargs)
        points.wrap(type(made), "keep", "keep", "<")
        points.wrap(type(made), "show_layer", "show", "<")
        trouble(type(made))
        count(type(made))
        return made

    room.create = wrapped
    serve = room.serve

    def ready(*args: Any, on_ready: Callable[[Endpoint], None], **kwargs: Any) -> None:
        def then(endpoint: Endpoint) -> None:
            on_ready(endpoint)
            limit()

        serve(*args, on_ready=then, **kwargs)

    room.serve = ready  # type: ignore[assignment]
    return command(sys.argv[1:])


def end_with_the_cell() -> None:
    """A campaign that is interrupted leaves no viewers."""
    while os.read(0, 1):
        pass
    os._exit(1)


def trouble(kind: type[Viewer]) -> None:
    """Have a viewer draw slowly, or fail."""
    slow_s = float(os.environ.get("CAMPAIGN_SLOW_S", "0"))
    raises = os.environ.get("CAMPAIGN_RAISES", "")
    show = kind.show_layer

    def troubled(self: Viewer, layer: SceneLayer, arrived: Sequence[Coords]) -> None:
        time.sleep(slow_s)
        if raises and raises in layer.title:
            raise RuntimeError("the plugin's own reason")
        show(self, layer, arrived)

    if slow_s or raises:
        kind.show_layer = troubled  # type: ignore[method-assign]


def count(kind: type[Viewer]) -> None:
    """Count for itself what a viewer says to be displayed, and what of it a second time."""
    from openhcs_stream.protocol import ReceiverSession

    counts: Counter[str] = Counter()
    twice: Counter[str] = Counter()
    #: Items of the last sessions, by the session; one goes on where a sender reconnects.
    seen: OrderedDict[str, set[int]] = OrderedDict()
    displayed, describe = ReceiverSession.displayed, kind.describe

    def counting(self: ReceiverSession, seq: int) -> None:
        assert self.hello is not None
        name, session = self.hello.name, self.hello.session
        counts[name] += 1
        shown = seen.setdefault(session, set())
        if seq in shown:
            twice[name] += 1
        shown.add(seq)
        seen.move_to_end(session)
        if len(seen) > SESSIONS:
            seen.popitem(last=False)
        displayed(self, seq)

    ReceiverSession.displayed = counting  # type: ignore[method-assign]
    kind.describe = lambda self: {  # type: ignore[method-assign]
        **describe(self), "campaign": {"displayed": dict(counts), "twice": dict(twice)},
    }  # fmt: skip


def limit() -> None:
    """Take memory or descriptors away, once it is ready."""
    mib, files = os.environ.get("CAMPAIGN_AS_MIB"), os.environ.get("CAMPAIGN_FILES")
    if mib:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        nbytes = pages * resource.getpagesize() + (int(mib) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
    if files:
        most = max(int(fd) for fd in os.listdir("/proc/self/fd")) + int(files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
