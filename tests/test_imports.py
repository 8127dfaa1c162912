"""The direction of imports: who may import whom, and what is not imported before it is needed.

Read from the syntax tree, so that an import counts wherever it stands: also inside a function.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

#: Each room and the rooms that it may import; a room imports itself as well.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "later": set(),
    "messages": {"errors"},
    "rois": {"errors"},
    "runtime": {"errors"},
    "logs": {"errors"},
    "pixels": {"errors", "later", "messages", "runtime"},
    "protocol": {"errors", "later", "messages"},
    "transport": {"errors", "later", "messages", "runtime"},
    "discovery": {"errors", "messages", "runtime"},
    "dialects": {"errors", "messages", "rois", "runtime"},
    "tracker": {"errors"},
    "metrics": {"errors", "tracker"},
}
ROOMS["stream"] = {
    "errors", "later", "messages", "rois", "runtime", "logs", "pixels", "protocol", "transport",
    "dialects", "discovery", "tracker",
}  # fmt: skip
ROOMS["backends"] = {*ROOMS}
ROOMS["viewer"] = {
    "errors", "messages", "rois", "runtime", "logs", "pixels", "protocol", "transport", "dialects",
    "discovery",
}  # fmt: skip
ROOMS["recording"] = {"errors", "messages", "rois", "stream", "viewer"}
ROOMS["bench"] = {"errors", "messages", "pixels", "stream", "viewer"}
ROOMS["cli"] = {*ROOMS}
ROOMS["testing"] = {*ROOMS} - {"bench", "cli"}

#: What each package under viewers/ may import of openhcs_stream.
OF_VIEWERS = {"errors", "messages", "rois", "runtime", "viewer"}

#: The package itself: `import openhcs_stream` offers the worker's face, `-m` runs the command.
OF_PACKAGE = {"__init__": {*ROOMS} - {"bench", "cli", "testing"}, "__main__": {"cli"}}

#: Never imported with a module of ours: each costs from a tenth of a second to several, or is
#: in an extra. Inside a function they are welcome.
HEAVY = {
    "PyQt6", "cupy", "dask", "imageio", "jax", "magicgui", "napari", "pandas", "PIL", "psutil",
    "qtpy", "rich", "scipy", "skimage", "superqt", "tifffile", "torch", "vispy", "zarr",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    is_deferred: bool  # inside a function, or for the type checker alone


VIEWER_PACKAGES = sorted(path.parent.name for path in (ROOT / "viewers").glob("*/__init__.py"))


def modules() -> dict[str, Path]:
    """Every module of the distribution by its dotted name."""
    found = {}
    for base, tops in ((ROOT, ["openhcs_stream"]), (ROOT / "viewers", VIEWER_PACKAGES)):
        for top in tops:
            for path in sorted((base / top).rglob("*.py")):
                found[".".join(path.relative_to(base).with_suffix("").parts)] = path
    return found


def imports_of(path: Path) -> list[Import]:
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), is_deferred=False))


def _walk(node: ast.AST, *, is_deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        deferred = is_deferred
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, deferred)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            module = child.module or ""
            # `from package import module` imports the module; a mere name is resolved by room().
            for alias in child.names:
                yield Import(f"{module}.{alias.name}", child.lineno, deferred)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            deferred = True
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), is_deferred=True)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), is_deferred=deferred)
            continue
        yield from _walk(child, is_deferred=deferred)


MODULES = modules()
#: Of each import: the module that it stands in, where, and what it is.
IMPORTS = [
    (name, f"{path.relative_to(ROOT)}:{each.line}", each)
    for name, path in MODULES.items()
    for each in imports_of(path)
]


def room(module: str) -> str | None:
    """The room that a dotted name lies in; None: it is none of ours, or the package itself."""
    top, *rest = module.split(".")
    if top in VIEWER_PACKAGES:
        return top
    if top == "openhcs_stream" and rest and rest[0] in {*ROOMS, *OF_PACKAGE}:
        return rest[0]
    return None


def allowed(importer: str) -> set[str]:
    top, *rest = importer.split(".")
    if top in VIEWER_PACKAGES:
        return {*OF_VIEWERS, top}
    if rest[0] in OF_PACKAGE:
        return OF_PACKAGE[rest[0]]
    return {*ROOMS[rest[0]], rest[0]}


def test_a_room_imports_only_the_rooms_below_it() -> None:
    wrong = [
        f"{where} imports {each.module}"
        for name, where, each in IMPORTS
        if (target := room(each.module)) is not None and target not in allowed(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_whole_package() -> None:
    """`import openhcs_stream` inside of it would hide which room is meant, and make a cycle."""
    wrong = [
        f"{where} imports {each.module}"
        for _, where, each in IMPORTS
        if each.module.split(".")[0] == "openhcs_stream" and room(each.module) is None
    ]
    assert not wrong, "\n".join(wrong)


def test_private_modules_are_imported_by_their_own_package_only() -> None:
    wrong = []
    for name, where, each in IMPORTS:
        parts = each.module.split(".")
        if parts[0] not in {"openhcs_stream", *VIEWER_PACKAGES}:
            continue
        private = [part.startswith("_") and not part.startswith("__") for part in parts]
        if any(private):
            owner = ".".join(parts[: private.index(True)])
            if not name.startswith(f"{owner}."):
                wrong.append(f"{where} imports {each.module}")
    assert not wrong, "\n".join(wrong)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    """A viewer's package is there to import its viewer, but not when it is merely found."""
    wrong = [
        f"{where} imports {each.module}"
        for name, where, each in IMPORTS
        if not each.is_deferred
        and each.module.split(".")[0] in HEAVY
        and (name.startswith("openhcs_stream.") or name.endswith(".__init__"))
    ]
    assert not wrong, "\n".join(wrong)


def test_core_modules_import_only_core_dependencies() -> None:
    """What every worker imports is in `dependencies`, not in an extra."""
    core = {"msgspec", "numpy", "openhcs_stream", "roifile", "zmq", *sys.stdlib_module_names}
    wrong = [
        f"{where} imports {each.module}"
        for name, where, each in IMPORTS
        if name.startswith("openhcs_stream.")
        and not name.startswith("openhcs_stream.testing.")
        and not each.is_deferred
        and each.module.split(".")[0] not in core
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_have_no_cycles() -> None:
    """Of imports that happen when a module is loaded."""
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, _, each in IMPORTS:
        target = _module(each.module)
        if not each.is_deferred and target not in (None, name):
            edges[name].add(target)
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a cycle: {' -> '.join((*way[way.index(name) :], name))}"
        if name in done:
            return
        for target in sorted(edges[name]):
            visit(target, (*way, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def _module(imported: str) -> str | None:
    """The module that an import loads: the name itself, its package, or what the name lies in."""
    for name in (imported, imported.rpartition(".")[0]):
        for candidate in (name, f"{name}.__init__"):
            if candidate in MODULES:
                return candidate
    return None


def test_every_module_belongs_to_a_room() -> None:
    """A new room has to be entered in the table above, on purpose."""
    homeless = [
        name
        for name in MODULES
        if name.startswith("openhcs_stream.") and name.split(".")[1] not in {*ROOMS, *OF_PACKAGE}
    ]
    assert not homeless
