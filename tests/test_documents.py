"""What the documents show is run: every Python block, as it stands there.

Each block is a program of its own, run while a napari without a window is there to be found. A
block that can't be run says so in the line before it: ``<!-- no-test: the reason -->``.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openhcs_stream import discovery
from openhcs_stream.stream import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
_BLOCK = re.compile(
    r"(?P<mark><!-- no-test: (?P<reason>.+?) -->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    name: str
    code: str
    reason: str | None  #: why it is not run


def blocks() -> list[Block]:
    found = []
    for document in DOCUMENTS:
        path = ROOT / document
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(f"{document}:{line}", match["code"], match["reason"]))
    return found


BLOCKS = blocks()


@pytest.fixture
def viewer(own_runtime_folder: Path) -> Iterator[discovery.Endpoint]:
    endpoint = discovery.launch("napari", timeout_s=50, options=("--headless",))
    yield endpoint
    ask(endpoint, "stop")


def test_every_block_is_found() -> None:
    """Also one that is indented or has more behind the word would have to be run."""
    fences = sum(
        len(
            re.findall(r"^\s*```\s*(?:python|py)\b", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        )
        for name in DOCUMENTS
        if (ROOT / name).exists()
    )
    assert fences == len(BLOCKS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block_runs(block: Block, viewer: discovery.Endpoint, tmp_path: Path) -> None:
    if block.reason is not None:
        compile(block.code, block.name, "exec")
        pytest.skip(block.reason)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "viewers")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Shown in the viewer that was there, and in no other.
    assert [each.pid for each in discovery.endpoints()] == [viewer.pid]


def test_files_that_the_documents_link_to_are_there() -> None:
    missing = [
        f"{name}: {target}"
        for name in DOCUMENTS
        if (ROOT / name).exists()
        for target in re.findall(
            r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / name).read_text("utf-8")
        )
        if not (ROOT / target).exists()
    ]
    assert not missing


def _names_in(path: Path) -> set[str]:
    """Of its tests and their classes: ``test_x``, ``TestX``, ``TestX::test_y``."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            within = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
            found |= {node.name, *(f"{node.name}::{name}" for name in within)}
    return found


def test_each_claim_of_the_security_model_names_its_tests() -> None:
    claims, table = (ROOT / "SECURITY.md").read_text("utf-8").split("| --- | --- |\n")
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", table, re.MULTILINE))
    numbers = list(dict.fromkeys(re.findall(r"\[(\d+)\]", claims)))
    assert numbers == list(rows) == [str(each + 1) for each in range(len(rows))]
    for number, told in rows.items():
        names = re.findall(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`", told)
        assert len(names) == told.count("`") / 2 > 0, number
        for path, name in names:
            assert (ROOT / path).is_file(), f"{number}: {path}"
            assert not name or name in _names_in(ROOT / path), f"{number}: {path}::{name}"
