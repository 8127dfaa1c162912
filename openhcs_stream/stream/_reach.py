"""From what `connect` was asked for to a lane: found, started, or found again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from openhcs_stream import discovery
from openhcs_stream.errors import ViewerUnreachable
from openhcs_stream.transport import ZmqLane, connect_inprocess, parse_address

if TYPE_CHECKING:
    from collections.abc import Set

    from openhcs_stream.discovery import Endpoint
    from openhcs_stream.stream._openhcs_find import OpenHCSEndpoint
    from openhcs_stream.transport import Address, Lane

__all__ = ["Dialect", "Found", "Reached", "Target"]

#: Where it is not known whose viewer it is: how long a ping of OpenHCS's may stay unanswered before
#: it is looked whether such a viewer can be there.
PING_S = 5.0
#: The same for one that was there before and is looked for again.
PING_AGAIN_S = 1.0

#: How a viewer is spoken to.
Dialect = Literal["native", "openhcs"]


class Reached(NamedTuple):
    """A control lane to a viewer, on which nothing was said yet."""

    address: str
    lane: Lane
    token: str


class Found(NamedTuple):
    """Where a viewer may be now."""

    address: str
    token: str
    theirs: OpenHCSEndpoint | None = None

    def open(self, *, timeout_s: float) -> Reached:
        """Open a control lane.

        Raises
        ------
        ViewerUnreachable
            There is none.
        """
        lane: Lane
        if self.theirs is not None:
            from openhcs_stream.stream._openhcs import bridge

            lane = bridge(self.theirs, timeout_s=timeout_s)
        elif self.address.startswith("inproc://"):
            lane = connect_inprocess(self.address.removeprefix("inproc://"))
        else:
            lane = ZmqLane.connect(self.address, token=self.token)
        return Reached(self.address, lane, self.token)


class Target:
    """A viewer as `connect` was asked for it: by its kind, its name, an address, a port or a file.

    Parameters
    ----------
    viewer : str
        See `connect`.
    key, token : str
        See `connect`.
    dialect : "native", "openhcs" or None
        See `connect`.
    """

    def __init__(
        self, viewer: str, *, key: str = "", token: str = "", dialect: Dialect | None = None
    ) -> None:
        self.viewer = viewer
        self._key = key
        self._token = token
        self._dialect = dialect
        #: Whether a viewer of OpenHCS was found there.
        self._is_theirs = False

    def reach(self, *, launch: bool, deadline: float, timeout_s: float) -> Reached:
        """Find the viewer, or start it, until `deadline`.

        A viewer of another project may take `timeout_s` for each message.

        Raises
        ------
        UnknownViewer, ViewerUnreachable
            See `connect`.
        """
        viewer = self.viewer
        left = max(0.0, deadline - time.monotonic())
        if self._is_address or viewer.endswith(discovery.VIEWER_SUFFIX):
            found = self._at_address(left)
        else:
            endpoint = _find(discovery.endpoints(), viewer)
            if endpoint is None:
                if not launch:
                    raise none_runs(viewer)
                endpoint = discovery.launch(viewer, timeout_s=left)
            found = self._of(endpoint)
        return found.open(timeout_s=timeout_s)

    def again(self, *, taken: Set[str], only_at: str = "") -> Found | None:
        """Where a viewer that was lost may be now; nothing is started, and little is done.

        Parameters
        ----------
        taken : set of str
            Addresses of viewers that the stream has already.
        only_at : str
            The only address that counts: who was lost there may still live.

        Returns
        -------
        Found or None
            None: it is nowhere.

        Raises
        ------
        StreamError
            What was asked for can't be read now.
        """
        if self._is_address or self.viewer.endswith(discovery.VIEWER_SUFFIX):
            found = self._at_address(PING_AGAIN_S)
        else:
            running = discovery.endpoints(clear=False)
            endpoint = _find([x for x in running if not taken & {*x.addresses}], self.viewer)
            if endpoint is None:
                return None
            found = self._of(endpoint)
        return found if only_at in ("", found.address) else None

    @property
    def _is_address(self) -> bool:
        return self.viewer.isdecimal() or "://" in self.viewer

    def _at_address(self, timeout_s: float) -> Found:
        viewer = self.viewer
        if viewer.endswith(discovery.VIEWER_SUFFIX):
            return self._of(discovery.read_viewer_file(viewer))
        if viewer.isdecimal():
            from openhcs_stream.stream._openhcs_find import address_of_port

            viewer = address_of_port(int(viewer))
        if viewer.startswith("inproc://"):
            return Found(viewer, self._token)
        where = parse_address(viewer)
        if self._key and where.scheme == "tcp" and not where.key:
            where = parse_address(f"{where}?key={self._key}")
        token = self._token or _token_of(where)
        dialect = "openhcs" if self._is_theirs else self._dialect
        theirs = None
        if dialect == "openhcs" or (dialect is None and not (token or where.key)):
            theirs = _openhcs_at(str(where), certain=dialect is not None, timeout_s=timeout_s)
            self._is_theirs = theirs is not None
        return Found(str(where), "" if theirs is not None else token, theirs)

    def _of(self, endpoint: Endpoint) -> Found:
        return Found(endpoint.addresses[0], self._token or endpoint.token)


def _find(running: list[Endpoint], viewer: str) -> Endpoint | None:
    """A running viewer by its own name, or by its kind."""
    named = [each for each in running if each.name == viewer]
    kind = [each for each in running if each.viewer == viewer]
    return next(iter([*named, *kind]), None)


def _openhcs_at(address: str, *, certain: bool, timeout_s: float) -> OpenHCSEndpoint | None:
    """A viewer of OpenHCS at that address; None where it is another, which `certain` excludes."""
    from openhcs_stream.stream._openhcs_find import ask_who, may_be_theirs, nobody

    if not certain and not may_be_theirs(address):
        return None
    theirs = ask_who(address, timeout_s=timeout_s, doubt_s=None if certain else PING_S)
    if theirs is None and certain:
        raise nobody(address, timeout_s)
    return theirs


def _token_of(where: Address) -> str:
    """The token of a viewer of this user at that address; empty where nobody is known there."""
    for each in discovery.endpoints(clear=False):
        same_port = where.scheme == "tcp" and where.is_local and each.port == where.port
        if same_port or str(where) in each.addresses:
            return each.token
    return ""


def none_runs(viewer: str) -> ViewerUnreachable:
    """The error for when nothing of that name runs and nothing may be started."""
    running = ", ".join(f"{each.name} ({each.viewer})" for each in discovery.endpoints())
    return ViewerUnreachable(
        f"no viewer {viewer!r} runs; running: {running or 'none'}.",
        cure=f"Start it with `openhcs-stream {viewer}`, or leave launch=True.",
    )
