"""Real clicks and drags (xdotool) in a viewer process arrive at a worker process, as one edit each.

There is no window manager on the test's display: windows have no frames, and the mouse alone says
which one is meant.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewers.fiji.test_fiji_process import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = """
import json, sys
import numpy as np
import openhcs_stream
from openhcs_stream.rois import Roi

def tell(**what):
    print(json.dumps(what), flush=True)

def edit_of(edit):
    tell(
        action=edit.action, kind=edit.kind, name=edit.name, indices=edit.indices,
        names=[getattr(roi, "name", "") for roi in edit.before],
        moved=[
            (now.coordinates - was.coordinates).mean(axis=0).tolist()
            for was, now in zip(edit.before, edit.after)
        ] if edit.action == "changed" else [],
        region=[[part.start, part.stop] for part in edit.region],
        painted=np.unique(edit.after).tolist() if edit.kind == "labels" else [],
    )

squares = [Roi.rectangle(20, 20 + 60 * n, 50, 60 + 60 * n, name=f"cell {n}") for n in range(3)]
with openhcs_stream.connect(sys.argv[1], source="plate", name="worker") as stream:
    stream.image(np.full((200, 300), 60, np.uint8), name="raw").wait()
    if sys.argv[2] == "labels":
        stream.labels(np.full((120, 160), 3, np.uint8), name="nuclei").wait()
    else:
        stream.rois(squares, name="cells").wait()
    if sys.argv[2] == "ask":
        answer = stream.ask("Please check the outlines.", on="cells")
        tell(outcome=answer.outcome, edits=len(answer.edits))
        for edit in answer.edits:
            edit_of(edit)
        tell(left=[roi.name for roi in stream.get_rois("cells")])
    else:
        tell(ready=True)
        for edit in stream.edits():
            edit_of(edit)
