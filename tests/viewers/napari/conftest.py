"""A real X server, and a stage: the scene and a napari viewer, driven without any transport."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.stream import Edit
from openhcs_stream.viewer import Arrival, Placement, Scene, SceneLayer
from openhcs_stream.viewer._edits import EditBook
from openhcs_stream_napari._model import NapariModelViewer

with warnings.catch_warnings():
    # napari 0.9 and npe2 0.10 define their models in ways that pydantic has deprecated, and say so
    # once: while they are imported, which is here and not in whichever test comes first.
    from pydantic import PydanticDeprecatedSince20

    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import napari.viewer  # noqa: F401
    from napari.utils._proxies import ReadOnlyWrapper
    from napari.utils.interactions import (
        mouse_double_click_callbacks,
        mouse_move_callbacks,
        mouse_press_callbacks,
        mouse_release_callbacks,
    )

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openhcs_stream.messages import LayerSpec, PlaceValue
    from openhcs_stream.viewer import Change, Painting
    from openhcs_stream_napari._window import NapariWindowViewer


class Mouse:
    """A hand on the canvas: what napari's canvas calls, in its order, with one event after another.

    Positions are (y, x) in the world; other coordinates are where the sliders stand.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def press(self, y: float, x: float, **more: Any) -> None:
        self._tell(mouse_press_callbacks, "mouse_press", y, x, **more)

    def move(self, y: float, x: float, *, pressed: bool = True) -> None:
        self._tell(mouse_move_callbacks, "mouse_move", y, x, is_dragging=pressed)

    def release(self, y: float, x: float) -> None:
        self._tell(mouse_release_callbacks, "mouse_release", y, x)

    def double_click(self, y: float, x: float) -> None:
        self._tell(mouse_double_click_callbacks, "mouse_double_click", y, x)

    def drag(self, *path: tuple[float, float]) -> None:
        """Press, move along, and let go."""
        self.press(*path[0])
        for at in path[1:]:
            self.move(*at)
        self.release(*path[-1])

    def click(self, y: float, x: float) -> None:
        self.press(y, x)
        self.release(y, x)

    def _tell(self, callbacks: Any, kind: str, y: float, x: float, **more: Any) -> None:
        dims = self._model.dims
        event = SimpleNamespace(
            type=kind,
            position=(*dims.point[:-2], y, x),
            pos=np.array([x, y]) * 10,
            dims_displayed=list(dims.displayed),
            dims_point=list(dims.point),
            view_direction=None,
            up_direction=None,
            camera_zoom=1.0,
            handled=False,
            **{"button": 1, "modifiers": [], "is_dragging": False, **more},
        )
        for target in (self._model, self._model.layers.selection.active):
            if target is not None:
                callbacks(target, ReadOnlyWrapper(event, exceptions=("handled",)))


class Stage:
    """What a receiver does on the viewer's thread: commit to the scene, then show."""

    def __init__(self, viewer: NapariModelViewer) -> None:
        self.viewer = viewer
        self.scene = Scene()
        self.book = EditBook()
        self.mouse = Mouse(viewer.model)
        viewer.watch_edits(self._note)

    def _note(self, change: Change | Painting) -> None:
        self.book.take(change)

    def edits(self, *, finish: bool = True) -> list[Edit]:
        """What a person has changed since the last call, as a worker gets it."""
        if finish:
            self.viewer.finish_edits()
        records = self.book.waiting()
        self.book.taken([record.number for record in records])
        return [Edit.of_record(record, "napari") for record in records]

    def show(self, *items: tuple[LayerSpec, tuple[PlaceValue, ...], Any]) -> list[SceneLayer]:
        """Show items as (spec, values, payload); returns the layers that they touched."""
        arrivals = [
            Arrival(
                ticket=i, placed=Placement(spec, splits=self.viewer.splits).place(values, payload)
            )
            for i, (spec, values, payload) in enumerate(items)
        ]
        changes = self.scene.commit(arrivals)
        assert not changes.failures
        if changes.axes_changed:
            self.viewer.set_axes(self.scene.axes)
        layers = []
        for key, coords in changes.layers.items():
            self.viewer.show_layer(self.scene.layers[key], coords)
            layers.append(self.scene.layers[key])
        return layers

    def native(self, *items: tuple[LayerSpec, tuple[PlaceValue, ...], Any]) -> Any:
        """Show items of one layer and give the napari layer."""
        (layer,) = self.show(*items)
        return self.viewer.native_layer(layer)


@pytest.fixture(scope="session", autouse=True)
def _napari_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """napari's settings are not the user's: nothing is read from them or written to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAPARI_CONFIG", str(tmp_path_factory.mktemp("napari") / "settings.yaml"))
        yield


@pytest.fixture(scope="session")
def display() -> Iterator[str]:
    """A display of this test worker's own: Xvfb picks a free number."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.fail("these tests draw on a real display; install it: apt-get install xvfb xauth "
                    "libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 "
                    "libegl1 libgl1 libfontconfig1 libdbus-1-3")  # fmt: skip
    reading, writing = os.pipe()
    command = [program, "-displayfd", str(writing), "-screen", "0", "1280x1024x24"]
    command += ["-nolisten", "tcp", "-terminate"]  # it ends with its only client, crashed or not
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            number = pipe.readline().strip()  # ends at the server's death at the latest
        if not number:
            pytest.fail(f"Xvfb did not start: exit status {server.wait(10)}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DISPLAY", f":{number}")
            patch.setenv("QT_QPA_PLATFORM", "xcb")
            patch.setenv("LIBGL_ALWAYS_SOFTWARE", "1")
            patch.delenv("WAYLAND_DISPLAY", raising=False)
            yield f":{number}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def model() -> Iterator[Stage]:
    """The headless viewer."""
    viewer = NapariModelViewer()
    yield Stage(viewer)
    viewer.close()


@pytest.fixture
def window(display: str) -> Iterator[Stage]:
    """The viewer with a window on the test's display."""
    from openhcs_stream_napari._window import NapariWindowViewer

    viewer: NapariWindowViewer = NapariWindowViewer(title="test")
    stage = Stage(viewer)
    try:
        yield stage
    finally:
        viewer.close()
        viewer._pass_events()


@pytest.fixture(params=["model", "window"])
def stage(request: pytest.FixtureRequest) -> Stage:
    """Both viewers, one after the other."""
    found: Stage = request.getfixturevalue(request.param)
    return found
