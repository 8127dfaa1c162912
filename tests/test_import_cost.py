"""What a worker imports: nothing that it does not use.

Modules are counted, not milliseconds: those depend on the machine.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from openhcs_stream import transport

PACKAGE = Path(__file__).resolve().parents[1] / "openhcs_stream"

#: Of no use to a worker that shows images in a viewer of ours.
NEEDLESS = {
    "asyncio", "concurrent.futures", "email", "hashlib", "heapq", "hmac", "importlib.metadata",
    "multiprocessing", "openhcs_stream.dialects", "openhcs_stream.protocol._receiver",
    "openhcs_stream.rois", "openhcs_stream.stream._edit", "openhcs_stream.stream._files",
    "openhcs_stream.stream._openhcs", "openhcs_stream.stream._openhcs_find",
    "openhcs_stream.transport._clients", "openhcs_stream.transport._sorter",
    "openhcs_stream.transport._subscribe", "openhcs_stream.viewer", "queue", "roifile", "secrets",
    "shutil", "ssl", "subprocess", "tempfile", "zipfile",
}  # fmt: skip
#: Of no use before a viewer is looked for.
NEEDED_TO_CONNECT = {"getpass", "openhcs_stream.discovery", "openhcs_stream.runtime", "pathlib"}
#: That `connect` adds to numpy and zmq; there were 86 when this was written, half of them ours.
MOST_MODULES = 100

_LOADED = "print(json.dumps(sorted(set(sys.modules) - before)))"
_IMPORT = f"""
import json, sys
import numpy, zmq
before = set(sys.modules)
from openhcs_stream import connect
{_LOADED}
"""
_SEND = f"""
import json, sys
import numpy, zmq
before = set(sys.modules)
from openhcs_stream import connect
with connect(sys.argv[1], launch=False) as stream:
    stream.image(numpy.zeros((16, 16), "uint8"), place={{"well": "A01"}}).wait()
{_LOADED}
"""
_VIEWER = """
from openhcs_stream.viewer import MemoryViewer, serve
serve(MemoryViewer(), on_ready=lambda endpoint: print(endpoint.addresses[0], flush=True))
"""


def loaded_by(code: str, *arguments: str) -> set[str]:
    """What a fresh interpreter loads beyond numpy and zmq."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=50
    )
    return set(json.loads(done.stdout))


def test_the_workers_face_imports_only_what_every_worker_uses() -> None:
    loaded = loaded_by(_IMPORT)

    assert not loaded & (NEEDLESS | NEEDED_TO_CONNECT)
    assert len(loaded) <= MOST_MODULES


def test_sending_an_image_imports_no_dialect_and_no_codec() -> None:
    with subprocess.Popen([sys.executable, "-c", _VIEWER], stdout=subprocess.PIPE) as viewer:
        assert viewer.stdout is not None
        try:
            address = viewer.stdout.readline().decode().strip()
            loaded = loaded_by(_SEND, address)
        finally:
            viewer.kill()

    assert loaded >= NEEDED_TO_CONNECT
    assert not loaded & NEEDLESS


def _later(room: Path) -> dict[str, tuple[str, ...]]:
    """What a room gives to `import_later`."""
    for node in ast.walk(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_later":
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.args[1])
            return found
    return {}


LATER = {path.parent.name: _later(path.parent) for path in sorted(PACKAGE.glob("*/__init__.py"))}


@pytest.mark.parametrize("room", [name for name, found in LATER.items() if found])
def test_what_is_imported_later_is_declared_to_the_type_checker(room: str) -> None:
    declared = {}
    for node in ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                if isinstance(each, ast.ImportFrom):
                    home = (each.module or "").rpartition(".")[2]
                    declared[home] = {alias.name for alias in each.names}
    module = importlib.import_module(f"openhcs_stream.{room}")

    assert declared == {home: set(names) for home, names in LATER[room].items()}
    for names in LATER[room].values():
        for name in names:
            assert name in module.__all__
            assert getattr(module, name) is not None


def test_a_name_that_no_room_has_is_refused_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"'openhcs_stream.transport' has no .* 'Nonsense'"):
        transport.Nonsense  # type: ignore[attr-defined]  # noqa: B018
