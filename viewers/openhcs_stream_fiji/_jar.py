"""ImageJ itself: one jar of 2.6 MB from Maven Central, fetched once and kept."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from openhcs_stream.errors import UsageError
from openhcs_stream.runtime import temporary_folder

__all__ = ["IMAGEJ_VERSION", "found_jar", "imagej_jar", "is_fetchable"]

_log = logging.getLogger(__name__)

_GROUP, _ARTIFACT = "net.imagej", "ij"
IMAGEJ_VERSION = "1.54p"
_NAME = f"{_ARTIFACT}-{IMAGEJ_VERSION}.jar"

#: Names a jar to use instead: for machines without a network, and other versions.
VARIABLE = "OPENHCS_STREAM_IMAGEJ_JAR"


def imagej_jar() -> Path:
    """Find ImageJ's jar, or fetch it.

    Fetched ones go into the environment where it is a virtual one, so that they live and go with
    it.

    Raises
    ------
    UsageError
        It is nowhere, and can't be fetched.
    """
    return found_jar() or _fetch(_folders())


def found_jar() -> Path | None:
    """ImageJ's jar, where it is on this machine already.

    It is looked for where ``OPENHCS_STREAM_IMAGEJ_JAR`` says, in this environment, in the user's
    cache and in Maven's own.

    Raises
    ------
    UsageError
        The variable names no file.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise UsageError(
                f"{VARIABLE}={named} is no file.",
                cure="Name ImageJ's jar (ij.jar), or unset it and have it fetched.",
            )
        return path
    maven = Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    candidates = [*(folder / _NAME for folder in _folders()), maven / _maven_path()]
    return next((path for path in candidates if path.is_file()), None)


def _folders() -> list[Path]:
    return [folder for folder in (_environment(), _user_cache()) if folder is not None]


def _environment() -> Path | None:
    """A folder of this virtual or conda environment; None in a Python that is the system's."""
    prefix = Path(sys.prefix)
    if sys.prefix == sys.base_prefix and not (prefix / "conda-meta").is_dir():
        return None
    return prefix / "share" / "openhcs-stream"


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "openhcs-stream"


def _maven_path() -> str:
    return f"{_GROUP.replace('.', '/')}/{_ARTIFACT}/{IMAGEJ_VERSION}/{_NAME}"


def _fetch(folders: list[Path]) -> Path:
    folder = next((each for each in folders if _is_writable(each)), None)
    if folder is None:
        raise UsageError(
            f"ImageJ can't be kept: {' and '.join(map(str, folders))} can't be written to.",
            cure=f"Put {_NAME} anywhere and name it: {VARIABLE}=/path/to/{_NAME}.",
        )
    try:
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError as error:
        raise UsageError(
            f"jgo, which fetches ImageJ, can't be imported: {error}.",
            cure="Install it with: pip install 'openhcs-stream[fiji]'.",
        ) from error
    _log.info("fetching ImageJ %s from Maven Central, once", IMAGEJ_VERSION)
    # In a folder of its own and moved when it is whole: others may start at the same time.
    with temporary_folder(folder) as temporary:
        # Maven Central alone: the repository that jgo's relatives ask first is not everywhere
        # reached, and waiting for it takes minutes.
        maven: Any = MavenContext(repo_cache=temporary, remote_repos={"central": MAVEN_CENTRAL_URL})
        try:
            project = maven.project(_GROUP, _ARTIFACT)
            fetched = Path(project.at_version(IMAGEJ_VERSION).artifact().resolve())
        except Exception as error:  # whatever requests, or jgo, raises
            raise UsageError(
                f"ImageJ {IMAGEJ_VERSION} can't be fetched from Maven Central: {error}.",
                cure="Check the network (HTTPS_PROXY), or get the jar in another way and name it: "
                f"{VARIABLE}=/path/to/{_NAME}.",
            ) from error
        target = folder / _NAME
        fetched.replace(target)
    return target


def is_fetchable(timeout_s: float) -> bool:
    """Whether Maven Central answers, through whatever proxy the environment names."""
    import urllib.request

    try:
        from jgo.constants import MAVEN_CENTRAL_URL
    except ImportError:
        return False
    address = f"{MAVEN_CENTRAL_URL.rstrip('/')}/{_maven_path()}"
    try:
        asked = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(asked, timeout=timeout_s):
            return True
    except (OSError, ValueError):  # URLError is an OSError
        return False


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
