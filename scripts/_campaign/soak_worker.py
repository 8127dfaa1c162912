"""A worker of the soak, as a program: sends all kinds and sizes by all policies, and keeps books.

It is told by JSON as `worker` is; it ends with the sums of what it sent, by viewer.
"""

from __future__ import annotations

import json
import queue
import random
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import openhcs_stream
from openhcs_stream.errors import PeerError, StreamError
from scripts._campaign.leftovers import more_than, settled_counts
from scripts._campaign.worker import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.stream import Receipt, Stream, WhenFull

#: Longest that any call may block, as each stream declares it.
LIMIT_S: Final = 30.0
#: From 1 KiB to 32 MiB of uint16.
SIDES: Final = (22, 45, 90, 181, 362, 724, 1448, 2896, 4096)
HUGE_SIDE: Final = 8192
#: Large images of all workers share their places: what a viewer keeps has a bound.
SHARED_FROM: Final = 1448
POLICIES: Final[tuple[WhenFull, ...]] = ("block", "block", "block", "drop", "latest", "sample")
#: Seconds for which a stream waits for a viewer: not at all, too short, long enough.
RECONNECT_S: Final = (0.0, 0.5, 60.0, 60.0)
FINAL: Final = ("displayed", "failed", "dropped")


class SoakWorker:
    """One of them."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.name: str = orders["name"]
        self.viewers: list[str] = orders["viewers"]
        #: Viewers that are killed and stopped: what is sent to them may fail.
        self.unsteady: list[str] = orders["unsteady"]
        self.dice = random.Random(orders["seed"])
        self.told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.receipts: list[Receipt] = []
        self.items: Counter[str] = Counter()
        self.by_viewer: dict[str, Counter[str]] = {}
        self.nbytes = 0
        self.sessions = 0
        self.hurt: list[str] = []
        self.policy: WhenFull = "block"
        self.reconnect_s = 0.0
        #: How often a viewer was back in a stream that had lost it.
        self.returns = 0

    def tell(self, at: str, **more: Any) -> None:
        print(json.dumps({"at": at, **more}), flush=True)

    def listen(self) -> None:
        def read() -> None:
            for line in sys.stdin:
                self.told.put(json.loads(line))
            self.told.put({"do": "end"})

        threading.Thread(target=read, name="orders", daemon=True).start()

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> None:
        warm_up()
        self.listen()
        base = settled_counts()
        self.tell("begun")
        while self.told.empty():
            stream = self.connect()
            if stream is not None:
                self.session(stream)
        left = more_than(base)
        self.tell(
            "ended", name=self.name, items=self.items, by_viewer=self.by_viewer, left=left,
            nbytes=self.nbytes, sessions=self.sessions, returns=self.returns, hurt=self.hurt,
        )  # fmt: skip

    def connect(self) -> Stream | None:
        """A stream of some policy, on some lane; None where a viewer is not there just now."""
        dice = self.dice
        self.policy = dice.choice(POLICIES)
        self.reconnect_s = dice.choice(RECONNECT_S)
        try:
            return openhcs_stream.connect(
                self.viewers, name=self.name, launch=False, timeout_s=LIMIT_S,
                when_full=self.policy, side_lane=dice.random() < 0.85,
                reconnect_s=self.reconnect_s, quota_nbytes=dice.choice((128, 256)) << 20,
            )  # fmt: skip
        except PeerError as error:
            if not self.unsteady:
                self.hurt.append(f"connect: {type(error).__name__}: {error}")
            time.sleep(0.2)
            return None

    def session(self, stream: Stream) -> None:
        """Send for a while, then close; every item must have come to an end."""
        self.sessions += 1
        deadline = time.monotonic() + self.dice.uniform(2.0, 30.0)
        present = len(stream.viewers)
        while self.told.empty() and time.monotonic() < deadline:
            if not (stream.viewers or self.reconnect_s):
                break
            self.try_to(self.act, stream)
            self.settle()
            now = len(stream.viewers)
            self.returns += now > present
            present = now
            time.sleep(self.dice.expovariate(1 / 0.01))
        self.try_to(lambda each: each.flush(), stream)
        begin = time.monotonic()
        stream.close()
        if time.monotonic() - begin > LIMIT_S + 6.0:
            self.hurt.append(f"close() took {time.monotonic() - begin:.1f} s")
        self.account(stream)

    def try_to(self, do: Callable[[Stream], object], stream: Stream) -> None:
        """Do something that may fail where a viewer does not last."""
        try:
            do(stream)
        except PeerError as error:
            self.forgive(error)
        except StreamError as error:
            self.hurt.append(f"{type(error).__name__}: {error}")

    def forgive(self, error: PeerError) -> None:
        """A viewer that is killed now and then may be named, and no other."""
        if not any(name in str(error) for name in self.unsteady):
            self.hurt.append(f"{type(error).__name__}: {error}")

    def settle(self) -> None:
        """Count what came to an end, so that the list does not grow."""
        if len(self.receipts) > 500:
            self.count([each for each in self.receipts if each.state in FINAL])
            self.receipts = [each for each in self.receipts if each.state not in FINAL]

    def count(self, ended: list[Receipt]) -> None:
        self.items.update(each.state for each in ended)
        self.items["sent"] += len(ended)

    def account(self, stream: Stream) -> None:
        open_ones = [each for each in self.receipts if each.state not in FINAL]
        if open_ones:
            self.hurt.append(f"{len(open_ones)} items never came to an end: {open_ones[:3]}")
        self.count([each for each in self.receipts if each.state in FINAL])
        self.receipts.clear()
        for status in stream.status():
            books = self.by_viewer.setdefault(status.viewer, Counter())
            for key in ("sent", "received", "displayed", "failed", "dropped"):
                books[key] += getattr(status, key)
            if status.sent != status.displayed + status.failed:
                self.hurt.append(f"the tracker's books don't close: {status}")

    # --- sending --------------------------------------------------------------------------------

    def act(self, stream: Stream) -> None:
        dice = self.dice
        chance = dice.random()
        if chance < 0.55:
            self.image(stream, dice.choice(SIDES))
        elif chance < 0.60:
            side = dice.choice(SIDES[:6])
            self.keep(stream.labels(self.array(side), **self.where(f"labels {side}", side)))
        elif chance < 0.70:
            self.vectors(stream)
        elif chance < 0.80:
            with stream.batch():
                for _ in range(dice.randint(2, 16)):
                    self.image(stream, dice.choice(SIDES[:4]))
        elif chance < 0.90:
            side = dice.choice(SIDES[:7])
            lent = stream.allocate((side, side), np.uint16)
            lent[:] = dice.randrange(2**16)
            self.nbytes += lent.nbytes
            self.keep(stream.image(lent, **self.where(f"image {side}", side)))
        elif chance < 0.95 and self.receipts:
            receipt = self.receipts[-1]
            if receipt.state != "dropped":
                receipt.wait(timeout_s=LIMIT_S)
        elif chance < 0.985:
            stream.flush()
        elif chance < 0.99 and self.policy == "block":
            self.image(stream, HUGE_SIDE)
        elif chance > 0.995:
            for _ in range(400):  # more at once than a viewer takes
                self.image(stream, dice.choice(SIDES[3:6]))

    def keep(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)

    def where(self, what: str, side: int) -> dict[str, Any]:
        owner = "all" if side >= SHARED_FROM else self.name
        return {"name": f"{what} of {owner}", "place": {"z": 0}}

    def array(self, side: int) -> Any:
        self.nbytes += 2 * side * side
        return np.full((side, side), self.dice.randrange(2**16), np.uint16)

    def image(self, stream: Stream, side: int) -> None:
        self.keep(stream.image(self.array(side), **self.where(f"image {side}", side)))

    def vectors(self, stream: Stream) -> None:
        dice = self.dice
        count = dice.choice((0, 1, 10, 100, 1000))
        table = np.random.default_rng(dice.randrange(2**32)).uniform(0, 500, (count, 2))
        kind = dice.choice(("points", "rois"))
        if kind == "points":
            self.keep(stream.points(table, **self.where("points", 0)))
        else:
            corners = np.array([(0, 0), (0, 5), (5, 5), (5, 0)])
            outlines = [corners + point for point in table[:200]]
            self.keep(stream.rois(outlines, **self.where("rois", 0)))


if __name__ == "__main__":
    SoakWorker(json.loads(sys.argv[1])).run()
