"""A viewer and its receiver, running in this process, for tests of what sends to them."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from openhcs_stream.errors import DeadlineExceeded
from openhcs_stream.viewer import TICK_S, Receiver, Viewer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RunningReceiver", "run_receiver"]

V = TypeVar("V", bound=Viewer)

_numbers = itertools.count(1)
#: Seconds that a viewer may take to stop.
_STOP_S = 10.0


@dataclass(frozen=True)
class RunningReceiver(Generic[V]):
    """A receiver that serves `viewer` on a thread.

    Attributes
    ----------
    receiver : Receiver
    viewer : Viewer
        Look at what it holds only after the receipts, or a flush, said that all is displayed.
    address : str
        For `connect`.
    """

    receiver: Receiver
    viewer: V
    address: str


@contextlib.contextmanager
def run_receiver(
    viewer: V, *, in_process: bool = False, **options: Any
) -> Iterator[RunningReceiver[V]]:
    """Run a viewer without a GUI on a thread of its own.

    Parameters
    ----------
    viewer : Viewer
        One that may run on any thread.
    in_process : bool
        Give the address of its in-process lane, so that no socket is involved.
    **options
        Of `Receiver`; it is not published unless ``publish=True`` is among them.

    Yields
    ------
    RunningReceiver

    Raises
    ------
    DeadlineExceeded
        The viewer did not stop.

    Examples
    --------
    >>> from openhcs_stream import connect
    >>> from openhcs_stream.viewer import MemoryViewer
    >>> with run_receiver(MemoryViewer(), in_process=True) as running:
    ...     with connect(running.address) as stream:
    ...         stream.image([[1, 2], [3, 4]], name="raw").wait().state
    'displayed'
    """
    options.setdefault("publish", False)
    own = f"inproc://testing-{os.getpid()}-{next(_numbers)}"
    if in_process:
        options["addresses"] = (*options.get("addresses", ()), own)
    receiver = Receiver(viewer, **options)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            viewer.run(receiver.tick, TICK_S)
        except BaseException as error:  # raised again below, where a test sees it
            failures.append(error)

    with receiver:
        assert receiver.endpoint is not None
        address = own if in_process else receiver.endpoint.addresses[0]
        thread = threading.Thread(target=run, name=f"viewer {viewer.name}", daemon=True)
        thread.start()
        try:
            yield RunningReceiver(receiver, viewer, address)
        finally:
            viewer.stop()
            thread.join(_STOP_S)
    if thread.is_alive():
        raise DeadlineExceeded(
            f"the {viewer.name} viewer did not stop within {_STOP_S:g} s.",
            cure="Its run() must return soon after stop().",
        )
    if failures:
        raise failures[0]
