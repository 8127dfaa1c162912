"""OpenHCS's control channel, as its clients of each generation use it, at a running receiver."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from openhcs_stream.dialects import (
    Heartbeat,
    Progress,
    control_answer,
    family_of,
    pong,
    read_command,
)
from openhcs_stream.errors import ProtocolViolation
from openhcs_stream.viewer import MemoryViewer, Receiver
from openhcs_stream.viewer._foreign_desk import Settlement
from openhcs_stream.viewer._peer_packages import installed_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.dialects.conftest import PlainSender, Running

    Start = Callable[..., PlainSender]

HEARTBEAT = Heartbeat("fiji", 5565, 6565, 77, 1700000000.25, 120.5, 3.5, "0.1.0")
DISPLAY = {"component_modes": {"z_index": "stack"}, "component_order": ["z_index"],
           "colormap": "gray"}  # fmt: skip


def image(z: int, **more: Any) -> dict[str, Any]:
    return {"shape": [8, 8], "dtype": "uint8", "start": z, "place": {"z_index": z}, **more}


class TestPong:
    def test_fields_of_all_generations(self) -> None:
        answer = pickle.loads(pong(HEARTBEAT, version="0.8.6"))
        assert answer == {
            "type": "pong",
            "port": 5565,
            "control_port": 6565,
            "ready": True,
            "server": "FijiViewerServer",
            "viewer": "fiji",
            "openhcs": True,
            "memory_mb": 120.5,
            "cpu_percent": 0.0,
            "server_type": "fiji",
            "server_role": "viewer",
            "control_capabilities": ["force_shutdown", "ping", "shutdown"],
            "process_identity": {"pid": 77, "create_time": 1700000000.25},
            "uptime": 3.5,
            "openhcs_stream": "0.1.0",
            "application": {"application_id": "openhcs", "application_version": "0.8.6"},
        }

    def test_generation_3_has_other_words_for_the_application_and_no_more(self) -> None:
        answer = pickle.loads(pong(HEARTBEAT, version="1.2", generation=3))
        assert answer["application"] == {"identifier": "openhcs", "version": "1.2"}

    def test_nothing_is_said_of_an_unknown_release(self) -> None:
        assert "application" not in pickle.loads(pong(HEARTBEAT, version=""))

    def test_a_viewer_of_ours_is_napari_to_them(self) -> None:
        heartbeat = Heartbeat("memory", 1, 2, 3, 4.0, 5.0, 6.0, "7")
        answer = pickle.loads(pong(heartbeat, version=""))
        assert (answer["viewer"], answer["server"]) == ("napari", "NapariViewerServer")


class TestAnswers:
    done = Progress("complete", 3, 3)

    def answer(self, command: str, viewer: str = "fiji", progress: Progress | None = None) -> Any:
        return pickle.loads(control_answer(command, viewer, progress or self.done))

    @pytest.mark.parametrize("command", ["shutdown", "force_shutdown"])
    def test_shutdown(self, command: str) -> None:
        assert self.answer(command) == {
            "type": "shutdown_ack", "status": "success", "message": "Fiji viewer shutting down",
        }  # fmt: skip

    def test_clear_state(self) -> None:
        assert self.answer("clear_state", "napari") == {
            "type": "clear_state_ack", "status": "success", "message": "Component groups cleared",
        }  # fmt: skip

    def test_settle(self) -> None:
        assert self.answer("settle") == {
            "type": "settle_ack",
            "status": "success",
            "message": "Viewer settlement progress: 3/3.",
            "settle_phase": "complete",
            "completed_update_count": 3,
            "total_update_count": 3,
            "active_route": None,
            "active_route_work_unit_count": 0,
            "active_route_work_unit_active": False,
        }
        failed = self.answer("settle", progress=Progress("failed", 2, 3, "no room"))
        assert (failed["status"], failed["settle_phase"]) == ("error", "failed")
        assert "no room" in failed["message"]

    @pytest.mark.parametrize("command", ["state", "screenshot", "run_macro", "execute", ""])
    def test_others_are_errors(self, command: str) -> None:
        answer = self.answer(command, "napari")
        assert (answer["type"], answer["status"]) == ("error", "error")
        assert repr(command) in answer["message"]

    @pytest.mark.parametrize("request_", [[], "ping", {"type": 5}, {"kind": "ping"}, {}, None])
    def test_what_is_no_request(self, request_: Any) -> None:
        with pytest.raises(ProtocolViolation):
            read_command(pickle.dumps(request_))


class TestSettlement:
    def test_counts(self) -> None:
        settlement = Settlement()
        assert settlement.tell() == Progress("complete", 0, 0)
        first, second = settlement.received(2), settlement.received(1)
        assert settlement.tell() == Progress("running", 0, 3)
        settlement.displayed(first)
        settlement.displayed(second)
        assert settlement.tell() == Progress("running", 2, 3)
        settlement.displayed(first)
        assert settlement.tell() == Progress("complete", 3, 3)

    def test_a_failure_is_told_once_it_is_all_over_and_until_it_was(self) -> None:
        settlement = Settlement()
        cycle = settlement.received(2)
        settlement.failed(cycle, "no room")
        assert settlement.tell().phase == "running"
        settlement.displayed(cycle)
        settlement.displayed(settlement.received(1))  # nobody has asked yet
        assert settlement.tell() == Progress("failed", 2, 3, "no room")
        settlement.displayed(settlement.received(1))
        assert settlement.tell() == Progress("complete", 1, 1)

    def test_a_new_run_is_not_told_of_the_one_before(self) -> None:
        settlement = Settlement()
        old = settlement.received(2)
        settlement.reset()
        new = settlement.received(1)
        settlement.displayed(old)
        settlement.failed(old, "late")
        assert settlement.tell() == Progress("running", 0, 1)
        settlement.displayed(new)
        assert settlement.tell() == Progress("complete", 1, 1)


class TestPackages:
    def test_of_this_process(self) -> None:
        assert installed_versions(os.getpid(), ["numpy"]) == {"numpy": np.__version__}
        assert installed_versions(os.getpid(), ["no-such-package"]) == {}

    def test_of_another_process(self, running: Running, start_sender: Start) -> None:
        sender = start_sender(1, "fiji", running.port)
        found = installed_versions(sender.process.pid, ["numpy", "pyzmq", "openhcs"])
        assert found == {"numpy": np.__version__, "pyzmq": zmq.pyzmq_version()}

    @pytest.mark.parametrize("pid", [0, -1, 2**30])
    def test_of_none(self, pid: int) -> None:
        assert installed_versions(pid, ["numpy"]) == {}


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("mode", ["ipc", "tcp"])
def test_ping(running: Running, start_sender: Start, generation: int, mode: str) -> None:
    sender = start_sender(generation, "fiji", running.port, mode=mode, listen=False)
    answer = sender.control("ping")
    assert (answer["type"], answer["ready"]) == ("pong", True)
    assert (answer["port"], answer["control_port"]) == (running.port, running.port + 1000)
    assert answer["process_identity"]["pid"] == os.getpid()
    psutil = pytest.importorskip("psutil")
    created = psutil.Process().create_time()
    assert answer["process_identity"]["create_time"] == pytest.approx(created, abs=0.02)
    assert answer["memory_mb"] > 1


def test_the_release_that_a_client_without_openhcs_is_told(
    running: Running, start_sender: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = start_sender(2, "fiji", running.port, listen=False)
    assert sender.control("ping")["application"]["application_version"] == "0.8.6"
    monkeypatch.setenv("OPENHCS_STREAM_OPENHCS_VERSION", "0.7.1")
    assert sender.control("ping")["application"]["application_version"] == "0.7.1"


#: A client that has loaded something from an environment, as one with compiled packages has.
CLIENT = """
import json, mmap, pickle, sys, zmq
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.setsockopt(zmq.RCVTIMEO, 10_000)
        asking.connect(sys.argv[2])
        asking.send(pickle.dumps({"type": "ping"}))
        print(json.dumps(pickle.loads(asking.recv()).get("application")))