"""


class Worker:
    """A worker process, and what it tells."""

    def __init__(self, address: str, what: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, address, what],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))

    def told(self, seconds: float = 30) -> dict[str, Any]:
        """The next thing that it tells."""
        try:
            return self._told.get(timeout=seconds)
        except queue.Empty:
            self.process.terminate()
            assert self.process.stderr is not None
            pytest.fail(f"the worker told nothing: {self.process.stderr.read()}")

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)
        self._reader.join(20)


class Mouse:
    """A person's hand on a display."""

    def __init__(self, display: str) -> None:
        self._display = display

    def _run(self, *words: object) -> str:
        done = subprocess.run(
            ["xdotool", *map(str, words)],
            env={"DISPLAY": self._display},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return done.stdout

    def window(self, title: str) -> tuple[int, int, int, int]:
        """x, y, width and height of a window, once it is there and stays."""
        until = time.monotonic() + 30
        before: tuple[int, ...] = ()
        while time.monotonic() < until:
            found = self._run("search", "--onlyvisible", "--name", title).split()
            if found:
                told = self._run("getwindowgeometry", "--shell", found[-1])
                facts = dict(line.split("=") for line in told.split())
                now = tuple(int(facts[name]) for name in ("X", "Y", "WIDTH", "HEIGHT"))
                if now == before:
                    return now  # type: ignore[return-value]
                before = now
            time.sleep(0.1)
        pytest.fail(f"there is no window {title!r}")

    def click(self, x: float, y: float) -> None:
        self._run("mousemove", round(x), round(y), "sleep", 0.1, "click", 1, "sleep", 0.1)

    def drag(self, x: float, y: float, dx: int, dy: int, steps: int = 8) -> None:
        self._run("mousemove", round(x), round(y), "sleep", 0.1, "mousedown", 1, "sleep", 0.1)
        for step in range(1, steps + 1):
            self._run(
                "mousemove", round(x + dx * step / steps), round(y + dy * step / steps),
                "sleep", 0.03,
            )  # fmt: skip
        self._run("sleep", 0.1, "mouseup", 1, "sleep", 0.1)

    # --- ImageJ's windows ---------------------------------------------------------------------

    def manager_button(self, row: int) -> None:
        """A button of the ROI Manager: 0 is Add, 1 Update, 2 Delete."""
        x, y, width, height = self.window("ROI Manager")
        self.click(x + width - 50, y + (row + 0.5) * height / 11)

    def manager_item(self, row: int) -> None:
        """One line of the ROI Manager's list."""
        x, y, _, _ = self.window("ROI Manager")
        self.click(x + 30, y + 9 + 17 * row)

    def on_image(self, title: str, image: tuple[int, int], x: int, y: int) -> tuple[float, float]:
        """Where on the display a pixel of an image without sliders is."""
        left, top, width, height = self.window(title)
        return left + (width - image[0]) / 2 + x, top + height - 5 - image[1] + y


@pytest.fixture
def viewer(display: str) -> Iterator[Running]:
    if shutil.which("xdotool") is None:
        pytest.fail("these tests click; install: apt-get install xdotool")
    running = Running("--memory", "400m")
    yield running
    _, errors = running.end()
    assert "Exception" not in errors, errors


@pytest.fixture
def worker(viewer: Running, request: pytest.FixtureRequest) -> Iterator[Worker]:
    made = Worker(viewer.address, request.param)
    yield made
    made.end()


@pytest.mark.parametrize("worker", ["edits"], indirect=True)
def test_delete_is_clicked(worker: Worker, display: str) -> None:
    mouse = Mouse(display)
    assert worker.told() == {"ready": True}
    mouse.manager_item(1)
    mouse.manager_button(2)
    told = worker.told()
    assert (told["action"], told["name"], told["names"]) == ("removed", "cells", ["cell 1"])
    mouse.manager_item(1)
    mouse.manager_button(2)
    assert worker.told()["names"] == ["cell 2"]


@pytest.mark.parametrize("worker", ["edits"], indirect=True)
def test_a_roi_is_dragged_and_updated(worker: Worker, display: str) -> None:
    mouse = Mouse(display)
    assert worker.told() == {"ready": True}
    mouse.manager_item(2)
    at = mouse.on_image("plate / raw", (300, 200), 160, 35)
    mouse.drag(*at, 24, 40)
    mouse.manager_button(1)
    told = worker.told()
    assert (told["action"], told["names"]) == ("changed", ["cell 2"])
    assert told["moved"] == [[24, 40]]
    mouse.manager_item(0)
    mouse.manager_button(2)
    assert worker.told()["action"] == "removed"  # nothing else came of the drag


@pytest.mark.parametrize("worker", ["ask"], indirect=True)
def test_a_question_is_answered_after_a_correction(worker: Worker, display: str) -> None:
    mouse = Mouse(display)
    x, y, width, height = mouse.window("Question from worker")
    mouse.manager_item(0)
    mouse.manager_button(2)
    mouse.click(x + width - 135, y + height - 36)
    assert worker.told() == {"outcome": "done", "edits": 1}
    assert worker.told()["names"] == ["cell 0"]
    assert worker.told() == {"left": ["cell 1", "cell 2"]}


@pytest.mark.parametrize("worker", ["labels"], indirect=True)
def test_labels_are_painted_with_the_brush(worker: Worker, display: str) -> None:
    mouse = Mouse(display)
    assert worker.told() == {"ready": True}
    x, y, _, _ = mouse.window("ImageJ")
    mouse.click(x + 423, y + 38)  # the brush, in the tool bar
    at = mouse.on_image("plate / nuclei", (160, 120), 40, 30)
    mouse.drag(*at, 30, 0)
    told = worker.told()
    assert (told["action"], told["kind"], told["name"]) == ("painted", "labels", "nuclei")
    (top, bottom), (left, right) = told["region"]
    assert top <= 30 < bottom
    assert left <= 40
    assert right > 70
    assert len(told["painted"]) == 2
    mouse.drag(at[0], at[1] + 50, 30, 0)
    (top, bottom), _ = worker.told()["region"]
    assert top <= 80 < bottom
