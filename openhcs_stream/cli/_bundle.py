"""``openhcs-stream bundle``: everything that a bug report needs, and nothing that is secret.

No image data, no tokens, no keys: endpoint files go in without their tokens, and whatever looks
like one is taken out of all texts.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
import zipfile
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openhcs_stream.cli import _doctor, _gc
from openhcs_stream.cli._status import ask_all
from openhcs_stream.discovery import endpoints, sweep
from openhcs_stream.errors import StreamError, UsageError
from openhcs_stream.runtime import runtime_folder, written_whole

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

__all__ = ["add_arguments", "contents", "run"]

_OURS = "OPENHCS_STREAM_"
_SECRET_NAME = re.compile("TOKEN|KEY|SECRET|PASS", re.IGNORECASE)
#: As our tokens and keys are written.
_SECRET = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")
_LOG_NBYTES = 256 << 10
_ASK_S = 5.0
_NOTE = """\
What happened, what should have happened, and how to make it happen again:

(please write it here)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE.zip",
        help="where to; by default openhcs-stream-bundle-DATE.zip in this folder",
    )
    parser.add_argument("--json", action="store_true", help="print the list as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    name = time.strftime("openhcs-stream-bundle-%Y%m%d-%H%M%S.zip")
    path: Path = (arguments.file or Path(name)).absolute()
    if path.suffix.lower() != ".zip":
        raise UsageError(f"{path} is no name of a zip file.", cure="End it with .zip.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}.", cure="Make it, or choose another.")
    listed = []
    try:
        with written_whole(path) as temporary:
            with zipfile.ZipFile(temporary, "x", zipfile.ZIP_DEFLATED) as bundle:
                for name, about, text in contents():
                    bundle.writestr(name, text)
                    listed.append({"name": name, "about": about, "nbytes": len(text)})
    except OSError as error:
        raise UsageError(
            f"{path} can't be written: {error.strerror or error}.", cure="Choose another place."
        ) from error
    if arguments.json:
        print(json.dumps({"path": str(path), "files": listed}))
        return 0
    print(f"{path}:")
    for each in listed:
        print(f"  {each['name']:<28} {each['nbytes']:>9} bytes  {each['about']}")
    print("No image data, tokens or keys are in it. Look through it before you send it.")
    return 0


def contents() -> Iterator[tuple[str, str, str]]:
    """The files of a bundle: (name, what it is, text without secrets)."""
    secrets = _known_secrets()
    for name, about, make in _FILES:
        try:
            found: Any = make()
        except (StreamError, OSError) as error:
            found = {"error": str(error)}
        text = found if isinstance(found, str) else json.dumps(found, indent=2)
        yield name, about, _without_secrets(text, secrets)
    for name, about, text in (*_endpoint_files(), *_logs()):
        yield name, about, _without_secrets(text, secrets)


def _known_secrets() -> list[str]:
    try:
        return [each.token for each in endpoints(clear=False) if each.token]
    except StreamError:
        return []


def _without_secrets(text: str, known: list[str]) -> str:
    for secret in known:
        text = text.replace(secret, "(taken out)")
    text = _SECRET.sub("(taken out)", text)
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")


def _versions() -> dict[str, Any]:
    return {
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {
            str(each.metadata["Name"]): each.version
            for each in sorted(distributions(), key=lambda each: str(each.metadata["Name"]).lower())
        },
    }


def _environment() -> dict[str, str]:
    return {
        name: "(set)" if _SECRET_NAME.search(name) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_OURS)
    }


def _leftovers() -> dict[str, Any]:
    swept = sweep(dry_run=True)
    return {
        "would_be_removed": [_gc.facts(found) for found in swept.removed],
        "kept": [_gc.facts(found) for found in (*swept.kept, *_gc.look_around(swept))],
    }


_FILES: tuple[tuple[str, str, Callable[[], Any]], ...] = (
    ("READ ME.txt", "for your own words", lambda: _NOTE),
    ("versions.json", "Python, the system, installed packages", _versions),
    ("environment.json", f"variables that begin with {_OURS}", _environment),
    ("doctor.json", "what `openhcs-stream doctor` says", _doctor.report),
    ("status.json", "running viewers and their queues", lambda: ask_all(_ASK_S)),
    ("leftovers.json", "what `openhcs-stream gc` would remove", _leftovers),
)


def _endpoint_files() -> Iterator[tuple[str, str, str]]:
    try:
        running = endpoints(clear=False)
    except StreamError:
        return
    for each in running:
        facts = asdict(each) | {"token": "(taken out)" if each.token else ""}
        text = json.dumps(facts, indent=2)
        yield f"endpoints/{each.viewer}-{each.name}.json", "where a viewer is reached", text


def _logs() -> Iterator[tuple[str, str, str]]:
    """What running viewers remember, and what launched ones wrote."""
    from openhcs_stream.stream import ask

    try:
        running, folder = endpoints(clear=False), runtime_folder()
    except StreamError:
        return
    for each in running:
        name = f"logs/{each.viewer}-{each.name}.txt"
        try:
            lines = ask(each, "log", timeout_s=_ASK_S)
        except StreamError as error:
            yield name, "last lines of a running viewer", f"(it does not tell: {error})\n"
            continue
        text = "".join(f"{line}\n" for line in lines if isinstance(line, str))
        yield name, "last lines of a running viewer", text
    for path in sorted(folder.glob("*.log")):
        try:
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_NBYTES))
                text = file.read(_LOG_NBYTES).decode("utf-8", "replace")
        except OSError as error:
            text = f"(it can't be read: {error.strerror})\n"
        yield f"logs/{path.name}", "what launched viewers wrote", text