"""
GENERATION_2 = {"application_id": "openhcs", "application_version": "0.8.4"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells who asks")
@pytest.mark.parametrize("mode", ["ipc", "tcp"])
@pytest.mark.parametrize(
    ("packages", "application"),
    [
        (["openhcs-0.8.4", "zmqruntime-0.2.24"], GENERATION_2),
        (["polystore-0.6.3", "zmqruntime-0.6.5"], None),
        (["openhcs-0.9", "zmqruntime-0.6.5"], {"identifier": "openhcs", "version": "0.9"}),
    ],
    ids=["2", "3", "3 of openhcs"],
)
def test_the_words_of_the_generation_that_asks(
    running: Running,
    tmp_path: Path,
    mode: str,
    packages: list[str],
    application: dict[str, str] | None,
) -> None:
    """All generations ask by the very same bytes, and each refuses the others' words."""
    folder = tmp_path / "lib" / "python3" / "site-packages"
    for name in packages:
        (folder / f"{name}.dist-info").mkdir(parents=True)
    (folder / "compiled.so").write_bytes(bytes(4096))
    port = running.port + 1000
    address = family_of().ipc(port) if mode == "ipc" else f"tcp://127.0.0.1:{port}"
    told = subprocess.run(
        [sys.executable, "-c", CLIENT, str(folder / "compiled.so"), address],
        check=True, timeout=40, stdout=subprocess.PIPE,
    ).stdout  # fmt: skip
    # The environment of the tests, from which it has loaded ZeroMQ, has none of theirs.
    assert json.loads(told) == application


