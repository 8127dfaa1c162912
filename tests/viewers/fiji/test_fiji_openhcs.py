"""OpenHCS's senders of every generation at a real Fiji."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import openhcs_stream
from openhcs_stream import discovery
from scripts._ports import free_port
from tests.dialects.conftest import PlainSender

if TYPE_CHECKING:
    from pathlib import Path

    from openhcs_stream.discovery import Endpoint

DISPLAY = {
    "lut": "Grays",
    "component_modes": {"z_index": "slice", "channel": "channel"},
    "component_order": ["channel", "z_index"],
    "auto_contrast": True,
}
OUTLINE = [(2, 1), (9, 1), (9, 8)]
GENERATIONS = (1, 2, 3)
VOLUME = (4, 8, 9)


@pytest.mark.timeout(120)
def test_every_plane_and_no_temporary_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original shows one plane of a volume, and writes a file for each outline."""
    temporary = home / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", f"-Djava.io.tmpdir={temporary}")
    port = free_port()
    viewer = discovery.launch("fiji", timeout_s=50, options=("--headless", "--port", str(port)))
    senders = {each: PlainSender(each, "fiji", port, listen=False) for each in GENERATIONS}
    try:
        display(senders[1], [image(5, (8, 9), z=9)])  # ImageJ has loaded what it needs
        changed = temporary.stat().st_mtime_ns
        for generation, sender in senders.items():
            outlines = {"polygons": [OUTLINE] * 40, "place": {"z_index": 1, "channel": generation}}
            display(sender, [image(generation, VOLUME, channel=generation), outlines])
        # Whatever is written there or removed changes it.
        assert temporary.stat().st_mtime_ns == changed
        layers = openhcs_stream.ask(viewer, "layers")
        shown = every_plane(viewer, layers)
        for generation in GENERATIONS:
            assert {plane.tobytes() for plane in made(generation, VOLUME)} <= shown
        outlines_shown = [size for each in layers if each["kind"] == "rois"
                          for _, size in each["items"]]  # fmt: skip
        assert outlines_shown == [40] * len(GENERATIONS)
        for sender in senders.values():
            assert sender.do("left") == {"left": []}
            sender.close()
    finally:
        openhcs_stream.ask(viewer, "stop")


def image(start: int, shape: tuple[int, ...], *, channel: int = 1, z: int = 1) -> dict[str, Any]:
    """One that a plain sender makes."""
    place = {"z_index": z, "channel": channel}
    return {"shape": list(shape), "dtype": "float32", "start": start, "place": place}


def made(start: int, shape: tuple[int, ...]) -> Any:
    """The pixels of `image`."""
    return ((np.arange(np.prod(shape)) * 7 + start) % 251).astype(np.float32).reshape(shape)


def display(sender: PlainSender, items: list[dict[str, Any]]) -> None:
    """Send items, and wait until they are shown."""
    told = sender.send(*items, display_config=DISPLAY)
    assert told["reply"]["status"] == "success"
    answers = iter(lambda: sender.control("settle")["settle_phase"], "complete")
    assert set(answers) <= {"running"}


def every_plane(viewer: Endpoint, layers: list[dict[str, Any]]) -> set[bytes]:
    """The pixels of all planes of all images that ImageJ shows."""
    found = set()
    for layer in layers:
        if layer["kind"] != "image":
            continue
        for values in layer["planes"]:
            place = dict(zip(layer["components"], values, strict=True))
            plane = openhcs_stream.ask(viewer, "read", layer=layer["title"], place=place)
            found.add(bytes(plane["data"]))
    return found
