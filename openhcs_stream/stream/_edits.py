"""What persons change in the viewers, on its way to the worker's loop, coroutine or callback."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import reprlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from openhcs_stream.errors import InvalidItem, StreamError
from openhcs_stream.messages import EditsTaken, Request
from openhcs_stream.protocol import SendControl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from openhcs_stream.messages import PlaceValue
    from openhcs_stream.protocol import EditCame
    from openhcs_stream.stream._edit import Edit
    from openhcs_stream.stream._link import Link
    from openhcs_stream.stream._links import LinkGroup

__all__ = ["EditHub", "Edits", "as_callback", "as_layer_names", "as_seconds"]

logger = logging.getLogger(__name__)

#: How often somebody who waits for an edit looks whether the stream still lives.
LOOK_EVERY_S = 0.5
#: Edits that a listener remembers to have heard of.
MAX_SEEN = 4096


class _Came(NamedTuple):
    """An edit, the viewer that told of it, and which run of that viewer it was."""

    link: Link
    run: str
    edit: Edit


class Edits:
    """Edits as they come: iterate over it, also with ``async for``; close it when done.

    An edit counts as dealt with when the next one is asked for, or `close` is called after the
    loop's body ended. One whose worker died before that waits in the viewer for the next worker.
    It is a context manager. The loop ends when the stream is closed.

    Parameters
    ----------
    hub : EditHub
    number : int
        Its own among the hub's listeners.
    names : tuple of str
        Layers; none: all.
    place : mapping
        Part of the place that is listened to.
    timeout_s : float or None
        The loop ends after so many seconds without an edit; None: never.
    """

    def __init__(
        self,
        hub: EditHub,
        number: int,
        names: tuple[str, ...],
        place: Mapping[str, PlaceValue],
        timeout_s: float | None,
    ) -> None:
        self.number = number
        self.names = names
        self.place = dict(place)
        self._hub = hub
        self._timeout_s = timeout_s
        self._ready = threading.Condition()
        self._came: deque[_Came] = deque()
        self._current: _Came | None = None
        #: What was delivered: a viewer that lost its connection tells again what it still keeps.
        self._seen: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._wakes: list[Callable[[], None]] = []
        self._closed = False

    def next(self, timeout_s: float | None = None) -> Edit | None:
        """Wait for the next edit; the one before counts as dealt with.

        Returns
        -------
        Edit or None
            None: there was none within `timeout_s` seconds (None: without end), or the stream was
            closed.

        Raises
        ------
        ViewerLost
            No viewer is left from which one could come.
        """
        deadline = None if timeout_s is None else time.monotonic() + as_seconds(timeout_s)
        self._finish_current()
        while True:
            with self._ready:
                if self._came:
                    return self._pop()
                if self._closed or self._hub.is_closed():
                    return None
                left = LOOK_EVERY_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return None
                self._ready.wait(min(left, LOOK_EVERY_S))
                if self._came:
                    return self._pop()
            self._hub.check()

    @property
    def is_closed(self) -> bool:
        """Whether it hears of no more edits."""
        return self._closed

    def close(self) -> None:
        """Hear of no more edits; those that were not dealt with wait in the viewer. Idempotent."""
        if not self._closed:
            self._finish_current()
            self._closed = True
            self._hub.remove(self)
            self.wake()

    def __enter__(self) -> Edits:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._current = None  # its handling failed: it waits for another
        self.close()

    def __iter__(self) -> Edits:
        return self

    def __next__(self) -> Edit:
        edit = self.next(self._timeout_s)
        if edit is None:
            raise StopIteration
        return edit

    def __aiter__(self) -> Edits:
        return self

    async def __anext__(self) -> Edit:
        import asyncio

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._finish_current)
        deadline = None if self._timeout_s is None else loop.time() + self._timeout_s
        while True:
            event = asyncio.Event()

            def wake(loop: asyncio.AbstractEventLoop = loop, event: asyncio.Event = event) -> None:
                loop.call_soon_threadsafe(event.set)

            with self._ready:
                if self._came:
                    return self._pop()
                if self._closed or self._hub.is_closed():
                    raise StopAsyncIteration
                self._wakes.append(wake)
            left = LOOK_EVERY_S if deadline is None else deadline - loop.time()
            if left <= 0:
                raise StopAsyncIteration
            try:
                await asyncio.wait_for(event.wait(), min(left, LOOK_EVERY_S))
            except TimeoutError:
                self._hub.check()
            finally:
                with self._ready:
                    if wake in self._wakes:
                        self._wakes.remove(wake)

    # --- the hub's side -----------------------------------------------------------------------

    def deliver(self, came: _Came) -> None:
        """One came."""
        key = (came.run, came.edit.number)
        with self._ready:
            if came.run and key in self._seen:
                return
            self._seen[key] = None
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
            self._came.append(came)
        self.wake()

    def wake(self) -> None:
        """Have whoever waits look again."""
        with self._ready:
            wakes, self._wakes = self._wakes, []
            self._ready.notify_all()
        for each in wakes:
            each()

    def drain(self) -> list[Edit]:
        """All that came so far; all of them count as dealt with."""
        found = []
        with self._ready:
            while self._came:
                found.append(self._came.popleft())
        for came in found:
            self._hub.taken(came)
        return [came.edit for came in found]

    def _pop(self) -> Edit:
        self._current = self._came.popleft()
        return self._current.edit

    def _finish_current(self) -> None:
        if self._current is not None:
            came, self._current = self._current, None
            self._hub.taken(came)


class EditHub:
    """All listeners of one stream.

    Parameters
    ----------
    group : LinkGroup
    """

    def __init__(self, group: LinkGroup) -> None:
        self._group = group
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1 << 40)  # apart from those that wait for an answer
        self._listeners: list[Edits] = []

    def listen(
        self,
        names: tuple[str, ...],
        place: Mapping[str, PlaceValue],
        timeout_s: float | None,
    ) -> Edits:
        """Begin to hear of edits, and of those that wait in the viewers."""
        listener = Edits(self, next(self._numbers), names, place, timeout_s)
        with self._lock:
            self._listeners.append(listener)
        with self._group.leading(), self._group.lock:
            for link in self._group.open_links():
                self._ask(link, listener)
        return listener

    def resume(self, link: Link) -> None:
        """A viewer has a new session: it is told again what is wanted. The caller leads."""
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            self._ask(link, listener)

    def came(self, link: Link, effect: EditCame) -> None:
        """Under the stream's lock: a viewer tells of an edit."""
        with self._lock:
            listeners = [each for each in self._listeners if each.number in effect.listeners]
        if listeners:
            from openhcs_stream.stream._edit import Edit

            came = _Came(link, link.run, Edit.of_record(effect.edit, link.label))
            for each in listeners:
                each.deliver(came)

    def taken(self, came: _Came) -> None:
        """An edit is dealt with: its viewer need not keep it. Nothing where the viewer is gone."""
        if self._group.closed:
            return
        link = came.link
        with self._group.leading(), self._group.lock:
            if link.is_open and link.run == came.run:
                link.carry_out([SendControl(EditsTaken((came.edit.number,)))])

    def remove(self, listener: Edits) -> None:
        """It has heard enough."""
        with self._lock:
            if listener not in self._listeners:
                return
            self._listeners.remove(listener)
        if self._group.closed:
            return
        with self._group.leading(), self._group.lock:
            for link in self._group.open_links():
                args: dict[str, Any] = {"listener": listener.number}
                request = Request(next(self._requests), "no_edits", args)
                link.carry_out([SendControl(request)])

    def is_closed(self) -> bool:
        return self._group.closed

    def check(self) -> None:
        """Raise where no viewer is left that could tell of anything."""
        if not self._group.closed and not self._group.taking_links():
            raise self._group.nobody()

    def wake(self) -> None:
        """The stream was closed, or a viewer is gone: whoever waits looks again."""
        with self._lock:
            listeners = list(self._listeners)
        for each in listeners:
            each.wake()

    def call(self, listener: Edits, callback: Callable[[Edit], object]) -> None:
        """Call back with each edit, on a thread of its own: the callback may use the stream."""

        def heard() -> Edit | None:
            try:
                return listener.next()
            except StreamError as error:
                logger.warning("no more edits are heard of: %s", error)
                return None

        def run() -> None:
            try:
                while (edit := heard()) is not None:
                    callback(edit)
            except Exception:
                # The edit that it failed at stays in the viewer for another listener.
                logger.exception("a callback for edits failed; it is not called any more")
                listener.__exit__(Exception)
            else:
                listener.close()

        threading.Thread(target=run, name="openhcs-stream-edits", daemon=True).start()

    def _ask(self, link: Link, listener: Edits) -> None:
        args = {"listener": listener.number, "names": list(listener.names),
                "place": listener.place}  # fmt: skip
        link.carry_out([SendControl(Request(next(self._requests), "edits", args))])


