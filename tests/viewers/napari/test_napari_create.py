"""How the viewer is found and made, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import openhcs_stream_napari
from openhcs_stream.errors import UsageError
from openhcs_stream.viewer import Viewer, channel_colormap
from openhcs_stream_napari._create import create
from openhcs_stream_napari._looks import known_colormap


def test_the_row_names_the_factory() -> None:
    info = openhcs_stream_napari.VIEWER
    module, _, function = info.factory.partition(":")
    assert (info.name, info.extra) == ("napari", "napari")
    assert getattr(importlib.import_module(module), function) is create
    assert set(openhcs_stream_napari.__all__) == set(dir(openhcs_stream_napari))
    assert all(hasattr(openhcs_stream_napari, name) for name in openhcs_stream_napari.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        openhcs_stream_napari.nothing  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, openhcs_stream_napari as o; o.VIEWER; o.create;"
        "sys.exit(', '.join({'napari', 'qtpy', 'vispy', 'PyQt6'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_headless_needs_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    viewer = create(headless=True, title="t", options={})
    assert isinstance(viewer, Viewer)
    assert viewer.describe()["window"] is False
    with pytest.raises(UsageError, match="--headless"):
        viewer.screenshot()


def test_a_headless_viewer_ticks_when_it_is_poked() -> None:
    viewer = create(headless=True, title="t", options={})
    ticked = threading.Semaphore(0)
    thread = threading.Thread(target=viewer.run, args=(ticked.release, 30.0))
    thread.start()
    try:
        for _ in range(3):
            assert ticked.acquire(timeout=10)
            viewer.poke()
    finally:
        viewer.stop()
        thread.join(10)
    assert not thread.is_alive()


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"DISPLAY.*--headless.*xvfb-run"):
        create(headless=False, title="t", options={})
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    with pytest.raises(UsageError, match="QT_QPA_PLATFORM=offscreen"):
        create(headless=False, title="t", options={})


@pytest.mark.parametrize(
    ("missing", "headless"), [({"napari"}, True), ({"PyQt6", "PySide6", "PyQt5"}, False)]
)
def test_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], headless: bool
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UsageError, match=r"pip install 'openhcs-stream\[napari\]'"):
        create(headless=headless, title="t", options={})


@pytest.mark.parametrize("options", [{"colour": "red"}, {"screenshot": "x"}, {"size": "big"}])
def test_unknown_options(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        create(headless=True, title="t", options=options)


def test_the_window_has_the_size_and_title_that_were_asked_for(display: str) -> None:
    viewer: Any = create(headless=False, title="plate", options={"size": "1000x700"})
    try:
        assert viewer.describe()["window"] is True
        viewer.canvas_only = False
        assert viewer.screenshot().shape == (700, 1000, 4)
        assert "plate" in viewer.model.title
    finally:
        viewer.close()


def test_the_manifest_is_one_that_npe2_takes() -> None:
    from npe2 import PluginManifest

    folder = Path(openhcs_stream_napari.__file__).parent
    manifest = PluginManifest.from_file(folder / "napari.yaml")
    assert manifest.name == "openhcs-stream"
    assert manifest.contributions.keybindings is None
    [widget] = manifest.contributions.widgets or []
    [command] = manifest.contributions.commands or []
    assert widget.command == command.id
    module, _, name = str(command.python_name).partition(":")
    assert (folder / f"{module.rpartition('.')[2]}.py").is_file()
    assert name == "ReceiverWidget"


@pytest.mark.parametrize(
    ("channel", "colormap"),
    [
        ("DAPI", "bop blue"), ("w1DAPI", "bop blue"), ("Hoechst 33342", "bop blue"),
        ("GFP", "green"), ("EGFP-tubulin", "green"), ("Alexa Fluor 488", "green"),
        ("TRITC", "bop orange"), ("mCherry", "red"), ("Texas Red", "red"), ("Cy5", "magenta"),
        ("Alexa647", "magenta"), ("Brightfield", "gray"), ("TL 20", "gray"),
        ("transfected", "cyan"), ("1", "cyan"),
    ],
)  # fmt: skip
def test_usual_channels_have_their_usual_colours(channel: str, colormap: str) -> None:
    assert channel_colormap(channel) == colormap


def test_other_channels_have_colours_that_differ() -> None:
    taken: list[str] = []
    for number in range(8):
        taken.append(channel_colormap(str(number), taken))
    assert len(set(taken)) == 6
    assert all(known_colormap(name) for name in taken)


@pytest.mark.parametrize(
    ("name", "found"), [("Grays", "gray"), ("Magenta", "magenta"), ("nope", None)]
)
def test_colormaps_by_other_names(name: str, found: str | None) -> None:
    assert known_colormap(name) == found