@pytest.mark.parametrize("command", ["shutdown", "force_shutdown"])
def test_shutdown(running: Running, start_sender: Start, command: str) -> None:
    sender = start_sender(1, "fiji", running.port)
    assert sender.control(command)["type"] == "shutdown_ack"
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_settle_counts_what_is_on_the_screen(home: Path, start_sender: Start) -> None:
    shows = threading.Event()

    class Slow(MemoryViewer):
        def show_layer(self, *arguments: Any) -> None:
            shows.wait(30)
            super().show_layer(*arguments)

    from tests.dialects.conftest import Running, until

    running = Running(Slow())
    try:
        sender = start_sender(2, "napari", running.port)
        assert sender.control("settle")["settle_phase"] == "complete"
        sender.send(image(1), image(2), display_config=DISPLAY)
        told = sender.control("settle")
        assert (told["settle_phase"], told["status"]) == ("running", "success")
        assert (told["completed_update_count"], told["total_update_count"]) == (0, 2)
        shows.set()
        sender.acks(2)
        told = until(lambda: settled(sender), "settled")
        assert (told["completed_update_count"], told["total_update_count"]) == (2, 2)
        sender.send(image(3), {"data_type": "film"}, display_config=DISPLAY)
        sender.acks(2)
        told = until(lambda: settled(sender), "settled again")
        assert (told["settle_phase"], told["status"]) == ("failed", "error")
        assert (told["completed_update_count"], told["total_update_count"]) == (1, 2)
        assert "film" in told["message"]
    finally:
        shows.set()
        running.stop()


def settled(sender: PlainSender) -> Any:
    told = sender.control("settle")
    return told if told["settle_phase"] != "running" else None


def test_clear_state_begins_layers_anew_when_the_next_item_comes(
    running: Running, start_sender: Start
) -> None:
    sender = start_sender(1, "fiji", running.port)
    sender.send(image(1), image(2), display_config=DISPLAY)
    sender.acks(2)
    assert sorted(running.layer("image").stack.planes) == [(1,), (2,)]
    assert sender.control("clear_state")["status"] == "success"
    assert sorted(running.layer("image").stack.planes) == [(1,), (2,)]  # it is still to be seen
    sender.send(image(2, start=9), image(7), display_config=DISPLAY)
    sender.acks(2)
    layer = running.layer("image")
    assert sorted(layer.stack.planes) == [(2,), (7,)]
    assert layer.stack.planes[(2,)][0, 0] == 9
    sender.send(image(8), display_config=DISPLAY)
    sender.acks(1)
    assert sorted(running.layer("image").stack.planes) == [(2,), (7,), (8,)]


