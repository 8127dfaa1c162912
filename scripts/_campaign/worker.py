"""A sender of the campaign, as a program: sends in one phase over and over, and keeps its books.

It is told what to do by JSON: one object as its argument, then one line each on standard input
(``{"do": "go", "viewers": [...]}`` when a viewer that died is back, ``{"do": "end"}``). It tells
what happens as JSON lines on standard output. What must never happen is in "hurt": a call that
takes longer than its declared limit, an error of another kind, an item that is not accounted for,
one that was not waited for as long as was declared, a stream that does not go on by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

if __name__ == "__main__":
    # Before the library's own, so that it is called after it.
    atexit.register(lambda: _worker.after_exit() if _worker else None)

import numpy as np

import openhcs_stream
from openhcs_stream.errors import ForkedStream, ItemFailed, PeerError, StreamError
from openhcs_stream.transport import ZmqLane
from scripts._campaign import points
from scripts._campaign.leftovers import more_than, settled_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from openhcs_stream.stream import Receipt, Stream

#: Beyond a call's declared limit, for a machine that does many things at once.
SLACK_S: Final = 6.0
#: The stream's own limit for each of its calls.
LIMIT_S: Final = 3.0
#: Longest that the interpreter's end may wait for a stream that was not closed.
EXIT_S: Final = 2.0 + SLACK_S
#: For a viewer that has much to show, or has just begun to.
FLUSH_S: Final = 20.0
#: Why an item may fail though its stream waits long enough: a dead viewer had it, or some of it;
#: one viewer after another died of it; the worker closed the stream.
EXCUSES: Final = ("lost before it was displayed", "in parts", "that had received it is gone",
                  "viewers in a row were lost", "the stream was closed")  # fmt: skip
#: For a stream to find its viewer again: it looks once a second.
FIND_S: Final = 5.0 + SLACK_S
#: Between two calls of a worker whose calls raise at once.
PAUSE_S: Final = 0.01
PLACES: Final = 4
SQUARE: Final = np.array([(5.0, 5.0), (5.0, 30.0), (30.0, 30.0), (30.0, 5.0)])

_worker: Worker | None = None


class Ended(Exception):
    """The campaign said that it is enough."""


class Worker:
    """One sender and what became of all that it sent."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.viewers: list[str] = orders["viewers"]
        self.name: str = orders.get("name", "victim")
        self.pace_s: float = orders.get("pace_s", 0.0)
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.stream: Stream | None = None
        self.receipts: list[Receipt] = []
        self.hurt: list[str] = []
        self.sums = dict.fromkeys(("sent", "displayed", "failed", "dropped"), 0)
        self.trackers = dict.fromkeys(("sent", "displayed", "failed", "dropped"), 0)
        self.lost = 0
        #: How often a stream found its viewers again.
        self.returns = 0
        self.rounds = 0
        self.last: dict[int, int] = {}
        self.child = 0
        #: Whether a viewer died, so that what it was sent may have failed.
        self.may_fail = False
        #: For how long the stream waits for one.
        self.reconnect_s: float = orders.get("reconnect_s", 0.0)
        self.is_done = False

    # --- talking to the campaign ----------------------------------------------------------------

    def tell(self, at: str, **more: Any) -> None:
        print(json.dumps({"at": at, "pid": os.getpid(), **more}), flush=True)

    def listen(self) -> None:
        def read() -> None:
            for line in sys.stdin:
                self.told.put(json.loads(line))
            self.told.put({"do": "end"})

        threading.Thread(target=read, name="orders", daemon=True).start()

    def check_orders(self) -> None:
        with contextlib.suppress(queue.Empty):
            self.obey(self.told.get_nowait())

    def obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "end":
            self.may_fail = self.may_fail or order.get("lost", False)
            raise Ended
        self.may_fail = True
        self.viewers = order["viewers"]
        self.go_on()
        self.tell("on")

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> None:
        warm_up()
        points.install(points.SENDER_POINTS)
        self.listen()
        base = settled_counts()
        self.tell("begun", **base)
        try:
            self.work()
        except Ended:
            pass
        self.leave(flush=True)
        left = more_than(base)
        self.is_done = True
        self.tell("ended", sums=self.sums, trackers=self.trackers, lost=self.lost,
                  returns=self.returns, rounds=self.rounds, hurt=self.hurt, left=left)  # fmt: skip

    def work(self) -> None:
        act = getattr(self, f"do_{self.orders['phase']}")
        told = False
        while True:
            try:
                if self.stream is None or self.stream.closed:
                    self.connect()
                if not told:
                    told = True
                    self.tell("connected")
                act()
                self.rounds += 1
            except StreamError as error:
                self.meet(error)
            self.check_orders()
            if self.pace_s:
                time.sleep(self.pace_s)

    def connect(self) -> None:
        self.stream = self.timed(
            "connect", LIMIT_S, openhcs_stream.connect, self.viewers,
            name=f"campaign {self.name}", timeout_s=LIMIT_S, launch=False,
            side_lane=self.orders.get("lane", "unix") == "unix",
            quota_nbytes=self.orders.get("quota_nbytes", 64 << 20), reconnect_s=self.reconnect_s,
        )  # fmt: skip

    def meet(self, error: StreamError) -> None:
        """A call raised: go on where a viewer is left or awaited, else wait for a word."""
        if not isinstance(error, PeerError):
            self.hurt.append(f"{type(error).__name__}: {error}")
        stream = self.stream
        if stream is not None and not stream.closed and (stream.viewers or stream.awaited):
            time.sleep(PAUSE_S)
            return
        if stream is not None:
            self.check_lent(stream)
        if not self.reconnect_s:
            self.leave(flush=False)
        self.lost += 1
        self.tell("lost", error=type(error).__name__, what=str(error)[:300], hurt=self.hurt)
        self.obey(self.told.get())

    def check_lent(self, stream: Stream) -> None:
        """Nobody is there and nobody is waited for: what was lent to them is free."""
        if stream.closed:
            return
        deadline = time.monotonic() + SLACK_S
        while leases := stream._pool.stats().leases:  # noqa: SLF001  what it believes of its memory
            if stream.viewers or stream.awaited:
                return
            if time.monotonic() > deadline:
                self.hurt.append(f"{leases} slots are lent to viewers that have gone")
                return
            time.sleep(PAUSE_S)

    def go_on(self) -> None:
        """A viewer is back: a stream that was lost finds it by itself, and shows what is sent."""
        self.last.clear()  # what the dead one had shown died with it
        stream = self.stream
        if stream is not None and not stream.closed and (self.reconnect_s or stream.viewers):
            deadline = time.monotonic() + FIND_S
            while self.reconnect_s and len(stream.viewers) < len(self.viewers):
                if time.monotonic() > deadline:
                    self.hurt.append(
                        f"after {FIND_S:g} s the stream has not found {self.viewers} again, only "
                        f"{stream.viewers}; it waits for {stream.awaited}: {stream.status()}"
                    )
                    break
                time.sleep(PAUSE_S)
            if self.reconnect_s:
                try:
                    self.prove(flush=True)
                    self.returns += 1
                except StreamError as error:
                    self.hurt.append(f"the stream did not go on: {type(error).__name__}: {error}")
                return
        for _ in range(3):
            try:
                if self.stream is None or self.stream.closed:
                    self.connect()
                self.prove()
                return
            except StreamError as error:
                self.leave(flush=False)
                again = f"could not go on: {type(error).__name__}: {error}"
        self.hurt.append(again)

    def prove(self, *, flush: bool = False) -> None:
        """What is sent now is shown; before it, perhaps, all that was sent before."""
        assert self.stream is not None
        if flush:
            with contextlib.suppress(ItemFailed):  # what the dead one had received
                self.timed("flush", FLUSH_S, self.stream.flush, FLUSH_S)
        for number in range(3):
            self.wait(self.keep(self.image(number)), FLUSH_S)

    def leave(self, *, flush: bool) -> None:
        """Close the stream; everything that was sent must have come to an end."""
        stream, self.stream = self.stream, None
        last, self.last = self.last, {}
        if stream is None:
            return
        if flush and stream.viewers:
            try:
                try:
                    self.timed("flush", FLUSH_S, stream.flush, FLUSH_S)
                except ItemFailed:
                    if not self.may_fail:
                        raise
                self.look_behind(stream, last)
            except StreamError as error:
                self.hurt.append(f"the last flush: {type(error).__name__}: {error}")
        self.timed("close", LIMIT_S, stream.close)
        self.account(stream)

    def account(self, stream: Stream) -> None:
        """Every item is displayed, failed or dropped; receipts and trackers say the same."""
        states = [receipt.state for receipt in self.receipts]
        open_ones = [state for state in states if state in ("sent", "received")]
        if open_ones:
            self.hurt.append(f"{len(open_ones)} items were never accounted for")
        failed = [each.reason for each in self.receipts if each.state == "failed"]
        if self.reconnect_s > FLUSH_S:  # a viewer is back within that
            inexcusable = [why for why in failed if not any(each in why for each in EXCUSES)]
            if inexcusable:
                self.hurt.append(f"{len(inexcusable)} items were not waited for: {inexcusable[0]}")
        self.sums["sent"] += len(states)
        for state in ("displayed", "failed", "dropped"):
            self.sums[state] += states.count(state)
        for status in stream.status():
            if status.sent != status.displayed + status.failed:
                self.hurt.append(f"the tracker's books don't close: {status}")
            for key in self.trackers:
                self.trackers[key] += getattr(status, key)
        self.receipts.clear()

    def look_behind(self, stream: Stream, last: dict[int, int]) -> None:
        """Read the last images of all places back: not torn, not mixed up."""
        if not self.orders.get("reads"):
            return
        for place, value in last.items():
            found = stream.request("read", layer=self.layer, place={"z": place})
            plane = np.frombuffer(found["data"], found["dtype"])
            if plane.min() != value or plane.max() != value:
                self.hurt.append(f"place {place} shows {plane.min()} to {plane.max()}, not {value}")

    def after_exit(self) -> None:
        """At the interpreter's end, after the stream's own."""
        if self.is_done or self.child == -1:
            return
        states = [receipt.state for receipt in self.receipts]
        self.tell("exited", hurt=self.hurt,
                  open=sum(state in ("sent", "received") for state in states))  # fmt: skip

    # --- sending --------------------------------------------------------------------------------

    def timed(
        self, what: str, limit_s: float, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        begin = time.monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            took = time.monotonic() - begin
            # One that is stopped for a while can't tell that time from its own.
            if took > limit_s + SLACK_S and not self.orders.get("is_stopped"):
                self.hurt.append(f"{what} took {took:.1f} s; its limit is {limit_s:g} s")

    def keep(self, receipt: Receipt) -> Receipt:
        self.receipts.append(receipt)
        return receipt

    @property
    def layer(self) -> str:
        return f"of {self.name}"

    def image(self, number: int, side: int = 256) -> Receipt:
        assert self.stream is not None
        value = (number * 7 + self.rounds) % 60_000
        pixels: npt.NDArray[np.uint16] = np.full((side, side), value, np.uint16)
        name = self.layer if side == 256 else f"{self.layer}, {side}"
        receipt: Receipt = self.timed(
            "image", LIMIT_S, self.stream.image, pixels, name=name, place={"z": number % PLACES}
        )
        if side == 256:
            self.last[number % PLACES] = value
        return receipt

    def wait(self, receipt: Receipt, limit_s: float = LIMIT_S) -> None:
        self.timed("wait", limit_s, receipt.wait, timeout_s=limit_s)

    # --- the phases -----------------------------------------------------------------------------

    def do_connect(self) -> None:
        self.leave(flush=False)

    def do_image(self) -> None:
        for number in range(16):
            self.keep(self.image(number))

    def do_big(self) -> None:
        self.keep(self.image(0, side=2048))

    def do_allocate(self) -> None:
        assert self.stream is not None
        for number in range(4):
            pixels = self.timed("allocate", LIMIT_S, self.stream.allocate, (256, 256), np.uint16)
            points.reach("copy")
            pixels[:] = number
            if number % 2:
                self.keep(self.stream.image(pixels, name=f"{self.layer}, lent"))

    def do_batch(self) -> None:
        assert self.stream is not None
        with self.stream.batch():
            for number in range(8):
                self.keep(self.image(number))
                if number == 3:
                    points.reach("batch")

    def do_chunks(self) -> None:
        self.keep(self.image(0, side=2560))

    def do_display(self) -> None:
        assert self.stream is not None
        z = {"z": self.rounds % PLACES}
        labels = np.full((64, 64), 1 + self.rounds % 200, np.uint16)
        self.keep(self.image(self.rounds))
        self.keep(self.stream.labels(labels, name=f"{self.layer}, labels", place=z))
        self.keep(self.stream.rois([SQUARE], name=f"{self.layer}, rois", place=z))
        self.keep(self.stream.points(SQUARE, name=f"{self.layer}, points", place=z))
        self.wait(self.receipts[-4])

    def do_flush(self) -> None:
        assert self.stream is not None
        for number in range(8):
            self.keep(self.image(number))
        points.reach("flush")
        self.timed("flush", LIMIT_S, self.stream.flush)

    def do_close(self) -> None:
        for number in range(4):
            self.keep(self.image(number))
        points.reach("close")
        self.leave(flush=False)

    def do_exit(self) -> None:
        for number in range(8):
            self.keep(self.image(number))
        atexit.register(points.reach, "exit")  # before the stream's own
        self.tell("exiting")
        raise SystemExit

    def do_fork(self) -> None:
        assert self.stream is not None
        self.keep(self.image(0))
        points.reach("fork")
        self.child = os.fork()
        if self.child == 0:
            self.child = -1
            self.be_the_child()
        points.reach("forked")
        try:
            for number in range(16):
                self.keep(self.image(number))
        finally:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)

    def be_the_child(self) -> NoReturn:
        """Of the fork: the parent's stream is not ours; one of our own works."""
        os.environ.pop(points.VARIABLE, None)
        code = 3
        try:
            assert self.stream is not None
            try:
                self.stream.image(np.zeros((4, 4)))
            except ForkedStream:
                code = 0
            mine = openhcs_stream.connect(self.viewers, name="campaign child", timeout_s=LIMIT_S,
                                          launch=False)  # fmt: skip
            while True:
                mine.image(np.zeros((64, 64), np.uint16), name="of the child")
                time.sleep(0.002)
        except StreamError:
            signal.pause()  # what it holds now, it holds until it is killed
        finally:
            os._exit(code)

    def do_launch(self) -> None:
        """Start a viewer as `connect` does for a user, and send to it."""
        assert self.stream is not None
        self.do_display()


def warm_up() -> None:
    """Begin what lasts as long as the process: ZeroMQ's threads, and pyzmq's for large blobs."""
    lane = ZmqLane.connect(f"ipc://@openhcs-campaign-nobody-{os.getpid()}")
    lane.send(b"nobody", blobs=[memoryview(bytes(1 << 20))])
    lane.close()


def start_launcher(worker: Worker) -> None:
    """Instead of connecting to a viewer that runs."""

    def connect() -> None:
        worker.tell("launching")
        worker.stream = worker.timed(
            "connect", 30.0, openhcs_stream.connect, worker.viewers, timeout_s=30.0,
            name=f"campaign {worker.name}", quota_nbytes=64 << 20,
        )  # fmt: skip

    worker.connect = connect  # type: ignore[method-assign]


def main() -> None:
    global _worker
    _worker = Worker(json.loads(sys.argv[1]))
    if _worker.orders["phase"] == "launch":
        start_launcher(_worker)
    _worker.run()


if __name__ == "__main__":
    main()
