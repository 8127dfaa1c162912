"""The original's scheme, plainly written anew, and its trials: so that the checks are seen to fail.

One named segment (``multiprocessing.shared_memory``) for each image, REQ to REP, and one fixed
deadline for an answer. Two ways of unlinking were in use: the receiver's, after it copied, with
the sender's resource tracker told to forget the name (generation 1); and the sender's, after the
answer (generations 2 and 3).

As a program it is either side: ``original sender|receiver receiver|sender ADDRESS``, where the
second word says who unlinks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zmq

if TYPE_CHECKING:
    from scripts._campaign.cell import Cell, Program
    from scripts._campaign.trial import Result

__all__ = ["OriginalTrial", "plan_original", "run_original"]

#: Of the answer; 30 s in the original.
DEADLINE_S: Final = 3.0
SIDE: Final = 512


@dataclass(frozen=True)
class OriginalTrial:
    """One kill."""

    number: int
    unlinks: str
    victim: str
    #: Whether the whole group of processes dies, as when a container is stopped.
    group: bool
    after_s: float
    scenario: str = "original"
    phase: str = ""

    def __str__(self) -> str:
        what = "group" if self.group else "process"
        return (
            f"trial {self.number}: original, {self.unlinks} unlinks, kill {self.victim} ({what}), "
            f"{self.after_s * 1000:.0f} ms after it began"
        )


def plan_original(trials: int, seed: int) -> list[OriginalTrial]:
    """Draw trials: who unlinks, who dies, alone or with its group, when."""
    dice = random.Random(seed)
    drawn = []
    for number in range(trials):
        unlinks = ("receiver", "sender")[number % 2]
        drawn.append(
            OriginalTrial(
                number,
                unlinks,
                dice.choice(("sender", "viewer", "both")),
                dice.random() < 0.5,
                dice.uniform(0.0, 0.4),
                phase=f"{unlinks} unlinks",
            )
        )
    return drawn


def run_original(cell: Cell, trial: dict[str, Any], result: Result) -> None:
    """Run one of its trials in a cell."""
    address = f"ipc://{cell.folder}/tmp/original-{trial['number']}"
    command = [sys.executable, "-m", "scripts._campaign.original"]
    viewer = cell.start([*command, "receiver", trial["unlinks"], address])
    worker = cell.start([*command, "sender", trial["unlinks"], address])
    begun = worker.hear("begun", timeout_s=20.0) and viewer.hear("begun", timeout_s=20.0)
    assert begun, (viewer.last_words(), worker.last_words())
    time.sleep(trial["after_s"])
    dying = {"sender": [worker], "viewer": [viewer], "both": [worker, viewer]}[trial["victim"]]
    for each in dying:
        _kill(each, group=trial["group"])
    for each in dying:
        each.process.wait(10)
    for each in (worker, viewer):
        if each in dying:
            continue
        each.order(do="end")
        word = each.hear("ended", timeout_s=DEADLINE_S + 5.0)
        if word is None:
            result.hurt.append(f"a survivor does not end: {each.last_words()[-200:]}")
        else:
            result.hurt += word["hurt"]
    cell.end_programs()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address.removeprefix("ipc://"))
    result.left = cell.look()


def _kill(program: Program, *, group: bool) -> None:
    if group:
        os.killpg(program.pid, signal.SIGKILL)  # each is the first of its group
    else:
        program.kill()


# --- the two programs -----------------------------------------------------------------------------


def _tell(at: str, hurt: list[str]) -> None:
    print(json.dumps({"at": at, "hurt": hurt}), flush=True)


def _is_told() -> bool:
    """Whether the campaign said that it is enough."""
    import select

    return bool(select.select([sys.stdin], [], [], 0)[0])


def _receive(unlinks: str, address: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.bind(address)
    hurt: list[str] = []
    kept: dict[int, np.ndarray[Any, Any]] = {}
    _tell("begun", hurt)
    while not _is_told():
        if not socket.poll(50):
            continue
        try:
            told = json.loads(socket.recv())
            segment = SharedMemory(told["name"])
            shape, dtype = tuple(told["shape"]), np.dtype(told["dtype"])
            kept[told["number"] % 4] = np.ndarray(shape, dtype, segment.buf).copy()
            if unlinks == "sender":
                # Else the receiver's own tracker unlinks a living sender's segment.
                resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]  # noqa: SLF001
            segment.close()
            if unlinks == "receiver":
                segment.unlink()
            socket.send(b'{"status": "success"}')
        except (OSError, ValueError, zmq.ZMQError) as error:
            hurt.append(f"the receiver: {type(error).__name__}: {error}")
            with contextlib.suppress(zmq.ZMQError):
                socket.send(b'{"status": "error"}')
    _tell("ended", hurt)


def _send(unlinks: str, address: str) -> None:
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
    socket.connect(address)
    hurt: list[str] = []
    image = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    _tell("begun", hurt)
    number = 0
    is_answered = True
    while is_answered and not _is_told():
        segment = SharedMemory(create=True, size=image.nbytes)
        np.copyto(np.ndarray(image.shape, image.dtype, segment.buf), image)
        if unlinks == "receiver":
            resource_tracker.unregister(segment._name, "shared_memory")  # type: ignore[attr-defined]  # noqa: SLF001
        told = {"name": segment.name, "shape": image.shape, "dtype": "<u2", "number": number}
        socket.send_json(told)
        try:
            socket.recv()
        except zmq.Again:
            is_answered = False  # the receiver is dead: that alone is not counted
        segment.close()
        if unlinks == "sender":
            segment.unlink()
        number += 1
    _tell("ended", hurt)


def main() -> None:
    side, unlinks, address = sys.argv[1:]
    (_receive if side == "receiver" else _send)(unlinks, address)


if __name__ == "__main__":
    main()
