"""Real drags, strokes, keys and clicks (xdotool) in a napari process reach a worker process."""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from openhcs_stream.discovery import Endpoint

#: Corners of the image that the worker sends are lit, so that its pixels are found on the screen.
SHAPE = (200, 300)
MARKS = ((10, 10), (190, 290))

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
        place=dict(edit.place),
        names=[getattr(roi, "name", "") for roi in edit.before],
        moved=[
            (now.coordinates - was.coordinates).mean(axis=0).tolist()
            for was, now in zip(edit.before, edit.after)
        ] if edit.kind == "rois" and edit.action == "changed" else [],
        region=[[part.start, part.stop] for part in edit.region],
        before=np.unique(edit.before).tolist() if edit.kind == "labels" else [],
        after=np.unique(edit.after).tolist() if edit.kind == "labels" else [],
    )

place = {"well": "A01"}
image = np.zeros((200, 300), np.uint8)
for y, x in ((10, 10), (190, 290)):
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
squares = [Roi.rectangle(60, 40 + 70 * n, 110, 90 + 70 * n, name=f"cell {n}") for n in range(3)]
with openhcs_stream.connect(sys.argv[1], source="plate", name="worker") as stream:
    for well in ("A00", "A01"):
        stream.image(image, name="raw", place={"well": well}, colormap="magenta",
                     contrast_limits=(0, 255)).wait()
    stream.rois(squares, name="cells", place=place).wait()
    stream.labels(np.full((200, 300), 3, np.uint8), name="mask", place=place, opacity=0.1).wait()
    stream.on_edit(edit_of)
    for name in sys.argv[2:]:
        tell(asks=name)
        answer = stream.ask("Please check.", on=name, place=place, timeout_s=50)
        tell(outcome=answer.outcome)
        tell(left=[roi.name for roi in stream.get_rois("cells", place=place)])
    sys.stdin.read()
"""


class Worker:
    """A worker process, and what it tells."""

    def __init__(self, address: str, *asks: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, address, *asks],
            stdin=subprocess.PIPE,
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
            self.process.kill()
            assert self.process.stderr is not None
            pytest.fail(f"the worker told nothing: {self.process.stderr.read()}")

    def told_nothing_more(self) -> bool:
        return self._told.empty()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)
        self._reader.join(20)


class Person:
    """Eyes and a hand at a napari window.

    Parameters
    ----------
    display : str
    viewer : Endpoint
    """

    def __init__(self, display: str, viewer: Endpoint) -> None:
        self._display = display
        self._viewer = viewer
        found = self.hand("search", "--sync", "--onlyvisible", "--name", "napari").split()
        self._window = found[-1]
        told = self.hand("getwindowgeometry", "--shell", self._window)
        facts = dict(line.split("=") for line in told.split())
        self._left, self._top = int(facts["X"]), int(facts["Y"])
        self.hand("windowfocus", "--sync", self._window)

    def hand(self, *words: object) -> str:
        done = subprocess.run(
            ["xdotool", *map(str, words)],
            env={"DISPLAY": self._display},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout

    def see(self) -> npt.NDArray[np.uint8]:
        """The window with its panels: (Y, X, 3)."""
        from PIL import Image

        answer: Any = openhcs_stream.ask(self._viewer, "screenshot", timeout_s=20)
        picture: npt.NDArray[np.uint8] = np.asarray(
            Image.open(io.BytesIO(answer["png"])).convert("RGB")
        )
        return picture

    def see_calmly(self) -> npt.NDArray[np.uint8]:
        """The window once nothing moves in it any more."""
        before = self.see()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            now = self.see()
            if np.array_equal(before, now):
                return now
            before = now
        pytest.fail("the window does not come to rest")

    def on_image(self, *pixels: tuple[float, float]) -> list[tuple[int, int]]:
        """Where on the display pixels (y, x) of the image are."""
        picture = self.see_calmly().astype(int)
        lit = (picture[..., 0] > 170) & (picture[..., 1] < 90) & (picture[..., 2] > 170)
        rows, columns = np.nonzero(lit)
        assert len(rows), "the marks are not to be seen"
        middle = (rows.min() + rows.max()) / 2
        first = np.array([rows[rows < middle].mean(), columns[rows < middle].mean()])
        last = np.array([rows[rows > middle].mean(), columns[rows > middle].mean()])
        a, b = np.array(MARKS)
        scale = (last - first) / (b - a)
        found = [np.round(first + (np.array(at) - a) * scale).astype(int) for at in pixels]
        return [(self._left + int(x), self._top + int(y)) for y, x in found]

    def on_button(self, which: int) -> tuple[int, int]:
        """Where Done (0) or Skip (1) is: they are the lowest in the frame around the question."""
        picture = self.see_calmly().astype(int)
        right = picture[:, -300:]
        # The frame has the theme's highlight, the only blue line in the panel.
        blue = (right[..., 2] > 120) & (right[..., 2] - right[..., 0] > 70)
        rows, columns = np.nonzero(blue)
        left, width = columns.min(), columns.max() - columns.min()
        x = self._left + picture.shape[1] - 300 + left + width * (0.25 + 0.5 * which)
        return int(x), self._top + int(rows.max()) - 22

    def click(self, at: tuple[int, int]) -> None:
        self.hand("mousemove", "--sync", *at, "sleep", 0.1, "click", 1, "sleep", 0.1)

    def press(self, key: str) -> None:
        self.hand("key", "--window", self._window, key, "sleep", 0.2)

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 8) -> None:
        self.hand("mousemove", "--sync", *start, "sleep", 0.1, "mousedown", 1, "sleep", 0.1)
        for step in range(1, steps + 1):
            at = [round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True)]
            self.hand("mousemove", *at, "sleep", 0.05)
        self.hand("sleep", 0.1, "mouseup", 1, "sleep", 0.1)


@pytest.fixture
def own_display() -> Iterator[str]:
    """A display whose clients come and go."""
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.fail("these tests draw and click; install: apt-get install xvfb xdotool")
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            yield f":{pipe.readline().strip()}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def viewer(own_display: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A napari process with a window on that display."""
    from openhcs_stream import discovery

    monkeypatch.setenv("DISPLAY", own_display)
    monkeypatch.setenv("QT_QPA_PLATFORM", "xcb")
    monkeypatch.setenv("LIBGL_ALWAYS_SOFTWARE", "1")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    options = ("--option", "screenshot=window", "--option", "size=1200x900")
    endpoint = discovery.launch("napari", timeout_s=50, options=options)
    yield endpoint
    openhcs_stream.ask(endpoint, "stop", timeout_s=20)
    wait_for(lambda: not discovery.endpoints())


