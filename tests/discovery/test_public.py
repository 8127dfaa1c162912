"""Keys that last, and the file that others need a copy of: for their owner's eyes only."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openhcs_stream import discovery
from openhcs_stream.discovery import Endpoint, PublicIdentity
from openhcs_stream.errors import UsageError

ROOT = Path(__file__).parents[2]
NOBODY = 65534
KEY, SECRET, TOKEN = "a" * 64, "b" * 64, "c" * 64
ENDPOINT = Endpoint(
    "napari", "napari", 7, 1.5, (1, 0), (f"tcp://192.0.2.1:5555?key={KEY}",), TOKEN, False
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a file to another user"
)


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "openhcs-stream"


def made() -> PublicIdentity:
    return PublicIdentity(*(os.urandom(32).hex() for _ in range(3)))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestIdentity:
    def test_is_made_once_and_kept(self, own_config: Path) -> None:
        first = discovery.public_identity(made)
        assert discovery.public_identity(made) == first
        assert mode(own_config) == 0o700
        assert [mode(path) for path in own_config.iterdir()] == [0o600]

    def test_is_made_anew_on_demand(self, own_config: Path) -> None:
        first = discovery.public_identity(made)
        second = discovery.public_identity(made, renew=True)
        assert second != first
        assert discovery.public_identity(made) == second
        assert len(list(own_config.iterdir())) == 1

    def test_keeps_its_secrets_out_of_texts(self) -> None:
        identity = discovery.public_identity(made)
        assert identity.secret not in repr(identity)
        assert identity.token not in repr(identity)

    def test_two_that_start_at_once_agree(self) -> None:
        barrier, found = threading.Barrier(8), []

        def start() -> None:
            barrier.wait(20)
            found.append(discovery.public_identity(made))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 8
        assert len(set(found)) == 1

    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
    def test_is_not_read_where_others_could_read_it(self, own_config: Path, bits: int) -> None:
        discovery.public_identity(made)
        (path,) = own_config.iterdir()
        path.chmod(bits)
        with pytest.raises(UsageError, match="other users can get at") as caught:
            discovery.public_identity(made)
        assert "chmod 600" in caught.value.cure
        assert "--new-keys" in caught.value.cure

    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"[]", b"\xff", b'{"key":"a","secret":"b","token":"c"}', b" " * (1 << 17)],
        ids=["empty", "no-fields", "no-object", "no-text", "short", "large"],
    )
    def test_that_is_broken_is_told(self, own_config: Path, content: bytes) -> None:
        discovery.public_identity(made)
        (path,) = own_config.iterdir()
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is broken") as caught:
            discovery.public_identity(made)
        assert "Remove it" in caught.value.cure

    def test_needs_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
        with pytest.raises(UsageError, match="can't be made") as caught:
            discovery.public_identity(made)
        assert "XDG_CONFIG_HOME" in caught.value.cure

    def test_lies_in_the_home_folder_where_no_other_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("XDG_CONFIG_HOME")
        assert discovery.config_folder() == Path.home() / ".config" / "openhcs-stream"
        monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
        assert discovery.config_folder() == Path.home() / ".config" / "openhcs-stream"


class TestViewerFile:
    def test_comes_back_as_it_was_written(self, own_config: Path) -> None:
        path = discovery.write_viewer_file(ENDPOINT)
        assert path == own_config / "napari.viewer" == discovery.viewer_file(ENDPOINT)
        assert mode(path) == 0o600
        assert discovery.read_viewer_file(path) == ENDPOINT

    def test_replaces_an_older_one_whole(self, own_config: Path) -> None:
        discovery.write_viewer_file(ENDPOINT)
        path = discovery.write_viewer_file(replace(ENDPOINT, pid=8))
        assert discovery.read_viewer_file(path).pid == 8
        assert [each.name for each in own_config.iterdir()] == ["napari.viewer"]

    def test_of_two_kinds_of_viewer_are_two(self) -> None:
        names = {
            discovery.viewer_file(replace(ENDPOINT, viewer=viewer, name=name)).name
            for viewer in ("napari", "fiji")
            for name in ("napari", "fiji", "plate")
        }
        assert len(names) == 6

    def test_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file") as caught:
            discovery.read_viewer_file(tmp_path / "none.viewer")
        assert "Copy it again" in caught.value.cure

    def test_is_not_read_where_others_could_read_it(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy.viewer"
        copy.write_bytes(discovery.write_viewer_file(ENDPOINT).read_bytes())
        copy.chmod(0o644)
        with pytest.raises(UsageError, match="mode 0644"):
            discovery.read_viewer_file(copy)

    @needs_root
    def test_of_another_user_is_not_trusted(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy.viewer"
        copy.write_bytes(discovery.write_viewer_file(ENDPOINT).read_bytes())
        copy.chmod(0o600)
        os.chown(copy, NOBODY, NOBODY)
        with pytest.raises(UsageError, match="belongs to user 65534"):
            discovery.read_viewer_file(copy)

    def test_is_neither_a_link_nor_a_folder_nor_a_pipe(self, tmp_path: Path) -> None:
        path = discovery.write_viewer_file(ENDPOINT)
        (tmp_path / "link.viewer").symlink_to(path)
        (tmp_path / "folder.viewer").mkdir(mode=0o700)
        os.mkfifo(tmp_path / "pipe.viewer", 0o600)
        for name in ("link", "folder", "pipe"):
            with pytest.raises(UsageError):
                discovery.read_viewer_file(tmp_path / f"{name}.viewer")

    @settings(max_examples=150)
    @given(st.binary(max_size=300))
    def test_of_any_content_is_read_or_refused(self, content: bytes) -> None:
        path = discovery.write_viewer_file(ENDPOINT)
        good = path.read_bytes()
        for each in (content, good + content, good[: len(content)], content[:3] + good[3:]):
            path.write_bytes(each)
            with contextlib.suppress(UsageError):
                assert isinstance(discovery.read_viewer_file(path), Endpoint)

    def test_its_token_is_in_no_text(self) -> None:
        assert TOKEN not in repr(discovery.read_viewer_file(discovery.write_viewer_file(ENDPOINT)))


def test_the_port_is_told_of_an_address_with_a_key() -> None:
    assert ENDPOINT.port == 5555
    assert discovery.is_public(ENDPOINT)
    assert not discovery.is_public(replace(ENDPOINT, addresses=("tcp://127.0.0.1:5555",)))


def test_this_machine_is_called_by_what_leads_outside() -> None:
    host = discovery.reachable_host()
    assert host
    assert not host.startswith("127.")


def test_this_machine_is_called_by_its_name_where_nothing_leads_outside() -> None:
    code = "from openhcs_stream.discovery import reachable_host; print(reachable_host())"
    result = subprocess.run(
        ["unshare", "--user", "--net", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "unshare" in result.stderr:
        pytest.skip(f"no namespace can be made here: {result.stderr.strip()}")
    assert result.stdout.strip() == os.uname().nodename
