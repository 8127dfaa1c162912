"""How far a receiver can be reached, and what opens it there."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from openhcs_stream import discovery
from openhcs_stream.errors import UsageError
from openhcs_stream.stream import ask, connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.transport import ZmqLane, parse_address
from openhcs_stream.viewer import MemoryViewer
from openhcs_stream.viewer._reach import Reach

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "openhcs-stream"


def test_by_itself_no_further_than_this_user(own_config: Path) -> None:
    assert Reach.of(None, public=None).addresses == ()
    reach = Reach.of(5555, public=None)
    assert reach.addresses == ("tcp://127.0.0.1:5555",)
    assert reach.keys is None
    assert reach.token != Reach.of(5555, public=None).token, "a token for each viewer"
    assert not own_config.exists(), "no keys are made that nobody needs"


@pytest.mark.parametrize(
    ("public", "bound", "told"),
    [
        ("lab-7.example", "tcp://*:5555", "tcp://lab-7.example:5555"),
        ("192.0.2.7", "tcp://*:5555", "tcp://192.0.2.7:5555"),
        ("2001:db8::7", "tcp://[::]:5555", "tcp://[2001:db8::7]:5555"),
        ("localhost", "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
    ],
)
def test_further_with_keys_that_last(public: str, bound: str, told: str) -> None:
    reach = Reach.of(5555, public=public)
    assert reach.keys is not None
    assert [
        parse_address(each).endpoint.replace("//:::", "//[::]:") for each in reach.addresses
    ] == [parse_address(bound).endpoint]
    from_router = bound.replace("*", "0.0.0.0") + f"?key={reach.keys.public}"
    assert reach.told([from_router]) == (f"{told}?key={reach.keys.public}",)
    again = Reach.of(5555, public=public)
    assert (again.token, again.keys) == (reach.token, reach.keys)
    anew = Reach.of(5555, public=public, new_keys=True)
    assert anew.token != reach.token
    assert anew.keys != reach.keys


def test_not_without_a_port() -> None:
    with pytest.raises(UsageError, match="needs a port"):
        Reach.of(None, public="")


@pytest.fixture
def public_receiver(own_config: Path) -> Any:
    with run_receiver(MemoryViewer(), port=0, public="localhost") as running:
        yield running


def test_a_copy_of_the_file_is_all_that_is_needed(public_receiver: Any, tmp_path: Path) -> None:
    file = public_receiver.receiver.viewer_file
    assert file == discovery.viewer_file(public_receiver.receiver.endpoint)
    copy = tmp_path / "copied.viewer"
    copy.write_bytes(file.read_bytes())
    copy.chmod(0o600)
    with connect(str(copy)) as stream:
        stream.image([[1, 2], [3, 4]], name="raw").wait()
    assert ask(str(copy), "layers")[0]["title"] == "raw"


def test_so_are_address_key_and_token(public_receiver: Any) -> None:
    endpoint = public_receiver.receiver.endpoint
    where = parse_address(endpoint.addresses[-1])
    with connect(where.endpoint, key=where.key, token=endpoint.token) as stream:
        stream.image([[1, 2], [3, 4]], name="raw").wait()


def test_memory_is_shared_with_such_peers_on_the_same_machine_too(public_receiver: Any) -> None:
    with connect(str(public_receiver.receiver.viewer_file), name="near") as stream:
        stream.image([[1, 2], [3, 4]], name="raw").wait()
        (told,) = stream.request("status")["streams"]
        assert told["shared_memory"] is True


def test_what_another_session_was_given_opens_nothing(public_receiver: Any) -> None:
    """The file is in the configuration folder, and no other message or answer has the token."""
    endpoint = public_receiver.receiver.endpoint
    with connect(str(public_receiver.receiver.viewer_file)) as stream:
        stream.image([[1, 2], [3, 4]], name="raw").wait()
        told = repr(stream.request("status")) + repr(stream.request("layers"))
    assert endpoint.token not in told
    assert os.fsencode(endpoint.token) not in repr(endpoint).encode()


def test_other_people_s_protocols_are_not_served_there(
    public_receiver: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """They know no token, and name shared memory; also for who has the file."""
    endpoint = public_receiver.receiver.endpoint
    with ZmqLane.connect(endpoint.addresses[-1], token=endpoint.token) as lane:
        lane.send(b'{"type": "batch", "images": [{"shm_name": "psm_it"}]}')
        deadline = time.monotonic() + 20
        while "refused a message of a sender that is not this user's" not in caplog.text:
            assert time.monotonic() < deadline
            assert lane.receive() is None
    assert ask(public_receiver.address, "layers") == []
