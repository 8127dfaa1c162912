"""A viewer that others can reach, from the command line, and where its secrets must not be."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import discovery
from openhcs_stream.discovery import endpoints, find
from openhcs_stream.errors import Refused
from openhcs_stream.stream import ask, connect

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "openhcs-stream"


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], str]:
    def copy(file: Path) -> str:
        path = tmp_path / "copied.viewer"
        path.write_bytes(file.read_bytes())
        path.chmod(0o600)
        return str(path)

    return copy


def test_two_lines_tell_what_to_copy(
    start: Callable[..., Any], own_config: Path, copied: Callable[[Path], str]
) -> None:
    started = start("--port", "0", "--public", "localhost")
    assert "?key=" in started.line
    second = started.process.stdout.readline()
    assert second.startswith(f'Others connect("memory.viewer") with a copy of {own_config}/')
    with connect(copied(own_config / "memory.viewer")) as stream:
        stream.image(np.zeros((8, 8), np.uint8)).wait()


def test_what_was_copied_stays_good_until_new_keys_are_made(
    start: Callable[..., Any], own_config: Path, copied: Callable[[Path], str]
) -> None:
    first = start("--port", "0", "--public", "localhost", "--json")
    facts = json.loads(first.line)
    assert facts["viewer_file"] == str(own_config / "memory.viewer")
    file = copied(own_config / "memory.viewer")
    port = f"--port={facts['port']}"
    assert ask(file, "stop") is None
    assert first.process.wait(20) == 0

    second = start(port, "--public", "localhost")
    assert ask(file, "stop") is None
    assert second.process.wait(20) == 0

    start(port, "--public", "localhost", "--new-keys")
    with pytest.raises(Refused, match="does not know the key"):
        ask(file, "status", timeout_s=20)
    new = discovery.read_viewer_file(own_config / "memory.viewer")
    old = discovery.read_viewer_file(file)
    assert new.token != old.token
    # The new key and the old token: as if only the address had been told anew.
    with pytest.raises(Refused, match="the token is missing, wrong or old"):
        ask(new.addresses[0], "status", token=old.token, timeout_s=20)
    assert ask(str(own_config / "memory.viewer"), "status")["viewer"] == "memory"


def test_detached(
    command: Callable[..., Any], detached: Any, own_config: Path, copied: Callable[[Path], str]
) -> None:
    done = command("memory", "--detach", "--port=0", "--public=localhost")
    assert done.returncode == 0, done.stderr
    file = copied(own_config / "memory.viewer")
    assert command("clear", "--to", file).returncode == 0
    assert command("stop", file).returncode == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--public",), "needs a port"),
        (("--new-keys",), "--new-keys makes the keys of --public"),
        (("--public", "not a host", "--port", "0"), "is no address|can't listen"),
    ],
    ids=["no-port", "new-keys-alone", "no-host"],
)
def test_what_can_t_be(command: Callable[..., Any], options: tuple[str, ...], reason: str) -> None:
    done = command("memory", *options)
    assert done.returncode == 2, done.stdout
    assert re.search(reason, done.stderr)


def test_secrets_are_in_private_files_alone(
    command: Callable[..., Any],
    detached: Any,
    own_config: Path,
    own_runtime_folder: Path,
    copied: Callable[[Path], str],
) -> None:
    """Not in argv, not in the environment, not in logs, answers, tables and errors."""
    said = ""
    for options in (("--port=0", "--public=localhost", "--name=far"), ("--port=0", "--name=near")):
        done = command("memory", "--detach", "--debug", *options)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    secrets = [json.loads((own_config / "public.json").read_bytes())["secret"]]
    running = endpoints()
    secrets += [each.token for each in running]
    assert len(set(secrets)) == 3
    file = copied(own_config / "memory-far.viewer")

    for each in running:
        with connect(each.addresses[0], token=each.token) as stream:
            stream.image(np.zeros((8, 8), np.uint8), name=each.name).wait()
            said += repr(stream) + json.dumps(stream.request("status"))
        with pytest.raises(Refused) as caught:
            ask(each.addresses[-1], "status", token="13" * 32, timeout_s=20)
        said += str(caught.value)
        for name in ("cmdline", "environ"):
            said += Path(f"/proc/{each.pid}/{name}").read_text(errors="replace")
        said += repr(each)
    for words in (
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("send", str(own_config / "public.json"), "--to", file),
        ("screenshot", "--to", file),
        ("stop", file),
    ):
        done = command("--debug", *words)
        said += done.stdout + done.stderr
    for path in own_runtime_folder.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            said += path.read_text(errors="replace")
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    for path in own_config.iterdir():
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    assert "memory" in said
    for secret in secrets:
        assert secret not in said
    assert find("memory", name="near") is not None
    assert os.stat(own_runtime_folder).st_mode & 0o077 == 0
