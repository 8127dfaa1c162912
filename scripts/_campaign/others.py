"""Faults without a kill: viewers and senders that are stopped, slow, broken or full, and addresses
that are somebody else's. No call may block beyond its limit, and the interpreter must end.

Each is a function of the cell; what it yields is what went wrong.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import zmq

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.errors import (
    DeadlineExceeded,
    ItemFailed,
    PeerError,
    StreamError,
    ViewerUnreachable,
)
from scripts._campaign.cell import START_S, CellError, wait_for
from scripts._campaign.worker import EXIT_S, SLACK_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openhcs_stream.stream import Receipt, Stream
    from scripts._campaign.cell import Cell, Running

__all__ = ["OTHERS", "OtherTrial", "plan_others"]

#: By name in words; each yields what went wrong.
OTHERS: Final[dict[str, Callable[[Cell], Iterator[str]]]] = {}

LIMIT_S: Final = 1.0
IMAGE: Final = np.arange(512 * 512, dtype=np.uint16).reshape(512, 512)
SMALL: Final = np.zeros((16, 16), np.uint8)


@dataclass(frozen=True)
class OtherTrial:
    """One fault without a kill."""

    number: int
    does: str
    scenario: str = "no kill"
    phase: str = ""

    def __str__(self) -> str:
        return f"trial {self.number}: {self.does}"


def plan_others(*, first: int, short: bool = False) -> list[OtherTrial]:
    """All of them, or those that start no napari and no Java, once, numbered from `first` on."""
    names = [name for name in OTHERS if not (short and ("napari" in name or "fiji" in name))]
    return [OtherTrial(first + at, name) for at, name in enumerate(names)]


_Fault = TypeVar("_Fault", bound="Callable[[Cell], Iterator[str]]")


def fault(function: _Fault) -> _Fault:
    """Enter a function into the table, under its name in words."""
    OTHERS[function.__name__.replace("_", " ")] = function
    return function


class Within:
    """Calls that must return, or raise one of some errors, within a limit."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(
        self,
        limit_s: float,
        expected: type[Exception] | tuple[type[Exception], ...],
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call; `expected` is what it may raise, () if nothing; its result, or the error."""
        begin = time.monotonic()
        result: Any = None
        try:
            result = call(*args, **kwargs)
        except expected as error:
            result = error
        except StreamError as error:
            self.problems.append(f"{_name(call)} raised {type(error).__name__}: {error}")
        took = time.monotonic() - begin
        if took > limit_s + SLACK_S:
            self.problems.append(f"{_name(call)} took {took:.1f} s; its limit is {limit_s:g} s")
        return result


def _name(call: Any) -> str:
    return str(getattr(call, "__name__", call))


def connect(viewer: Running | str, **options: Any) -> Stream:
    address = viewer if isinstance(viewer, str) else viewer.address
    options = {"timeout_s": LIMIT_S, "launch": False, "quota_nbytes": 16 << 20, **options}
    return openhcs_stream.connect(address, name="other", **options)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes (SIGSTOP) for the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def fill(stream: Stream) -> tuple[list[Receipt], StreamError | None]:
    """Send until a call raises."""
    receipts: list[Receipt] = []
    try:
        while len(receipts) < 1000:
            receipts.append(stream.image(IMAGE, name="filling"))
    except DeadlineExceeded as error:
        return receipts, error
    return receipts, None


def books(receipts: list[Receipt], **expected: int) -> Iterator[str]:
    states: list[str] = [receipt.state for receipt in receipts]
    for state in ("sent", "received"):
        if state in states:
            yield f"{states.count(state)} of {len(states)} items stay {state!r}"
    for state, count in expected.items():
        if states.count(state) != count:
            yield f"{states.count(state)} of {len(states)} items are {state!r}, not {count}"


# --- stopped --------------------------------------------------------------------------------------


def _stopped_viewer(cell: Cell, kind: str) -> Iterator[str]:
    viewer = cell.ready_viewer(kind)
    within = Within()
    stream = within(LIMIT_S, (), connect, viewer)
    with stopped(viewer.pid):
        receipts, error = within(LIMIT_S, (), fill, stream)
        if error is None:
            yield "a stopped viewer took everything"
        within(LIMIT_S, DeadlineExceeded, stream.flush)
        within(LIMIT_S, DeadlineExceeded, receipts[-1].wait, timeout_s=LIMIT_S)
        within(LIMIT_S, DeadlineExceeded, stream.request, "layers")
        within(0.0, (), stream.status)
        within(LIMIT_S, (ViewerUnreachable, DeadlineExceeded), connect, viewer)
        within(LIMIT_S, PeerError, openhcs_stream.ask, viewer.address, "status", timeout_s=LIMIT_S)
        time.sleep(1.0)
    within(20.0, (), stream.flush, timeout_s=20.0)
    within(LIMIT_S, (), stream.close)
    yield from within.problems
    yield from books(receipts, displayed=len(receipts))


@fault
def stopped_memory_viewer(cell: Cell) -> Iterator[str]:
    """It takes nothing: each call meets its own limit; when it goes on, nothing was lost."""
    yield from _stopped_viewer(cell, "memory")


@fault
def stopped_napari(cell: Cell) -> Iterator[str]:
    yield from _stopped_viewer(cell, "napari")


@fault
def stopped_napari_with_a_window(cell: Cell) -> Iterator[str]:
    yield from _stopped_viewer(cell, "napari+")


@fault
def stopped_fiji(cell: Cell) -> Iterator[str]:
    yield from _stopped_viewer(cell, "fiji")


@fault
def stopped_viewer_and_a_dropping_stream(cell: Cell) -> Iterator[str]:
    """Not a call of it waits, and what was not dropped is displayed."""
    viewer = cell.ready_viewer("memory")
    within = Within()
    stream = connect(viewer, when_full="drop")
    with stopped(viewer.pid):
        receipts = [within(0.0, (), stream.image, IMAGE, name="filling") for _ in range(200)]
    within(20.0, (), stream.flush, timeout_s=20.0)
    within(LIMIT_S, (), stream.close)
    yield from within.problems
    states = [receipt.state for receipt in receipts]
    if not 0 < states.count("dropped") < 200:
        yield f"{states.count('dropped')} of 200 were dropped"
    yield from books(receipts, displayed=200 - states.count("dropped"))


@fault
def stopped_viewer_and_close(cell: Cell) -> Iterator[str]:
    """A stream that is closed beside a stopped viewer says of everything that it failed."""
    viewer = cell.ready_viewer("memory")
    within = Within()
    stream = connect(viewer)
    with stopped(viewer.pid):
        receipts = [stream.image(SMALL, name="small") for _ in range(50)]
        within(LIMIT_S, (), stream.close, timeout_s=LIMIT_S)
        yield from books(receipts, failed=50)
    yield from within.problems


@fault
def stopped_viewer_and_the_interpreters_end(cell: Cell) -> Iterator[str]:
    viewer = cell.ready_viewer("memory")
    worker = cell.worker(phase="exit", name="leaving", viewers=[viewer.address])
    worker.arm("exit", 1)
    if not wait_for(worker.is_stopped):
        raise CellError(f"the worker does not leave: {worker.heard}")
    with stopped(viewer.pid):
        worker.resume()
        word = worker.hear("exited", timeout_s=EXIT_S + SLACK_S)
        if not wait_for(worker.is_over, EXIT_S):
            yield "the interpreter does not end beside a stopped viewer"
        if word is None:
            yield "the worker did not say that it ends"
        elif word["open"] or word["hurt"]:
            yield f"{word['open']} items open at the end, {word['hurt']}"


@fault
def stopped_sender(cell: Cell) -> Iterator[str]:
    """The viewer serves others meanwhile; when the sender goes on, so does its stream."""
    viewer = cell.ready_viewer("memory")
    for does in ("image", "batch", "chunks", "display"):
        worker = cell.worker(
            phase=does, name="stopped", viewers=[viewer.address], quota_nbytes=16 << 20,
            is_stopped=True,
        )  # fmt: skip
        if worker.hear("connected", timeout_s=20.0) is None:
            raise CellError(f"the worker did not connect: {worker.heard}")
        time.sleep(0.2)
        with stopped(worker.pid):
            problem = cell.check(viewer)
            if problem:
                yield problem
        time.sleep(0.1)
        worker.order(do="end")
        word = worker.hear("ended", timeout_s=30.0)
        if word is None:
            yield f"a sender that was stopped in {does} did not go on: {worker.heard[-2:]}"
        else:
            yield from word["hurt"]
            if word["sums"]["displayed"] != word["sums"]["sent"]:
                yield f"a sender that was stopped in {does} lost something: {word['sums']}"


# --- addresses ------------------------------------------------------------------------------------


@fault
def stale_endpoint_file(cell: Cell) -> Iterator[str]:
    """A killed viewer's file names an address at which nobody is."""
    viewer = cell.viewer("memory")
    within = Within()
    viewer.program.kill()
    cell.forget(viewer)
    error = within(LIMIT_S, PeerError, openhcs_stream.connect, viewer.name, launch=False,
                   timeout_s=LIMIT_S)  # fmt: skip
    if not isinstance(error, ViewerUnreachable):
        yield f"connect() by the name of a dead viewer gave {error!r}"
    error = within(LIMIT_S, PeerError, connect, viewer.address)
    if not isinstance(error, ViewerUnreachable):
        yield f"connect() to the address of a dead viewer gave {error!r}"
    yield from within.problems