def test_clear_state_leaves_the_layers_of_others(running: Running, start_sender: Start) -> None:
    sender = start_sender(1, "fiji", running.port)
    sender.send(image(1, place={"z_index": 1, "source": "a"}), display_config=DISPLAY)
    sender.send(image(1, place={"z_index": 1, "source": "b"}), display_config=DISPLAY)
    sender.acks(2)
    sender.control("clear_state")
    sender.send(image(2, place={"z_index": 2, "source": "a"}), display_config=DISPLAY)
    sender.acks(1)
    by_source = {layer.key.source: sorted(layer.stack.planes) for layer in running.layers}
    assert by_source == {"a": [(2,)], "b": [(1,)]}


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOME"] + "/it-ran",)


@pytest.fixture
def asking(running: Running) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.REQ) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, 10_000)
        made.connect(family_of().ipc(running.port + 1000))
        yield made


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"ping",
        b'{"type": "ping"}',
        pickle.dumps({"type": "state", "payload": Runs}),
        pickle.dumps(["ping"]),
        pickle.dumps({"type": "ping", "payload": [0] * 10_000}),
        b"x" * 60_000,
    ],
    ids=lambda octets: repr(octets[:30]),
)
def test_what_is_refused_is_answered(
    asking: zmq.Socket[bytes], octets: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    asking.send(octets)
    answer = pickle.loads(asking.recv())
    assert (answer["type"], answer["status"]) == ("error", "error")
    assert "refused a control message" in caplog.text
    asking.send(pickle.dumps({"type": "ping"}))
    assert pickle.loads(asking.recv())["type"] == "pong"


def test_nothing_that_is_sent_is_run(
    asking: zmq.Socket[bytes], home: Path, running: Running
) -> None:
    asking.send(pickle.dumps({"type": "ping", "payload": Runs()}))
    answer = pickle.loads(asking.recv())
    assert answer["status"] == "error"
    assert "mkdir" in answer["message"]
    assert not (home / "it-ran").exists()


def test_a_message_of_any_length_hurts_nobody(asking: zmq.Socket[bytes], running: Running) -> None:
    asking.setsockopt(zmq.RCVTIMEO, 200)
    asking.send(b"x" * (1 << 20))
    with pytest.raises(zmq.Again):
        asking.recv()  # the connection is cut
    with zmq.Context() as context, context.socket(zmq.REQ) as another:
        another.setsockopt(zmq.LINGER, 0)
        another.setsockopt(zmq.RCVTIMEO, 10_000)
        another.connect(family_of().ipc(running.port + 1000))
        another.send(pickle.dumps({"type": "ping"}))
        assert pickle.loads(another.recv())["type"] == "pong"


def test_a_taken_control_port_is_told_and_stops_nothing(
    home: Path, running: Running, caplog: pytest.LogCaptureFixture, start_sender: Start
) -> None:
    second = Receiver(MemoryViewer(), port=running.port + 1000, name="second")
    with pytest.raises(Exception, match="in use"):
        second.start()
    third = Receiver(MemoryViewer(), port=running.port - 1000, name="third")
    third.start()
    try:
        assert "OpenHCS's clients can't ask" in caplog.text
        sender = start_sender(2, "napari", running.port - 1000, listen=False)
        assert sender.send(image(1), display_config=DISPLAY)["reply"]["status"] == "success"
    finally:
        third.close()


def test_sockets_are_gone_afterwards(home: Path) -> None:
    from tests.dialects.conftest import Running

    running = Running()
    folders = [home / ".openhcs" / "ipc", home / ".polystore" / "ipc"]
    assert all(len(list(folder.iterdir())) == 2 for folder in folders)
    running.stop()
    assert not any(list(folder.iterdir()) for folder in folders)
