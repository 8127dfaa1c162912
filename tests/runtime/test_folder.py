from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.errors import UsageError
from openhcs_stream.runtime import runtime_folder

if TYPE_CHECKING:
    from pathlib import Path


def test_named_folder_is_made_and_closed_to_others(folder: Path) -> None:
    assert runtime_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert runtime_folder() == folder


def test_session_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENHCS_STREAM_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder() == tmp_path / "openhcs-stream"


@pytest.mark.parametrize("session", ["", "relative", "/nowhere/at/all"])
def test_temporary_folder(session: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENHCS_STREAM_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert runtime_folder() == tmp_path / f"openhcs-stream-{os.getuid()}"


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777, 0o1777])
def test_folder_that_others_can_enter_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match=rf"mode {mode:04o}.*chmod 700"):
        runtime_folder()
    folder.chmod(0o700)
    assert runtime_folder() == folder


def test_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(UsageError, match=rf"belongs to user {owner}.*OPENHCS_STREAM_RUNTIME_DIR"):
        runtime_folder()


def test_file_in_its_place_is_refused(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        runtime_folder()


def test_planted_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that everybody writes to, a link could lead anywhere."""
    monkeypatch.delenv("OPENHCS_STREAM_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "openhcs-stream").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="not a folder"):
        runtime_folder()


def test_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPENHCS_STREAM_RUNTIME_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match=r"can't be made.*Set OPENHCS_STREAM_RUNTIME_DIR"):
        runtime_folder()
