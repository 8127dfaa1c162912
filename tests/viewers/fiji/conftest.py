"""A real X server, one Java for all tests of a process, and a stage without any transport."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import rois as roi_codecs
from openhcs_stream.viewer import Arrival, Change, Painting, Placement, Scene, SceneLayer
from openhcs_stream.viewer._edits import EditBook
from openhcs_stream_fiji import FijiViewer, create
from openhcs_stream_fiji._java import running_java

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from openhcs_stream.messages import EditRecord, LayerSpec
    from openhcs_stream.rois import Roi
    from openhcs_stream.viewer._scene import PlaceValue


class Stage:
    """What a receiver does: keep the pixels, commit to the scene, show on the viewer's thread."""

    def __init__(self, viewer: FijiViewer) -> None:
        self.viewer = viewer
        self.scene = Scene()
        self.book = EditBook()
        viewer.watch_edits(self._note)

    def _note(self, change: Change | Painting) -> None:
        self.scene.add(change.layer)
        self.book.take(change)

    def act(self, work: Callable[[], object]) -> None:
        """Do what a person does, on ImageJ's own thread."""
        self.viewer.java.on_event_thread(work)

    def edits(self) -> list[EditRecord]:
        """What was changed since the last call; pending changes are finished."""
        self.viewer.finish_edits()
        return self.taken()

    def taken(self) -> list[EditRecord]:
        """What was reported since the last call."""
        found = self.book.waiting()
        self.book.taken([record.number for record in found])
        return found

    def tick_until(self, met: Callable[[], object], seconds: float = 20.0) -> None:
        """Let time pass, as `run` does."""
        until = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < until
            self.act(lambda: self.viewer.turn(_no_news))
            time.sleep(0.01)

    def show(
        self,
        *items: tuple[LayerSpec, tuple[PlaceValue, ...], Any],
        info: dict[str, Any] | None = None,
    ) -> list[SceneLayer]:
        """Show items as (spec, values, payload); returns the layers that they touched."""
        arrivals = []
        for number, (spec, values, payload) in enumerate(items):
            placement = Placement(spec, splits=self.viewer.splits)
            if spec.kind in ("image", "labels"):
                payload = np.asarray(payload)
                kept = self.viewer.keep(placement.arrange(payload), None, spec)
                placed = placement.cut(values, kept)
            else:
                placed = placement.place(values, payload)
            arrivals.append(Arrival(ticket=number, placed=placed, info=info or {}))
        changes = self.scene.commit(arrivals)
        assert not changes.failures
        if changes.axes_changed:
            self.viewer.set_axes(self.scene.axes)
        layers = []
        for key, coords in changes.layers.items():
            self.viewer.show_layer(self.scene.layers[key], coords)
            layers.append(self.scene.layers[key])
        return layers

    def imp(self, *items: tuple[LayerSpec, tuple[PlaceValue, ...], Any], **more: Any) -> Any:
        """Show items of one layer and give the `ij.ImagePlus`."""
        (layer,) = self.show(*items, **more)
        return self.viewer.image(layer)


def before(record: EditRecord) -> list[Roi]:
    """The ROIs of a record, as they were."""
    return list(roi_codecs.decode(record.before))


def after(record: EditRecord) -> list[Roi]:
    """The ROIs of a record, as they are."""
    return list(roi_codecs.decode(record.after))


def _no_news() -> None:
    """Nothing came from any worker."""


def pixels(imp: Any, slice_: int | None = None) -> npt.NDArray[Any]:
    """What ImageJ has in one slice, counted from 1; in the current one by default."""
    array = np.asarray(imp.getStack().getPixels(slice_ or imp.getCurrentSlice()))
    # Java's whole numbers are signed, ImageJ's are not.
    plain = {"int8": np.uint8, "int16": np.uint16}.get(array.dtype.name)
    if plain is not None:
        array = array.view(plain)
    return array.reshape(imp.getHeight(), imp.getWidth())


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """A display of this test process's own: Xvfb picks a free number."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.fail("these tests open ImageJ's windows; install: apt-get install xvfb libx11-6 "
                    "libxext6 libxi6 libxrender1 libxtst6 fonts-dejavu-core")  # fmt: skip
    reading, writing = os.pipe()
    command = [program, "-displayfd", str(writing), "-screen", "0", "1280x1024x24"]
    command += ["-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        number = pipe.readline().strip()  # ends at the server's death at the latest
    if not number:
        pytest.fail(f"Xvfb did not start: exit status {server.wait(10)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPLAY", f":{number}")
        yield f":{number}"
    if running_java() is None:
        server.terminate()
        server.wait(10)
        return
    # Java ends its process when its display is gone, so the display has to outlive this process:
    # at whose end, by whatever death, the pipe is closed.
    reading, _ = os.pipe()  # the end for writing stays open
    watch = ["sh", "-c", 'cat; kill "$0"', str(server.pid)]
    watcher = subprocess.Popen(watch, stdin=reading, start_new_session=True)
    os.close(reading)
    for each in (server, watcher):
        each.returncode = 0  # nobody waits for them


@pytest.fixture(scope="session")
def java(display: str) -> Any:
    """ImageJ's Java, able to open windows: there is one to a process."""
    viewer = create(headless=False, title="test", options={"memory": "1g"})
    assert isinstance(viewer, FijiViewer)
    viewer.close()
    return viewer.java


@pytest.fixture(params=["headless", "windows"])
def stage(request: pytest.FixtureRequest, java: Any) -> Iterator[Stage]:
    """Both viewers, one after the other."""
    viewer = FijiViewer(java, headless=request.param == "headless")
    yield Stage(viewer)
    viewer.close()


@pytest.fixture
def window(java: Any) -> Iterator[Stage]:
    """The viewer with windows."""
    viewer = FijiViewer(java, headless=False)
    yield Stage(viewer)
    viewer.close()


@pytest.fixture
def headless(java: Any) -> Iterator[Stage]:
    """The viewer without."""
    viewer = FijiViewer(java, headless=True)
    yield Stage(viewer)
    viewer.close()
