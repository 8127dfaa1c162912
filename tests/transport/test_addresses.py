from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openhcs_stream.errors import InvalidItem
from openhcs_stream.transport import (
    MAX_SOCKET_PATH,
    Address,
    format_address,
    is_loopback,
    machine_id,
    parse_address,
)

GOOD = {
    "ipc:///run/user/1000/viewer.sock": Address("ipc", name="/run/user/1000/viewer.sock"),
    "ipc://@abstract": Address("ipc", name="@abstract"),
    "tcp://127.0.0.1:5555": Address("tcp", host="127.0.0.1", port=5555),
    "tcp://localhost:0": Address("tcp", host="localhost", port=0),
    "tcp://*:5555": Address("tcp", host="*", port=5555),
    "tcp://[::1]:65535": Address("tcp", host="::1", port=65535),
    "inproc://a name": Address("inproc", name="a name"),
    "unix:openhcs-stream-1": Address("unix", name="openhcs-stream-1"),
}

BAD = {
    "": "no known scheme",
    "127.0.0.1:5555": "no known scheme",
    "http://127.0.0.1:5555": "no known scheme",
    "tcp://127.0.0.1": "no host and port",
    "tcp://:5555": "no host and port",
    "tcp://::1:5555": "no host and port",
    "tcp://[fred]:5555": "no IPv6 address",
    "tcp://not a host:5555": "'not a host' is no host",
    "tcp://-x:5555": "'-x' is no host",
    "tcp://x;y:5555": "'x;y' is no host",
    "tcp://127.0.0.1:65536": "'65536' is no port",
    "tcp://127.0.0.1:-1": "'-1' is no port",
    "tcp://127.0.0.1:": "'' is no port",
    "tcp://127.0.0.1:²": "'²' is no port",
    "ipc://": "no path",
    "ipc://relative": "no path",
    "ipc://@": "no path",
    "ipc:///a\0b": "zero character",
    "inproc://": "no name",
    "unix:": "no name",
    "unix://name": "no name",
    "ipc:///" + "x" * MAX_SOCKET_PATH: "may have 107",
    "ipc://@" + "x" * MAX_SOCKET_PATH: "may have 107",
    "unix:" + "é" * 54: "has 108 bytes",
}


@pytest.mark.parametrize("text", GOOD, ids=list(GOOD))
def test_good_addresses_are_taken_apart_and_put_together(text: str) -> None:
    address = parse_address(text)
    assert address == GOOD[text]
    assert format_address(address) == str(address) == text


@pytest.mark.parametrize("text", BAD, ids=[f"bad{n}" for n in range(len(BAD))])
def test_bad_addresses_name_the_value_and_the_cure(text: str) -> None:
    with pytest.raises(InvalidItem) as caught:
        parse_address(text)
    assert BAD[text] in caught.value.what
    assert repr(text) in caught.value.what
    assert caught.value.cure


def test_any_port() -> None:
    assert parse_address("tcp://127.0.0.1:*").port == 0


def test_a_path_of_the_greatest_length_is_accepted() -> None:
    path = "/" + "x" * (MAX_SOCKET_PATH - 1)
    assert parse_address(f"ipc://{path}").name == path


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_is_local() -> None:
    assert parse_address("ipc:///a").is_local
    assert parse_address("tcp://127.0.0.1:1").is_local
    assert not parse_address("tcp://*:1").is_local


def test_two_processes_of_one_machine_agree() -> None:
    code = "from openhcs_stream.transport import machine_id; print(machine_id())"
    root = Path(__file__).parents[2]
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert other.stdout.strip() == machine_id() == machine_id()
    assert ":" in machine_id()


def test_a_machine_without_proc_has_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str, **_: object) -> object:
        raise FileNotFoundError(path)

    monkeypatch.setattr("builtins.open", absent)
    assert machine_id.__wrapped__() not in ("", machine_id())
