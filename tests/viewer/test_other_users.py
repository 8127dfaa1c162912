"""Another user of the machine, at each address of a whole viewer, with all that can be guessed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import discovery
from openhcs_stream.dialects import FAMILIES, family_of
from openhcs_stream.stream import connect
from openhcs_stream.testing import RunningReceiver, run_receiver
from openhcs_stream.viewer import MemoryViewer
from scripts._ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"
)

NOBODY = 65534

#: Tries to enter the folders, and connects everywhere: what came of it, by address.
STRANGER = r"""
import json, os, socket, sys
told = json.loads(sys.argv[1])
if told["uid"]:
    os.setgroups([])
    os.setgid(told["uid"])
    os.setuid(told["uid"])

def attempt(action):
    try:
        return action()
    except OSError as error:
        return type(error).__name__

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)

def say(kind):
    ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    ready += b"\x08Identity" + bytes(4)
    return GREETING + bytes([4, len(ready)]) + ready

def stream(address):
    outcomes = set()
    for kind in told["kinds"]:
        outcomes.add(attempt(lambda: converse(address, say(kind.encode()))))
    return sorted(outcomes)

def converse(address, words):
    if address.startswith("tcp://"):
        sock = socket.socket()
        sock.settimeout(20)
        sock.connect((b"127.0.0.1", int(address.rpartition(":")[2])))
    else:
        sock = socket.socket(socket.AF_UNIX)
        name = address.removeprefix("ipc://")
        sock.settimeout(20)
        sock.connect("\0" + name[1:] if name.startswith("@") else name)
    with sock:
        sock.sendall(words)
        heard = b""
        while more := sock.recv(4096):
            heard += more
            if b"READY" in heard:
                return "let in"
        return "cut off"

found = {address: stream(address) for address in told["streams"]}
for folder in told["folders"]:
    found[folder] = [attempt(lambda: os.listdir(folder))]
for path in told["files"]:
    found[path] = [attempt(lambda: str(open(path, "rb").read(1)))]
side = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
side.settimeout(20)
side.connect("\0" + told["side"])
def lane():
    side.send(b"\x91lane")
    return "cut off" if side.recv(4096) == b"" else "let in"
found["side"] = [attempt(lane)]
print(json.dumps(found))
"""


def run_stranger(told: dict[str, Any]) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture
def running() -> Iterator[RunningReceiver[Any]]:
    """Published as a viewer is that was started by its command."""
    with run_receiver(MemoryViewer(), port=free_port()) as running:
        assert running.receiver.endpoint is not None
        with discovery.publish(running.receiver.endpoint):
            yield running


def test_is_cut_off_everywhere(running: RunningReceiver[Any], own_runtime_folder: Path) -> None:
    endpoint = running.receiver.endpoint
    assert endpoint is not None
    port = endpoint.port
    assert port is not None
    families = [family_of(name) for name in FAMILIES]
    controls = {f"tcp://127.0.0.1:{port + each.control_offset}" for each in families}
    sockets = {each.ipc(port) for each in families}
    sockets |= {each.ipc(port + each.control_offset) for each in families}
    streams = sorted({*endpoint.addresses, *controls, *sockets})
    for address in streams:  # all of them are there
        if address.startswith("tcp://"):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 20).close()
        else:
            assert Path(address.removeprefix("ipc://")).is_socket(), address
    (file,) = own_runtime_folder.glob("*.json")
    side = running.receiver._side_address
    told = {
        "streams": streams,
        "side": side.removeprefix("unix:").removeprefix("@"),
        "folders": [str(own_runtime_folder)],
        "files": [str(file)],
    }
    with connect(running.address, name="ours") as stream:
        stream.image(np.ones((4, 4), np.uint8), name="ours").wait()
        # Ours are let in by the same words: it is the user that makes the difference.
        ours = run_stranger({**told, "uid": 0, "kinds": ["REQ"]})
        assert {where: ours[where] for where in streams} == {each: ["let in"] for each in streams}
        found = run_stranger({**told, "uid": NOBODY, "kinds": ["DEALER", "REQ", "PUB"]})
        assert set(found) == {*streams, "side", str(own_runtime_folder), str(file)}
        ended = {"cut off", "ConnectionResetError", "BrokenPipeError", "PermissionError"}
        for where, outcomes in found.items():
            assert set(outcomes) <= ended, f"{where}: {outcomes}"
        assert found[str(file)] == found[str(own_runtime_folder)] == ["PermissionError"]
        # One user's worker beside it is served all the while, and nothing of the other is there.
        stream.image(np.ones((4, 4), np.uint8), name="ours").wait()
        assert [each["name"] for each in stream.request("status")["streams"]] == ["ours"]
        assert [each["title"] for each in stream.request("layers")] == ["ours"]


def test_endpoint_files_and_their_folder_are_this_user_s_alone(
    running: RunningReceiver[Any], own_runtime_folder: Path
) -> None:
    endpoint = running.receiver.endpoint
    assert endpoint is not None
    (file,) = own_runtime_folder.glob("*.json")
    assert endpoint.token in file.read_text()
    assert len(endpoint.token) >= 32
    assert own_runtime_folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
