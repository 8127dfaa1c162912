"""WIRE.md says what the code does: it is rendered from it, and its examples are read back."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import zmq

from openhcs_stream import messages, rois
from openhcs_stream.errors import UsageError
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "render_wire.py"
DOCUMENT = ROOT / "WIRE.md"


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_wire", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_wire"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_document_is_what_the_code_says(renderer: ModuleType) -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == renderer.render(), "run scripts/render_wire.py"


def test_check_tells_by_its_exit_status(
    renderer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], timeout=50, check=False)
    assert done.returncode == 0
    monkeypatch.setattr(renderer, "DOCUMENT", tmp_path / "WIRE.md")
    assert renderer.main(["--check"]) == 1
    (tmp_path / "WIRE.md").write_text("something else", encoding="utf-8")
    assert renderer.main(["--check"]) == 1
    monkeypatch.setattr(renderer, "ROOT", tmp_path)
    assert renderer.main([]) == 0
    assert renderer.main(["--check"]) == 0


def test_every_message_has_its_section_and_example(renderer: ModuleType) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert tuple(type(each) for each in renderer.EXAMPLES) == messages.MESSAGES
    for kind in messages.MESSAGES:
        section = text.partition(f'### {kind.__name__}: `"{kind.__struct_config__.tag}"`')[2]
        section = section.partition("\n### ")[0]
        for field in kind.__struct_fields__:
            assert f"`{field}`" in section, f"{kind.__name__}.{field}"
        block = re.search(r"```\n.*\n\n([0-9a-f \n]+)```", section)
        assert block is not None
        assert isinstance(messages.decode(bytes.fromhex(block[1])), kind)


def test_the_example_of_rois_can_be_decoded() -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## A block of ROIs")[2]
    block = re.search(r"```\n([0-9a-f \n]+)```", section)
    assert block is not None
    [cell] = rois.decode(bytes.fromhex(block[1]))
    assert (cell.kind, cell.name, len(cell.coordinates)) == ("polygon", "cell 1", 3)


def test_the_verbs_are_those_that_a_viewer_knows() -> None:
    """An unknown verb is refused with the list of the known ones."""
    table = DOCUMENT.read_text(encoding="utf-8").partition("### Requests")[2].partition("\n###")[0]
    written = set(re.findall(r"^\| (\w+) \|", table, re.MULTILINE)) - {"verb"}
    with run_receiver(MemoryViewer()) as running, pytest.raises(UsageError) as caught:
        running.receiver._do("dance", {})
    known = re.findall(r"\w+", caught.value.cure.removeprefix("Known are"))
    assert written == set(known) - {"and"}


def test_the_least_that_works() -> None:
    """A sender as the document describes it: a socket and MessagePack, nothing of this package."""
    image = np.arange(12, dtype="<u2").reshape(3, 4)

    def say(*fields: Any, blobs: tuple[bytes, ...] = ()) -> None:
        dealer.send_multipart([msgspec.msgpack.encode(fields), *blobs])

    def hear(tag: str) -> list[Any]:
        while dealer.poll(20_000):
            heard: list[Any] = msgspec.msgpack.decode(dealer.recv())
            if heard[0] == tag:
                return heard
        raise TimeoutError(tag)

    with run_receiver(MemoryViewer()) as running, zmq.Context() as context:
        dealer = context.socket(zmq.DEALER)
        with dealer:
            dealer.linger = 0
            dealer.connect(running.address)
            say("hello", 1, 0, "5e55", "stream", "a script", "ada", "elsewhere", 1)
            assert hear("welcome")[3] == "memory"
            say("layer", 0, ["image", "raw", "YX", ["z"]])
            item = [0, 0, [3], image.shape, "<u2", image.nbytes, [[-1, 0, image.nbytes, 0]]]
            say("items", [item], blobs=(image.tobytes(),))
            displayed: list[int] = []
            while not displayed:
                displayed += hear("report")[2]
            assert displayed == [0]
            say("bye")
        [layer] = running.viewer.layers.values()
        np.testing.assert_array_equal(layer.stack.planes[3,], image)


def test_nothing_is_left_to_fill_in() -> None:
    assert "{{" not in DOCUMENT.read_text(encoding="utf-8")
