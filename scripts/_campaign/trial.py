"""One trial: somebody dies at some moment; then the survivors and the floor are looked at.

As a program it is a cell: it reads trials as JSON lines and writes their results as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import openhcs_stream
from openhcs_stream import discovery
from scripts._campaign.cell import (
    START_S,
    Cell,
    CellError,
    Left,
    Program,
    Running,
    state_of,
    wait_for,
)
from scripts._campaign.original import run_original
from scripts._campaign.others import OTHERS
from scripts._campaign.plan import RECONNECT_S
from scripts._campaign.worker import EXIT_S, LIMIT_S, SLACK_S

__all__ = ["Result", "run_trial"]

#: For a process to come to the point at which it is to stop.
REACH_S: Final = 20.0
#: For a viewer that is back to come to the point at which it dies again.
RELAPSE_S: Final = 4.0
#: For a worker to say that something happened which its own limits bound.
NOTICE_S: Final = LIMIT_S + SLACK_S + 5.0


@dataclass
class Result:
    """What came of one trial."""

    number: int
    hurt: list[str] = field(default_factory=list)
    left: Left = field(default_factory=Left)
    #: The chosen moment did not come, so that nobody was killed at it.
    missed: bool = False
    seconds: float = 0.0
    #: Streams of survivors that found a viewer again by themselves.
    returns: int = 0
    #: Viewers that were back and died at their point once more.
    relapses: int = 0
    #: Sums of the surviving workers' books.
    books: dict[str, int] = field(default_factory=dict)
    #: The campaign's own trouble.
    broken: str = ""


def run_trial(cell: Cell, trial: dict[str, Any]) -> Result:
    """Run a trial; what goes wrong in the campaign itself is told apart from what it found."""
    result = Result(trial["number"])
    begin = time.monotonic()
    try:
        if trial["scenario"] == "original":
            run_original(cell, trial, result)
        elif trial["scenario"] == "no kill":
            _run_other(cell, trial, result)
        elif trial["victim"] == "launcher":
            _Launch(cell, trial, result).run()
        else:
            _Kill(cell, trial, result).run()
    except Exception:
        result.broken = traceback.format_exc()
        _start_over(cell)
    result.seconds = time.monotonic() - begin
    return result


def _start_over(cell: Cell) -> None:
    cell.end_programs()
    for viewer in [*cell.viewers]:
        viewer.program.kill()
        cell.forget(viewer)
    cell.look()


def _run_other(cell: Cell, trial: dict[str, Any], result: Result) -> None:
    """One without a kill."""
    result.hurt += OTHERS[trial["does"]](cell)
    cell.end_programs()
    result.left = cell.look()
    _settle(cell, cell.viewers, result)


def _settle(cell: Cell, viewers: list[Running], result: Result) -> None:
    """What surviving viewers hold beyond their base; those that do are not used again."""
    for viewer in [*viewers]:
        over = cell.back_to_base(viewer)
        result.left.descriptors += over
        if over:
            viewer.program.kill()
            cell.forget(viewer)


class _Kill:
    """Viewers that run, a worker and a bystander; the sender, a viewer or both are killed."""

    def __init__(self, cell: Cell, trial: dict[str, Any], result: Result) -> None:
        self.cell = cell
        self.trial = trial
        self.result = result
        self.viewers: list[Running] = []

    def run(self) -> None:
        cell, trial = self.cell, self.trial
        for kind in trial["viewers"]:
            self.viewers.append(cell.ready_viewer(kind, besides=self.viewers))
        addresses = self.addresses
        bystander = cell.worker(
            phase="display", name="bystander", viewers=addresses, pace_s=0.02, reads=True,
            reconnect_s=self.reconnect_s,
        )  # fmt: skip
        self.expect(bystander, "connected")
        worker = self.start_worker(addresses)
        died_at = self.kill(worker)
        dead = [viewer for viewer in self.viewers if viewer.program.is_over()]
        survivors = [bystander] if worker.is_over() else [worker, bystander]
        self.end_orphans(worker)
        for viewer in dead:
            cell.forget(viewer)
        if dead:
            self.go_on(survivors, dead, died_at)
        for each in survivors:
            self.end_worker(each, lost_nothing=not dead)
        cell.end_programs()
        for viewer in self.viewers:
            problem = cell.check(viewer) or cell.shown_twice(viewer)
            if problem:
                self.result.hurt.append(problem)
        self.result.left = cell.look()
        _settle(cell, self.viewers, self.result)

    def start_worker(self, addresses: list[str]) -> Program:
        trial = self.trial
        side, point, count = trial["point"] or ("", "", 0)
        orders: dict[str, Any] = {
            "phase": trial["does"], "viewers": addresses, "lane": trial["lane"],
            "quota_nbytes": trial["quota_nbytes"], "reconnect_s": self.reconnect_s,
        }  # fmt: skip
        if side == "viewer":
            self.viewers[trial["which"]].program.arm(point, count)
        worker = self.cell.worker(**orders)
        if side == "sender":
            worker.arm(point, count)  # it takes a while to start
        return worker

    def expect(self, program: Program, *words: str, timeout_s: float = REACH_S) -> dict[str, Any]:
        word = program.hear(*words, timeout_s=timeout_s)
        if word is None:
            raise CellError(
                f"process {program.pid} ({state_of(program.pid)}) did not say {words}; it said "
                f"{program.heard[-3:]}"
            )
        return word

    def kill(self, worker: Program) -> float:
        """Wait for the moment, kill, let the others go on; when it was."""
        trial = self.trial
        victim = self.viewers[trial["which"]]
        stopped: Program | None = None
        if trial["point"] is None:
            begins = {"connect": "begun", "exit": "exiting"}.get(trial["does"], "connected")
            self.expect(worker, begins)
            time.sleep(trial["after_s"])
        else:
            stopped = worker if trial["point"][0] == "sender" else victim.program
            if not wait_for(stopped.is_stopped, REACH_S):
                self.result.missed = True
        dying = {
            "sender": [worker],
            "viewer": [victim.program],
            "both": [worker, victim.program],
        }[trial["victim"]]
        for each in dying:
            each.kill()
        died_at = time.monotonic()
        for each in dying:
            each.process.wait(10)
        victim.program.disarm()
        worker.disarm()
        if stopped is not None and stopped not in dying:
            stopped.resume()
        return died_at

    def end_orphans(self, worker: Program) -> None:
        """The child of a fork outlives its parent: that is right, and it is ended here."""
        if self.trial["does"] != "fork" or not worker.is_over():
            return
        for pid in self.cell.strangers():
            if all(pid != program.pid for program in self.cell.programs):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    def go_on(self, survivors: list[Program], dead: list[Running], died_at: float) -> None:
        """Surviving workers notice, or wait; their viewer is back, and they go on."""
        trial = self.trial
        living = [viewer for viewer in self.viewers if viewer not in dead]
        if not living and trial["again"] != "soon":
            for each in survivors:
                word = each.hear("lost", "exited", timeout_s=NOTICE_S + self.reconnect_s)
                if word is None:
                    self.result.hurt.append(
                        f"a worker did not notice within {time.monotonic() - died_at:.1f} s "
                        f"that its viewer had died; it said {each.heard[-2:]}"
                    )
        self.viewers = [
            each if each in living else self.revive(each, survivors) for each in self.viewers
        ]
        for each in survivors:
            each.order(do="go", viewers=self.addresses)
        for each in survivors:
            if each.hear("on", "exited", timeout_s=4 * NOTICE_S) is None and not each.is_over():
                self.result.hurt.append(f"a worker did not go on: {each.heard[-2:]}")

    def revive(self, viewer: Running, survivors: list[Program]) -> Running:
        """Start a viewer again; it may die once more while the streams go on with it."""
        cell, relapse = self.cell, self.trial["relapse"]
        if not relapse or all(each.is_over() for each in survivors):
            return cell.revive(viewer)
        back = cell.revive(viewer, relapse=relapse)
        # On some lanes, and of some streams, it never comes to that point.
        self.result.relapses += wait_for(back.program.is_stopped, RELAPSE_S)
        back.program.disarm()
        back.program.kill()
        cell.forget(back)
        return cell.revive(back)

    @property
    def addresses(self) -> list[str]:
        """What the workers connect to."""
        tcp = self.trial["by"] == "tcp"
        return [viewer.tcp if tcp else viewer.name for viewer in self.viewers]

    @property
    def reconnect_s(self) -> float:
        return RECONNECT_S[self.trial["again"]]

    def end_worker(self, worker: Program, *, lost_nothing: bool) -> None:
        """A surviving worker ends; its books must close."""
        worker.order(do="end", lost=not lost_nothing)
        word = worker.hear("ended", "exited", timeout_s=2 * NOTICE_S)
        if word is None and worker.heard and worker.heard[-1]["at"] == "exited":
            word = worker.heard[-1]
        if word is None:
            self.result.hurt.append(
                f"a surviving worker ({state_of(worker.pid)}) did not end: {worker.heard[-2:]}"
            )
            return
        if not wait_for(worker.is_over, EXIT_S):
            self.result.hurt.append(f"a surviving worker hangs at its exit: {_stack(worker.pid)}")
        elif worker.process.returncode != 0:
            self.result.hurt.append(
                f"a worker ended with status {worker.process.returncode}: {worker.last_words()}"
            )
        self.result.hurt += word["hurt"]
        if word["at"] == "exited":
            if word["open"]:
                self.result.hurt.append(f"{word['open']} items open at the interpreter's end")
            return
        self.result.left.descriptors += [
            f"a worker holds {count} more {what}" for what, count in word["left"].items()
        ]
        self.result.returns += word["returns"]
        sums = word["sums"]
        for key, count in sums.items():
            self.result.books[key] = self.result.books.get(key, 0) + count
        if sums["sent"] != sums["displayed"] + sums["failed"] + sums["dropped"]:
            self.result.hurt.append(f"a worker's books don't close: {sums}")
        if lost_nothing and (sums["failed"] or sums["dropped"] or word["lost"]):
            self.result.hurt.append(f"a worker lost items though its viewers lived: {sums}")


class _Launch(_Kill):
    """A worker starts a viewer; both are killed, perhaps before there is a viewer."""

    def run(self) -> None:
        cell, trial = self.cell, self.trial
        run = cell.folder / "launch"
        run.mkdir(mode=0o700, exist_ok=True)
        env = {"OPENHCS_STREAM_RUNTIME_DIR": str(run)}
        worker = cell.worker(
            env=env, phase="launch", viewers=[trial["viewers"][0]], name="launcher"
        )
        self.expect(worker, "launching")
        time.sleep(trial["after_s"])
        doomed = [pid for pid in cell.strangers() if pid != worker.pid]
        worker.kill()
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        worker.process.wait(10)
        cell.end_programs()
        self.stop_survivor(doomed, env)
        self.result.left = cell.look(run=run)
        for log in run.glob("*.log"):
            log.unlink()

    def stop_survivor(self, doomed: list[int], env: dict[str, str]) -> None:
        """It may have become nobody's child between the look and the kill: then it is well.

        It goes on starting though nobody waits for it any more, and can be found and stopped.
        """
        wait_for(lambda: self.cell.strangers().keys().isdisjoint(doomed))
        if not self.cell.strangers():
            return
        before = os.environ["OPENHCS_STREAM_RUNTIME_DIR"]
        os.environ |= env
        try:
            # Where there is no display it ends by itself.
            if not wait_for(lambda: discovery.endpoints() or not self.cell.strangers(), START_S):
                self.result.hurt.append("what was being started can't be found")
            for endpoint in discovery.endpoints():
                openhcs_stream.ask(endpoint, "stop")
        finally:
            os.environ["OPENHCS_STREAM_RUNTIME_DIR"] = before


def _stack(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/wchan").read_text()
    return ""


def main() -> None:
    """Take trials from standard input, one after another, in a new folder below the given one."""
    folder = Path(tempfile.mkdtemp(prefix="ohs-", dir=sys.argv[1]))
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not get between the results
    cell = Cell(folder)
    try:
        for line in sys.stdin:
            result = run_trial(cell, json.loads(line))
            results.write(json.dumps(asdict(result)) + "\n")
            results.flush()
    finally:
        cell.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