def as_layer_names(on: Any) -> tuple[str, ...]:
    """Names of layers from one name, several, or None for all.

    Raises
    ------
    InvalidItem
        It is neither, or several and not one.
    """
    if on is None:
        return ()
    if isinstance(on, str):
        return (on,)
    names = tuple(on) if isinstance(on, Iterable) and not isinstance(on, bytes) else (on,)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise InvalidItem(
            f"on={reprlib.repr(on)}: {reprlib.repr(wrong[0])} is no layer's name.",
            cure='Names are text: on="nuclei", or on=["nuclei", "cells"].',
        )
    if not names:
        raise InvalidItem(
            f"on={on!r} names no layer.", cure="Name one, or leave `on` out for all layers."
        )
    return names


def as_seconds(timeout_s: Any) -> float:
    """How long to wait; what is left of a time that is over, a negative number, counts as 0.

    Raises
    ------
    InvalidItem
        It is no number of seconds.
    """
    if isinstance(timeout_s, (int, float, np.integer, np.floating)) and not np.isnan(timeout_s):
        return max(0.0, float(timeout_s))
    raise InvalidItem(
        f"timeout_s={reprlib.repr(timeout_s)} is no number of seconds.",
        cure="Use 0 or more; float('inf') waits without end.",
    )


def as_callback(callback: Any) -> Callable[[Edit], None]:
    """A function to call with each edit, from what a worker passed.

    Raises
    ------
    InvalidItem
        It can't be called, or is an async function: nobody here would await it.
    """
    function = callback
    while isinstance(function, functools.partial):
        function = function.func
    if not callable(function):
        raise InvalidItem(
            f"{reprlib.repr(callback)} can't be called with an edit.",
            cure="Pass a function of one edit.",
        )
    name = getattr(function, "__qualname__", type(function).__qualname__)
    for each in (function, getattr(function, "__call__", None)):  # noqa: B004 - an object's own
        if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each):
            raise _is_async(name, "is an async function")

    def call(edit: Edit) -> None:
        outcome = callback(edit)
        if inspect.iscoroutine(outcome):
            outcome.close()  # else Python warns that nobody awaited it
            raise _is_async(name, "gave a coroutine")

    return call


def _is_async(name: str, what: str) -> InvalidItem:
    return InvalidItem(
        f"the callback {name} {what}, and edits are told on a thread without an event loop.",
        cure="In a coroutine use `async for edit in stream.edits(): ...`, or pass a plain function "
        "that hands the edit to your loop (asyncio.run_coroutine_threadsafe).",
    )
