"""What comes back from viewers: answers to requests, what persons changed, what they say."""

from __future__ import annotations

import itertools
import reprlib
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from openhcs_stream.errors import DeadlineExceeded, InvalidItem, Refused, StreamError
from openhcs_stream.messages import Request
from openhcs_stream.pixels import numpy_dtype
from openhcs_stream.protocol import SendControl
from openhcs_stream.stream._edits import Edits, as_callback, as_layer_names, as_seconds
from openhcs_stream.stream._payload import as_place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from openhcs_stream.messages import Kind, PlaceValue
    from openhcs_stream.rois import Roi
    from openhcs_stream.stream._edit import Edit
    from openhcs_stream.stream._edits import EditHub
    from openhcs_stream.stream._link import Link
    from openhcs_stream.stream._links import LinkGroup
    from openhcs_stream.stream._payload import Place

__all__ = ["Answer", "Feedback"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered to `Stream.ask`.

    Attributes
    ----------
    outcome : "done" or "skipped"
    edits : tuple of Edit
        What was changed in the layers that were asked about, while the question stood or before
        it, as far as no one else dealt with it.
    viewer : str
        Where it was answered.
    """

    outcome: Literal["done", "skipped"]
    edits: tuple[Edit, ...]
    viewer: str

    @property
    def done(self) -> bool:
        """Whether the person chose Done and not Skip."""
        return self.outcome == "done"


class Feedback:
    """The half of a `Stream` that listens and asks; the other half sends."""

    timeout_s: float

    def __init__(self, group: LinkGroup, hub: EditHub) -> None:
        self._group = group
        self._hub = hub
        self._requests = itertools.count(1)

    @abstractmethod
    def _check(self, *, closed: bool = False) -> None:
        """Raise where the stream can't be used."""

    # --- edits --------------------------------------------------------------------------------

    def edits(
        self,
        on: str | Sequence[str] | None = None,
        *,
        place: Place | None = None,
        timeout_s: float | None = None,
    ) -> Edits:
        """Listen to what persons change: ``for edit in stream.edits(): ...``, or ``async for``.

        What was changed before, and no worker has dealt with, comes first. Every listener of every
        worker gets what it asked for; an edit is kept in the viewer until one of them has dealt
        with it, that is, asks for the next one.

        Parameters
        ----------
        on : str or sequence of str
            Names of layers: "nuclei". None: all layers of the viewer, whoever sent them.
        place : mapping
            Only edits at this part of a place: {"well": "A01"}.
        timeout_s : float
            End the loop after so many seconds without an edit; None: only when the stream closes.

        Returns
        -------
        Edits
            An iterator and context manager; close it where the loop is left before its end.

        Raises
        ------
        InvalidItem
            `on`, `place` or `timeout_s` is none.
        ViewerLost
            While iterating: no viewer is left.
        """
        self._check()
        limit = None if timeout_s is None else as_seconds(timeout_s)
        return self._hub.listen(as_layer_names(on), as_place(place, ""), limit)

    def on_edit(
        self,
        callback: Callable[[Edit], object],
        on: str | Sequence[str] | None = None,
        *,
        place: Place | None = None,
    ) -> Edits:
        """Call `callback` with each edit, on a thread of its own; it may use the stream.

        Where it raises, the error is logged, the edit waits in the viewer for another listener,
        and it is not called any more.

        Returns
        -------
        Edits
            Close it to stop.

        Raises
        ------
        InvalidItem
            `callback` is an async function, which has no event loop here, or can't be called;
            `on` or `place` is none.
        """
        self._check()
        function = as_callback(callback)
        listener = self._hub.listen(as_layer_names(on), as_place(place, ""), None)
        self._hub.call(listener, function)
        return listener

    # --- how things stand ---------------------------------------------------------------------

    def places(
        self, on: str, *, kind: Kind | None = None, source: str | None = None, viewer: str = ""
    ) -> list[dict[str, PlaceValue]]:
        """Where a layer has something: [{"well": "A01", "site": 1}, ...].

        Raises
        ------
        Refused
            The viewer has no such layer; the text names those that there are.
        """
        args: dict[str, Any] = {"name": on, "kind": kind, "source": source}
        found: list[dict[str, PlaceValue]] = self.request(
            "places", viewer=viewer, **{key: each for key, each in args.items() if each is not None}
        )
        return found

    def get_rois(
        self,
        on: str,
        *,
        place: Place | None = None,
        source: str | None = None,
        viewer: str = "",
        timeout_s: float | None = None,
    ) -> list[Roi]:
        """Get the ROIs of a layer at one place as they are now, with what a person changed.

        Parameters
        ----------
        on : str
            Name of the layer.
        place : mapping
            As much of the place as tells it from others; needless where there is one.
        source : str
            Of the layer, where several sources have one of that name.
        viewer : str
            Name of the viewer, where there are several; the first by default.
        timeout_s : float
            None: the stream's own.

        Raises
        ------
        Refused
            The viewer has no such layer or place, or several of them: the text names them.
        """
        from openhcs_stream import rois as roi_codecs

        answer = self._read("rois", on, place, source, viewer, timeout_s)
        return list(roi_codecs.decode(answer["data"]))

    def get_labels(
        self,
        on: str,
        *,
        place: Place | None = None,
        source: str | None = None,
        viewer: str = "",
        timeout_s: float | None = None,
    ) -> npt.NDArray[Any]:
        """Get one plane of a label image as it is now: (Y, X). As `get_rois` otherwise."""
        return _array(self._read("labels", on, place, source, viewer, timeout_s))

    def get_points(
        self,
        on: str,
        *,
        place: Place | None = None,
        source: str | None = None,
        viewer: str = "",
        timeout_s: float | None = None,
    ) -> npt.NDArray[np.float64]:
        """Get the points of one plane as they are now: (N, 2) float64, y and x. As `get_rois`."""
        return _array(self._read("points", on, place, source, viewer, timeout_s))

    def get_tracks(
        self,
        on: str,
        *,
        place: Place | None = None,
        source: str | None = None,
        viewer: str = "",
        timeout_s: float | None = None,
    ) -> npt.NDArray[np.float64]:
        """Get the tracks of one place, as they were sent: (N, 4) or (N, 5) float64.

        A row has the track's number, time, z where there is one, y and x. In napari, a *Tracks*
        layer that the person or a plugin made is read by its name too, as its ``data`` is: its
        scale and the graph of divisions are not told. As `get_rois` otherwise.
        """
        return _array(self._read("tracks", on, place, source, viewer, timeout_s))

    def _read(
        self,
        kind: Kind,
        on: str,
        place: Place | None,
        source: str | None,
        viewer: str,
        timeout_s: float | None,
    ) -> dict[str, Any]:
        args: dict[str, Any] = {"kind": kind, "name": on, "place": as_place(place, "")}
        if source is not None:
            args["source"] = source
        answer: dict[str, Any] = self.request("read", viewer=viewer, timeout_s=timeout_s, **args)
        return answer

    # --- asking -------------------------------------------------------------------------------

    def ask(
        self,
        text: str,
        on: str | Sequence[str] | None = None,
        *,
        place: Place | None = None,
        timeout_s: float = 3600.0,
    ) -> Answer:
        """Show a message with Done and Skip in the viewers, and wait for a person to choose.

        The viewers' sliders go to the place. Of several viewers the first answer counts. What is
        sent before is displayed first.

        Parameters
        ----------
        text : str
            "please check the outlines"
        on : str or sequence of str
            Layers that it is about: their edits are in the answer.
        place : mapping
            Where to look: {"well": "A01", "site": 1}.
        timeout_s : float
            How long to wait for the person, seconds.

        Returns
        -------
        Answer
            With the edits. `get_rois` and `get_labels` give what is there in the end.

        Raises
        ------
        InvalidItem
            `text` is no text, empty, or longer than 4096 characters; `on`, `place` or
            `timeout_s` is none.
        DeadlineExceeded
            Nobody answered within `timeout_s`; the message is taken away, and edits wait.
        Refused
            No viewer has a window at which somebody could answer.
        """
        self._check()
        if not isinstance(text, str):
            raise InvalidItem(
                f"{reprlib.repr(text)} can't be asked.", cure="Ask with text: 'Please check.'"
            )
        if not text or len(text) > 4096:
            raise InvalidItem(
                f"a message of {len(text)} characters can't be asked.", cure="Use 1 to 4096."
            )
        names = as_layer_names(on)
        where, limit = as_place(place, ""), as_seconds(timeout_s)
        with self._hub.listen(names, where, None) as listener:
            deadline = time.monotonic() + limit
            self._wait_for_items(self._group.open_links(), limit)
            asked = self._send_to_all("ask", {"text": text, "names": list(names), "place": where})
            try:
                link, outcome = self._first_answer(asked, limit, deadline)
            finally:
                self._withdraw(asked)
            # What was changed was told before the answer, on the same lane.
            return Answer(outcome, tuple(listener.drain()) if names else (), link.label)

    def _wait_for_items(self, links: Sequence[Link], timeout_s: float) -> None:
        """Wait until viewers have what was sent: a request goes another way and may overtake it."""
        self._group.wait_until(
            lambda: all(link.session.is_received or not link.is_open for link in links), timeout_s
        )

    def _send_to_all(self, verb: str, args: dict[str, Any]) -> dict[Link, int]:
        with self._group.leading(), self._group.lock:
            asked = {link: next(self._requests) for link in self._group.open_links()}
            if not asked:
                raise self._group.nobody()
            for link, number in asked.items():
                # A viewer that dies over the question and is back shows it again.
                link.ask(Request(number, verb, args), again=True)
        return asked

    def _first_answer(
        self, asked: dict[Link, int], timeout_s: float, deadline: float
    ) -> tuple[Link, Any]:
        refusal: StreamError | None = None
        while asked:
            self._group.wait_until(
                lambda: any(link.has_reply(n) for link, n in asked.items()),
                deadline - time.monotonic(),
            )
            ready = [link for link, n in asked.items() if link.has_reply(n)]
            if not ready:
                self._check()
                raise DeadlineExceeded(
                    f"nobody answered within {timeout_s:g} s.",
                    cure="Allow more time, or go on without an answer; edits wait in the viewer.",
                )
            for link in ready:
                reply = link.take_reply(asked.pop(link))
                if isinstance(reply, StreamError):
                    refusal = reply
                elif reply is not None and reply.ok:
                    return link, reply.value
                elif reply is not None:
                    refusal = Refused(f"{link.label} can't ask: {reply.what}", cure=reply.cure)
        self._check()
        raise refusal or self._group.nobody()

    def _withdraw(self, asked: dict[Link, int]) -> None:
        if not asked or self._group.closed:
            return
        with self._group.leading(), self._group.lock:
            for link, number in asked.items():
                link.take_reply(number)
                if link.is_open:
                    args = {"number": number}
                    request = Request(next(self._requests), "withdraw", args)
                    link.carry_out([SendControl(request)])

    # --- requests -----------------------------------------------------------------------------

    def request(
        self, verb: str, *, viewer: str = "", timeout_s: float | None = None, **args: Any
    ) -> Any:
        """Ask a viewer for something that is no item: "status", "clear", "screenshot", "stop".

        It is asked when the viewer has all that was sent before, but for its status.

        Parameters
        ----------
        verb : str
            What to do.
        viewer : str
            Name of the viewer, where there are several; the first by default.
        timeout_s : float
            None: the stream's own.
        **args
            What the request takes.

        Raises
        ------
        Refused
            The viewer can't, and says why.
        DeadlineExceeded
            It did not answer in time.
        """
        self._check()
        limit = self.timeout_s if timeout_s is None else as_seconds(timeout_s)
        deadline = time.monotonic() + limit
        if verb != "status":
            self._wait_for_items([self._link(viewer)], limit)
        number = next(self._requests)
        with self._group.leading(), self._group.lock:
            link = self._link(viewer)
            link.ask(Request(number, verb, args))
        self._group.wait_until(lambda: link.has_reply(number), deadline - time.monotonic())
        with self._group.lock:
            reply = link.take_reply(number)
        if isinstance(reply, StreamError):
            raise reply
        if reply is None:
            raise DeadlineExceeded(
                f"{link.label} did not answer {verb!r} within {limit:g} s.",
                cure="It may be busy or stopped; allow more time.",
            )
        if not reply.ok:
            raise Refused(f"{link.label} refused {verb!r}: {reply.what}", cure=reply.cure)
        return reply.value

    def _link(self, viewer: str) -> Link:
        links = self._group.open_links()
        if not links:
            raise self._group.nobody()
        for link in links:
            if not viewer or viewer in (link.name, link.viewer):
                return link
        raise InvalidItem(
            f"this stream has no viewer {viewer!r}.",
            cure=f"It has {', '.join(link.label for link in links)}.",
        )


def _array(answer: dict[str, Any]) -> npt.NDArray[Any]:
    dtype = numpy_dtype(answer["dtype"])
    return np.frombuffer(answer["data"], dtype).reshape(answer["shape"]).copy()
