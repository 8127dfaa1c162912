"""Finding viewers and connecting to them: `connect`, `view`, `ask`."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Any, Literal

from openhcs_stream import discovery
from openhcs_stream.errors import InvalidItem, ViewerUnreachable
from openhcs_stream.stream._control import ask_lane
from openhcs_stream.stream._openhcs import bridge
from openhcs_stream.stream._openhcs_find import address_of_port, ask_who, may_be_theirs, nobody
from openhcs_stream.stream._stream import Stream
from openhcs_stream.transport import InProcessLane, ZmqLane, connect_inprocess, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import Mode
    from openhcs_stream.stream._openhcs_find import OpenHCSEndpoint
    from openhcs_stream.stream._receipt import Receipt
    from openhcs_stream.stream._stream import WhenFull
    from openhcs_stream.transport import Address, Lane

__all__ = ["Dialect", "ask", "connect", "view"]

#: Where it is not known whose viewer it is: how long a ping of OpenHCS's may stay unanswered.
PING_S = 5.0

#: How a viewer is spoken to.
Dialect = Literal["native", "openhcs"]


def connect(
    viewers: str | int | Sequence[str | int] = "napari",
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
    key: str = "",
    token: str = "",
    side_lane: bool = True,
    dialect: Dialect | None = None,
) -> Stream:
    """Connect to a running viewer, or start one.

    Parameters
    ----------
    viewers : str or int, or sequence of them
        What to show things in: a viewer ("napari"), the name of a running one
        ("napari-1" as `openhcs-stream status` lists it), or an address
        ("tcp://127.0.0.1:5555", "ipc:///...", "inproc://name"), a port of this machine (5555), or
        a copy of the file that a viewer with ``--public`` wrote ("napari.viewer"). Several get
        the same items.
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
    key : str
        Public key of a viewer on another machine, where the address has none: 64 hexadecimal
        characters. What is sent is encrypted with it.
    token : str
        Shown to a viewer at an address; of this user's running viewers, and in a viewer's file,
        it is known.
    side_lane : bool
        Use shared memory where the viewer is on this machine.
    dialect : "native" or "openhcs"
        How a viewer at an address is spoken to. None: it is asked. One of OpenHCS's own viewers
        gets its own messages, with what it has no way to show refused by name.

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
    Refused
        The viewer does not know the key or the token.
    """
    named = [viewers] if isinstance(viewers, str | int) else viewers
    wanted = [str(each) for each in named]
    if not wanted:
        raise InvalidItem("connect() was given no viewer.", cure='Name one: connect("napari").')
    lanes: list[tuple[str, Lane, str]] = []
    try:
        for each in wanted:
            address, lane, its_token = _reach(
                each, key, token, launch=launch, timeout_s=timeout_s, dialect=dialect
            )
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
    viewer: str | Endpoint,
    verb: str,
    *,
    timeout_s: float = 5.0,
    key: str = "",
    token: str = "",
    **args: Any,
) -> Any:
    """Ask a running viewer for something without opening a stream: "status", "clear", "stop".

    Parameters
    ----------
    viewer : str or Endpoint
        As in `connect`; none is started.
    verb : str
        What it is asked for.
    timeout_s : float
        Deadline of its answer.
    key, token : str
        As in `connect`.
    **args
        What belongs to the request.

    Raises
    ------
    ViewerUnreachable
        None of that name runs, or it does not answer.
    Refused
        It can't, and says why.
    """
    if isinstance(viewer, str):
        address, lane, token = _reach(viewer, key, token, launch=False, timeout_s=timeout_s)
    else:
        address, lane, token = _reach_found(viewer, token)
    return ask_lane(lane, address, verb, args, token=token, timeout_s=timeout_s)


_shared_lock = threading.Lock()
_shared: dict[tuple[int, str], Stream] = {}


def _after_fork_in_child() -> None:
    """A thread that is not there any more may hold the lock, for as long as a viewer starts."""
    global _shared_lock
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


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


def _reach(
    viewer: str,
    key: str,
    token: str,
    *,
    launch: bool,
    timeout_s: float,
    dialect: Dialect | None = None,
) -> tuple[str, Lane, str]:
    """A control lane to a viewer that is named, found or started."""
    if viewer.isdecimal():
        viewer = address_of_port(int(viewer))
    if viewer.startswith("inproc://"):
        lane: InProcessLane = connect_inprocess(viewer.removeprefix("inproc://"))
        return viewer, lane, token
    if "://" in viewer:
        where = parse_address(viewer)
        if key and where.scheme == "tcp" and not where.key:
            where = parse_address(f"{where}?key={key}")
        token = token or _token_of(where)
        theirs = None
        if dialect == "openhcs" or (dialect is None and not (token or where.key)):
            theirs = _openhcs_at(str(where), certain=dialect is not None, timeout_s=timeout_s)
        if theirs is not None:
            return str(where), bridge(theirs, timeout_s=timeout_s), ""
        return str(where), ZmqLane.connect(str(where), token=token), token
    if viewer.endswith(discovery.VIEWER_SUFFIX):
        return _reach_found(discovery.read_viewer_file(viewer), token)
    found = _find(viewer)
    if found is None:
        if not launch:
            raise _none_runs(viewer)
        found = discovery.launch(viewer, timeout_s=timeout_s)
    return _reach_found(found, token)


def _reach_found(found: Endpoint, token: str) -> tuple[str, Lane, str]:
    address, token = found.addresses[0], token or found.token
    return address, ZmqLane.connect(address, token=token), token


def _find(viewer: str) -> Endpoint | None:
    """A running viewer by its own name, or by its kind."""
    running = discovery.endpoints()
    named = [each for each in running if each.name == viewer]
    kind = [each for each in running if each.viewer == viewer]
    return next(iter([*named, *kind]), None)


def _openhcs_at(address: str, *, certain: bool, timeout_s: float) -> OpenHCSEndpoint | None:
    """A viewer of OpenHCS at that address; None where it is another, which `certain` excludes."""
    if not certain and not may_be_theirs(address):
        return None
    theirs = ask_who(address, timeout_s=timeout_s if certain else min(timeout_s, PING_S))
    if theirs is None and certain:
        raise nobody(address, timeout_s)
    return theirs


def _token_of(where: Address) -> str:
    """The token of a viewer of this user at that address; empty where nobody is known there."""
    for each in discovery.endpoints():
        same_port = where.scheme == "tcp" and where.is_local and each.port == where.port
        if same_port or str(where) in each.addresses:
            return each.token
    return ""


def _none_runs(viewer: str) -> ViewerUnreachable:
    running = ", ".join(f"{each.name} ({each.viewer})" for each in discovery.endpoints())
    return ViewerUnreachable(
        f"no viewer {viewer!r} runs; running: {running or 'none'}.",
        cure=f"Start it with `openhcs-stream {viewer}`, or leave launch=True.",
    )
