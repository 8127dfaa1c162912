"""What every test needs: a user's folders of its own, so that no test sees a running viewer.

Nothing of the machine's user is read or written: not the settings of napari, not the endpoint
files. Each test has a runtime folder of its own; fixtures that live longer than one test share
the one of their session.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long an example takes says nothing on a machine that does other things.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_VARIABLE = "OPENHCS_STREAM_RUNTIME_DIR"


@pytest.fixture(scope="session", autouse=True)
def own_user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """HOME and its like, in a temporary folder, for this process and the ones that it starts."""
    home = tmp_path_factory.mktemp("home")
    runtime = _short_folder()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            patch.delenv(variable, raising=False)
        # Without its key no program gets at the display.
        if "XAUTHORITY" not in os.environ and (key := Path.home() / ".Xauthority").exists():
            patch.setenv("XAUTHORITY", str(key))
        patch.setenv("HOME", str(home))
        patch.setenv("NAPARI_CONFIG", str(home / "napari.yaml"))
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        patch.setenv(_VARIABLE, str(runtime / "openhcs-stream"))
        yield home
    _remove(runtime)


@pytest.fixture(autouse=True)
def own_runtime_folder(own_user_folders: Path) -> Iterator[Path]:
    """Where this test's viewers publish themselves and are found."""
    folder = _short_folder()
    # A context of its own: a test may undo what it did to `monkeypatch`, and this must stay.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_VARIABLE, str(folder))
        yield folder
    _remove(folder)
    # A stream that is left open would go on looking for a viewer, and find that of another test.
    module = sys.modules.get("openhcs_stream.stream._stream")
    left = [] if module is None else [each for each in module._live if not each.closed]
    for stream in left:
        stream.close(timeout_s=0)
    assert not left


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A HOME of this test's own, whose path is short enough for a socket's."""
    folder = _short_folder()
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    _remove(folder)


def _short_folder() -> Path:
    """Not below pytest's own: the name of a unix socket has room for 107 bytes."""
    return Path(tempfile.mkdtemp(prefix="ohs-"))


def _remove(folder: Path) -> None:
    """A viewer that was asked to stop, and ends now, removes its own files meanwhile."""
    deadline = time.monotonic() + 10.0
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
