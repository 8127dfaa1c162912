"""Nothing of the original is needed, and nothing of it is imported, installed or not."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires

THEIRS = {"openhcs", "polystore", "zmqruntime"}

#: Imports all there is, with the viewers, and notes whoever asks for a package of theirs.
ALL_MODULES = f"""
import importlib, importlib.abc, pkgutil, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {THEIRS!r}:
            print("asked for", name)
        return None

sys.meta_path.insert(0, Watch())
found = ["openhcs_stream"]
for package in ("openhcs_stream", "openhcs_stream_napari", "openhcs_stream_fiji"):
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, package + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            found.append(module.name)
print(len(found) > 100)
"""


def test_no_module_imports_anything_of_theirs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_MODULES],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_none_of_their_packages_is_required_in_any_extra() -> None:
    named = {
        re.split(r"[^\w-]", each, maxsplit=1)[0].lower()
        for each in requires("openhcs-stream") or ()
    }
    assert named
    assert not named & THEIRS
