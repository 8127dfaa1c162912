"""Finding viewers and connecting to them: `connect`, `view`, `ask`."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any

from openhcs_stream import discovery
from openhcs_stream.errors import InvalidItem, ViewerUnreachable
from openhcs_stream.stream._control import ask_lane
from openhcs_stream.stream._payload import as_names
from openhcs_stream.stream._stream import Stream
from openhcs_stream.transport import InProcessLane, ZmqLane, connect_inprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import Mode
    from openhcs_stream.stream._receipt import Receipt
    from openhcs_stream.stream._stream import WhenFull
    from openhcs_stream.transport import Lane

__all__ = ["ask", "connect", "view"]


def connect(
    viewers: str | Sequence[str] = "napari",
    *,
    name: str | None = None,
    source: str = "",
    modes: Mapping[str, Mode] | None = None,
    order: Sequence[str] = (),
    pixel_size: float | Sequence[float] | None = None,
    unit: str = "um",
    when_full: WhenFull = "block",
    timeout_s: float = 30.0,
    quota_nbytes: int | None = None,
    launch: bool = True,
    token: str = "",
    side_lane: bool = True,
) -> Stream:
    """Connect to a running viewer, or start one.

    Parameters
    ----------
    viewers : str or sequence of str
        What to show things in: a viewer ("napari"), the name of a running one
        ("napari-1" as `openhcs-stream status` lists it), or an address
        ("tcp://127.0.0.1:5555", "ipc:///...", "inproc://name"). Several get the same items.
    name : str
        What this stream is called in viewers and trackers; None: the program and its process.
    source : str
        Plate, pipeline or step; layers are grouped by it.
    modes : mapping of component to mode
        How each component of a place is shown: "stack" (a slider), "split" (a layer or window
        each), "channel" (a channel of a composite; in napari a layer), "slice", "frame". By
        default "channel" for channel, "stack" for all others.
    order : sequence of str
        Components, slowest first; by default well, site, channel, time, z.
    pixel_size : float, (Y, X) or (Z, Y, X)
        Default of all images.
    unit : str
        Unit of the pixel sizes.
    when_full : "block" or "drop"
        What a send does while the viewers have not taken what was sent before.
    timeout_s : float
        Deadline of connecting, and of each blocking call that is not given its own.
    quota_nbytes : int or None
        Most shared memory to use; None: at most 1 GiB and a quarter of the machine's memory.
    launch : bool
        Start a viewer of that kind where none runs. It survives this process.
    token : str
        Shown to a viewer at an address; of this user's running viewers it is known.
    side_lane : bool
        Use shared memory where the viewer is on this machine.

    Returns
    -------
    Stream
        A context manager; leaving it waits for everything to be displayed.

    Raises
    ------
    UnknownViewer
        No viewer of that name is installed.
    ViewerUnreachable
        None runs and none could be started, or nobody answers at the address.
    """
    wanted = as_names(viewers)
    if not wanted:
        raise InvalidItem("connect() was given no viewer.", cure='Name one: connect("napari").')
    lanes: list[tuple[str, Lane, str]] = []
    try:
        for each in wanted:
            address, lane, its_token = _reach(each, token, launch=launch, timeout_s=timeout_s)
            lanes.append((address, lane, its_token))
        return Stream(
            lanes, name=name, source=source, modes=modes, order=order, pixel_size=pixel_size,
            unit=unit, when_full=when_full, timeout_s=timeout_s, quota_nbytes=quota_nbytes,
            side_lane=side_lane,
        )  # fmt: skip
    except BaseException:
        for _, lane, _ in lanes:
            lane.close()
        raise


def ask(
    viewer: str | Endpoint, verb: str, *, timeout_s: float = 5.0, token: str = "", **args: Any
) -> Any:
    """Ask a running viewer for something without opening a stream: "status", "clear", "stop".

    Raises
    ------
    ViewerUnreachable
        None of that name runs, or it does not answer.
    Refused
        It can't, and says why.
    """
    if isinstance(viewer, str):
        if "://" in viewer:
            address, lane, token = _reach(viewer, token, launch=False, timeout_s=timeout_s)
            return ask_lane(lane, address, verb, args, token=token, timeout_s=timeout_s)
        found = _find(viewer)
        if found is None:
            raise _none_runs(viewer)
        viewer = found
    address = viewer.addresses[0]
    lane = ZmqLane.connect(address)
    return ask_lane(lane, address, verb, args, token=viewer.token, timeout_s=timeout_s)


_shared_lock = threading.Lock()
_shared: dict[tuple[int, str], Stream] = {}


def view(data: Any, viewer: str = "napari", **look: Any) -> Receipt:
    """Show one array: find or start a viewer and send it, in one line.

    Parameters
    ----------
    data : array-like
        An image.
    viewer : str
        As in `connect`. The connection is kept for the next call.
    **look
        Keywords of `Stream.image`.
    """
    key = (os.getpid(), viewer)
    with _shared_lock:
        stream = _shared.get(key)
        if stream is None or stream.closed or not stream.viewers:
            if stream is not None:
                stream.close(timeout_s=0.0)
            stream = _shared[key] = connect(viewer)
    return stream.image(data, **look)


@atexit.register
def _forget_shared() -> None:
    """Streams that `view` opened are closed with the interpreter, without a warning."""
    for (pid, _), stream in _shared.items():
        if pid == os.getpid():
            stream.close(timeout_s=2.0)


def _reach(viewer: str, token: str, *, launch: bool, timeout_s: float) -> tuple[str, Lane, str]:
    """A control lane to a viewer that is named, found or started."""
    if viewer.startswith("inproc://"):
        lane: InProcessLane = connect_inprocess(viewer.removeprefix("inproc://"))
        return viewer, lane, token
    if "://" in viewer:
        return viewer, ZmqLane.connect(viewer), token or _token_of(viewer)
    found = _find(viewer)
    if found is None:
        if not launch:
            raise _none_runs(viewer)
        found = discovery.launch(viewer, timeout_s=timeout_s)
    return found.addresses[0], ZmqLane.connect(found.addresses[0]), token or found.token


def _find(viewer: str) -> Endpoint | None:
    """A running viewer by its own name, or by its kind."""
    running = discovery.endpoints()
    named = [each for each in running if each.name == viewer]
    kind = [each for each in running if each.viewer == viewer]
    return next(iter([*named, *kind]), None)


def _token_of(address: str) -> str:
    """The token of a viewer of this user at that address; empty where nobody is known there."""
    running = discovery.endpoints()
    return next((each.token for each in running if address in each.addresses), "")


def _none_runs(viewer: str) -> ViewerUnreachable:
    running = ", ".join(f"{each.name} ({each.viewer})" for each in discovery.endpoints())
    return ViewerUnreachable(
        f"no viewer {viewer!r} runs; running: {running or 'none'}.",
        cure=f"Start it with `openhcs-stream {viewer}`, or leave launch=True.",
    )