@pytest.fixture
def work(viewer: Endpoint) -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def start(*asks: str) -> Worker:
        made.append(Worker(viewer.addresses[0], *asks))
        return made[-1]

    yield start
    for worker in made:
        worker.end()


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


@pytest.mark.timeout(180)
def test_a_shape_is_dragged_and_deleted_and_done_is_clicked(
    own_display: str, viewer: Endpoint, work: Callable[..., Worker]
) -> None:
    worker = work("cells")
    assert worker.told(60) == {"asks": "cells"}
    person = Person(own_display, viewer)
    start, end = person.on_image((85, 65), (115, 85))
    person.press("5")  # select shapes
    person.drag(start, end)
    told = worker.told()
    assert (told["action"], told["names"], told["place"]) == (
        "changed", ["cell 0"], {"well": "A01"},
    )  # fmt: skip
    (moved,) = told["moved"]
    assert moved == pytest.approx([20, 30], abs=1.5)
    (at,) = person.on_image((85, 205))
    person.click(at)
    person.press("Delete")
    told = worker.told()
    assert (told["action"], told["indices"], told["names"]) == ("removed", [2], ["cell 2"])
    assert worker.told_nothing_more()
    person.click(person.on_button(0))
    assert worker.told() == {"outcome": "done"}
    assert worker.told() == {"left": ["cell 0", "cell 1"]}


@pytest.mark.timeout(180)
def test_a_stroke_undone_and_skip(
    own_display: str, viewer: Endpoint, work: Callable[..., Worker]
) -> None:
    worker = work("mask")
    assert worker.told(60) == {"asks": "mask"}
    person = Person(own_display, viewer)
    start, end = person.on_image((60, 40), (100, 140))
    person.hand("mousemove", "--sync", *start)
    person.press("m")  # a label that is not there yet
    person.press("2")  # the brush
    person.drag(start, end)
    told = worker.told()
    assert (told["action"], told["name"], told["before"], told["after"]) == (
        "painted", "mask", [3], [3, 4],
    )  # fmt: skip
    (top, bottom), (left, right) = told["region"]
    assert (top, bottom, left, right) == (
        pytest.approx(54, abs=4), pytest.approx(106, abs=4),
        pytest.approx(34, abs=4), pytest.approx(146, abs=4),
    )  # fmt: skip
    person.press("ctrl+z")
    undone = worker.told()
    assert (undone["region"], undone["before"], undone["after"]) == (told["region"], [3, 4], [3])
    assert worker.told_nothing_more()
    person.click(person.on_button(1))
    assert worker.told() == {"outcome": "skipped"}