@fault
def socket_file_without_a_listener(cell: Cell) -> Iterator[str]:
    path = cell.run / "left.ipc"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    within = Within()
    error = within(LIMIT_S, PeerError, connect, f"ipc://{path}")
    if not isinstance(error, ViewerUnreachable):
        yield f"connect() to a socket file without a listener gave {error!r}"
    yield from within.problems
    path.unlink()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _http() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def _rep(*, answers: bool) -> Iterator[int]:
    context: zmq.Context[Any] = zmq.Context()
    socket_ = context.socket(zmq.REP if answers else zmq.ROUTER)
    port = socket_.bind_to_random_port("tcp://127.0.0.1")
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            # What a REP socket does not understand it throws away when it is asked for it.
            with contextlib.suppress(zmq.Again):
                socket_.poll(50)
                frames = socket_.recv_multipart(zmq.DONTWAIT)
                socket_.send_multipart([frames[0], b"", b"what?"] if not answers else [b"what?"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port
    finally:
        ending.set()
        thread.join()
        socket_.close(0)
        context.term()


@contextlib.contextmanager
def _listener(says: bytes = b"") -> Iterator[int]:
    """Takes connections, says something or nothing, and never ends them."""
    kept: list[socket.socket] = []
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def run() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    peer, _ = server.accept()
                    kept.append(peer)
                    peer.sendall(says)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            ending.set()
            thread.join()
            for peer in kept:
                peer.close()


ELSES: Final[dict[str, Callable[[], contextlib.AbstractContextManager[int]]]] = {
    "an HTTP server": _http,
    "a REP socket": lambda: _rep(answers=True),
    "another ROUTER": lambda: _rep(answers=False),
    "a listener that says nothing": _listener,
    "a listener that says something else": lambda: _listener(b"220 mail ESMTP\r\n" * 100),
}


@fault
def port_of_somebody_else(cell: Cell) -> Iterator[str]:
    """Whoever listens there, the caller has an error within its limit, and its process ends."""
    within = Within()
    for who, serve in ELSES.items():
        with serve() as port:
            address = f"tcp://127.0.0.1:{port}"
            error = within(LIMIT_S, PeerError, connect, address)
            if not isinstance(error, PeerError):
                yield f"connect() to {who} gave {error!r}"
            error = within(LIMIT_S, PeerError, openhcs_stream.ask, address, "status",
                           timeout_s=LIMIT_S)  # fmt: skip
            if not isinstance(error, PeerError):
                yield f"ask() of {who} gave {error!r}"
            code = "import openhcs_stream as o, sys; o.connect(sys.argv[1], timeout_s=1)"
            begin = time.monotonic()
            try:
                done = subprocess.run(
                    [sys.executable, "-c", code, address], capture_output=True, text=True,
                    timeout=START_S, check=False,
                )  # fmt: skip
                if done.returncode != 1 or "openhcs_stream.errors." not in done.stderr:
                    yield f"a worker that met {who}: {done.returncode}, {done.stderr[-300:]}"
            except subprocess.TimeoutExpired:
                yield f"a worker that met {who} did not end in {time.monotonic() - begin:.0f} s"
            yield from _viewer_on_taken_port(cell, port, who)
            with _published(cell, address):
                error = within(LIMIT_S, PeerError, openhcs_stream.connect, "elsewhere",
                               timeout_s=LIMIT_S, launch=False)  # fmt: skip
                if not isinstance(error, PeerError):
                    yield f"connect() to an endpoint that is {who} gave {error!r}"
    yield from within.problems


def _viewer_on_taken_port(cell: Cell, port: int, who: str) -> Iterator[str]:
    done = subprocess.run(
        [sys.executable, "-m", "openhcs_stream", "memory", "--headless", "--port", str(port)],
        capture_output=True, text=True, timeout=START_S, check=False, cwd=cell.home,
    )  # fmt: skip
    if done.returncode not in (1, 2) or str(port) not in done.stderr:
        yield f"a viewer on the port of {who}: {done.returncode}, {done.stderr[-300:]}"


@contextlib.contextmanager
def _published(cell: Cell, address: str) -> Iterator[None]:
    """A living process's endpoint file that leads to somebody else."""
    endpoint = discovery.Endpoint(
        "memory", "elsewhere", os.getpid(), time.time(), (1, 0), (address,), "token", True
    )
    with discovery.publish(endpoint):
        yield


# --- slow, broken, full ---------------------------------------------------------------------------


@contextlib.contextmanager
def _troubled(cell: Cell, **trouble: str) -> Iterator[Running]:
    """A viewer of its own that has something."""
    before = dict(os.environ)
    os.environ |= {f"CAMPAIGN_{key.upper()}": value for key, value in trouble.items()}
    try:
        viewer = cell.viewer("memory")
    finally:
        for key in trouble:
            del os.environ[f"CAMPAIGN_{key.upper()}"]
        assert dict(os.environ) == before
    try:
        yield viewer
    finally:
        viewer.program.kill()
        cell.forget(viewer)


@fault
def slow_viewer(cell: Cell) -> Iterator[str]:
    """Each drawing takes a third of a second: calls wait for memory, not for drawing."""
    within = Within()
    with _troubled(cell, slow_s="0.3") as viewer:
        stream = connect(viewer, timeout_s=5.0)
        receipts = [within(5.0, (), stream.image, IMAGE, name=f"layer {n % 4}") for n in range(100)]
        within(60.0, (), stream.flush, timeout_s=60.0)
        within(LIMIT_S, (), stream.close)
        yield from books(receipts, displayed=100)
    yield from within.problems


@fault
def viewer_that_raises(cell: Cell) -> Iterator[str]:
    """A plugin's exception: what it could not show failed with its reason, the rest is shown."""
    within = Within()
    with _troubled(cell, raises="bad") as viewer:
        stream = connect(viewer, timeout_s=5.0)
        with stream.batch():
            receipts = [stream.image(SMALL, name=("good", "bad")[n % 2]) for n in range(40)]
        error = within(10.0, ItemFailed, stream.flush, timeout_s=10.0)
        if not isinstance(error, ItemFailed) or len(error.failures) != 20:
            yield f"flush() gave {error!r}"
        elif any("the plugin's own reason" not in why for _, why in error.failures):
            yield f"the reason is not the viewer's: {error.failures[0]}"
        within(LIMIT_S, (), stream.close)
        yield from books(receipts, displayed=20, failed=20)
    yield from within.problems


@fault
def viewer_without_memory_for_an_image(cell: Cell) -> Iterator[str]:
    """RLIMIT_AS leaves it 96 MiB: a large image fails with the reason, small ones are shown."""
    within = Within()
    with _troubled(cell, as_mib="96") as viewer:
        stream = connect(viewer, timeout_s=10.0, quota_nbytes=32 << 20)
        # In chunks: it must collect what it has no memory for.
        large = stream.image(np.zeros((10_000, 10_000), np.uint16), name="large")
        error = within(20.0, (ItemFailed, DeadlineExceeded), large.wait, timeout_s=20.0)
        if not isinstance(error, ItemFailed) or "memory" not in str(error).lower():
            yield f"an image without memory for it gave {error!r}"
        small = [stream.image(SMALL, name=f"small {n}") for n in range(20)]
        within(10.0, (ItemFailed,), stream.flush, timeout_s=10.0)
        yield from books([large, *small], displayed=20, failed=1)
        within(LIMIT_S, (), stream.close)
        problem = cell.check(viewer)
        if problem:
            yield problem
    yield from within.problems


@fault
def viewer_without_memory_to_map(cell: Cell) -> Iterator[str]:
    """It can't even map what it is offered: that stream is told why, and others are served."""
    within = Within()
    with _troubled(cell, as_mib="48") as viewer:
        stream = connect(viewer, timeout_s=5.0, quota_nbytes=512 << 20)
        receipts = [
            within(5.0, PeerError, stream.image, np.zeros((5000, 5000), np.uint16), name="large")
            for _ in range(2)
        ]
        error = within(10.0, PeerError, stream.flush, timeout_s=10.0)
        if "would not map" not in str(error):
            yield f"an arena that can't be mapped gave {error!r}"
        within(LIMIT_S, (), stream.close)
        yield from books([each for each in receipts if not isinstance(each, Exception)])
        problem = cell.check(viewer)
        if problem:
            yield problem
    yield from within.problems


@fault
def viewer_without_descriptors(cell: Cell) -> Iterator[str]:
    """More senders than it may have files open: those that it has go on."""
    within = Within()
    with _troubled(cell, files="40") as viewer:
        first = connect(viewer, timeout_s=5.0)
        first.image(SMALL, name="first").wait()
        crowd = []
        for _ in range(30):
            made = within(LIMIT_S, PeerError, connect, viewer)
            if not isinstance(made, Exception):
                crowd.append(made)
                within(LIMIT_S, PeerError, made.image, SMALL, name="crowd")
        within(5.0, (), lambda: first.image(SMALL, name="first").wait(timeout_s=5.0))
        for stream in [*crowd, first]:
            within(LIMIT_S, (), stream.close, timeout_s=LIMIT_S)
        problem = cell.check(viewer)
        if problem:
            yield problem
    yield from within.problems


@fault
def dev_shm_that_is_full(cell: Cell) -> Iterator[str]:
    """Where /dev/shm has no room, nothing changes: arenas are not there."""
    viewer = cell.ready_viewer("memory")
    if not cell.has_own_shm:
        return
    filler = Path("/dev/shm/filler")
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, 1 << 30)
    try:
        problem = cell.check(viewer)
        if problem:
            yield problem
    finally:
        filler.unlink()
