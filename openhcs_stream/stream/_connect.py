"""Finding viewers and connecting to them: `connect`, `view`, `ask`."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from openhcs_stream.errors import InvalidItem
from openhcs_stream.stream._stream import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.messages import Mode
    from openhcs_stream.stream._reach import Dialect, Reached, Target
    from openhcs_stream.stream._receipt import Receipt
    from openhcs_stream.stream._room import WhenFull

__all__ = ["ask", "connect", "view"]


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
    sample_every: int = 10,
    timeout_s: float = 30.0,
    reconnect_s: float = 10.0,
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
    when_full : "block", "drop", "latest" or "sample"
        What a send does while the viewers have not taken what was sent before: wait, up to
        `timeout_s`; let the new item go; have it wait in place of an older one of the same layer
        and place, which goes; or, from three quarters full on, send one item of `sample_every`.
        Under the last three no viewer can hold the worker up. What went is counted.
    sample_every : int
        Of "sample".
    timeout_s : float
        Deadline of connecting, and of each blocking call that is not given its own.
    reconnect_s : float
        For how long what was sent waits for a viewer that died; then it fails, and so do later
        sends, at once, until the viewer is back. Whenever it is, by the same name or address, the
        stream goes on by itself. 0: a viewer that is gone is gone for good.
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
    from openhcs_stream.stream._reach import Target

    named = [viewers] if isinstance(viewers, str | int) else viewers
    wanted = [str(each) for each in named]
    if not wanted:
        raise InvalidItem("connect() was given no viewer.", cure='Name one: connect("napari").')
    deadline = time.monotonic() + timeout_s
    reached: list[tuple[Target, Reached]] = []
    try:
        for each in wanted:
            target = Target(each, key=key, token=token, dialect=dialect)
            found = target.reach(launch=launch, deadline=deadline, timeout_s=timeout_s)
            reached.append((target, found))
        return Stream(
            reached, deadline=deadline, name=name, source=source, modes=modes, order=order,
            pixel_size=pixel_size, unit=unit, when_full=when_full, sample_every=sample_every,
            timeout_s=timeout_s, reconnect_s=reconnect_s, quota_nbytes=quota_nbytes,
            side_lane=side_lane,
        )  # fmt: skip
    except BaseException:
        for _, (_, lane, _) in reached:
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
    from openhcs_stream.stream._control import ask_lane
    from openhcs_stream.stream._reach import Found, Target

    if isinstance(viewer, str):
        target = Target(viewer, key=key, token=token)
        address, lane, token = target.reach(
            launch=False, deadline=time.monotonic() + timeout_s, timeout_s=timeout_s
        )
    else:
        found = Found(viewer.addresses[0], token or viewer.token)
        address, lane, token = found.open(timeout_s=timeout_s)
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
