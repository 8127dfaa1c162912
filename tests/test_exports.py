"""One public door for each package: its sorted `__all__`, which is what its modules offer."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import openhcs_stream

ROOT = Path(__file__).resolve().parents[1]


def packages() -> list[str]:
    """Every package of the distribution that has an `__init__`."""
    return [
        ".".join(init.parent.relative_to(base).parts)
        for base in (ROOT, ROOT / "viewers")
        for init in sorted(base.glob("openhcs_stream*/**/__init__.py"))
    ]


def all_of(path: Path) -> list[str] | None:
    """The literal `__all__` of a module, which is not imported for it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def folder_of(package: str) -> Path:
    base = ROOT if package.split(".")[0] == "openhcs_stream" else ROOT / "viewers"
    return base.joinpath(*package.split("."))


@pytest.mark.parametrize("package", packages())
def test_all_is_sorted_and_importable(package: str) -> None:
    module = importlib.import_module(package)
    names = module.__all__
    # As ruff's RUF022 sorts: constants, classes, then the rest.
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=_isort_key), sorted(names, key=_isort_key)
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing


@pytest.mark.parametrize("package", [name for name in packages() if name != "openhcs_stream"])
def test_all_is_what_the_modules_offer(package: str) -> None:
    """A public name of a module is the package's, or else its module keeps it to the package."""
    folder = folder_of(package)
    exported = set(all_of(folder / "__init__.py") or ())
    offered: set[str] = set()
    for path in folder.glob("*.py"):
        if path.stem != "__init__":
            offered |= set(all_of(path) or ())
    own = {
        node.name
        for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert exported <= offered | own | _assigned(folder / "__init__.py")


def test_every_module_says_what_it_offers() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for base in (ROOT / "openhcs_stream", ROOT / "viewers")
        for path in sorted(base.rglob("*.py"))
        if all_of(path) is None and path.stem != "__main__"
    ]
    assert not silent


def test_all_modules_are_importable_without_extras_being_loaded() -> None:
    """Every module of the core can be imported, in one process, and drags nothing heavy in."""
    names = [
        each.name
        for each in pkgutil.walk_packages(openhcs_stream.__path__, "openhcs_stream.")
        if not each.name.startswith("openhcs_stream.testing") and not each.name.endswith("__main__")
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'napari', 'qtpy', 'PyQt6', 'skimage', 'scipy', 'tifffile', 'rich', 'pytest'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr


def test_version_is_the_distributions() -> None:
    assert openhcs_stream.__version__ == importlib.metadata.version("openhcs-stream")


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("console_scripts", {"openhcs-stream"}),
        ("openhcs_stream.viewers", {"fiji", "memory", "napari", "recorder"}),
        ("pytest11", {"openhcs_stream"}),
    ],
)
def test_entry_points_lead_somewhere(group: str, names: set[str]) -> None:
    points = {
        point.name: point
        for point in importlib.metadata.distribution("openhcs-stream").entry_points
        if point.group == group
    }
    assert set(points) == names
    for point in points.values():
        assert point.load() is not None


def test_the_napari_manifest_is_found() -> None:
    """By npe2, in the installation as it is: also in an editable one."""
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_distribution("openhcs-stream")
    assert manifest.name == "openhcs-stream"


def _isort_key(name: str) -> tuple[int, str]:
    if name.isupper():
        return (0, name)
    return (1, name) if name[:1].isupper() else (2, name)


def _assigned(path: Path) -> set[str]:
    """Names that an `__init__` sets or declares itself, such as an entry point's object."""
    return {
        node.id
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
