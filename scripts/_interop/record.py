"""Records what the real packages send and answer; nothing of it is typed by hand.

Their senders talk to sockets of ours, which keep every frame and the bytes of every block of shared
memory that it names. Then their viewers get those very frames, and what they reply, acknowledge
and answer on their control sockets is kept as well.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import zmq
from cases import small_batches
from envs import REQUIREMENTS
from running import SHM, Failed, Run, TheirViewer, control, free_port, their_ipc, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACK_PORT = 7555

#: Settings that differ from the defaults, so that the words for them are recorded too.
MODES = {
    ("gen1", "napari"): {"channel": "slice"},
    ("gen2", "napari"): {"channel": "layer"},
    ("gen3", "napari"): {"channel": "layer"},
    ("gen1", "fiji"): {"well": "window"},
    ("gen2", "fiji"): {"well": "window"},
    ("gen3", "fiji"): {"well": "window"},
}


def write(path: Path, content: Any) -> None:
    """One file, readable and stable in its layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def text_of(octets: bytes) -> str:
    """Bytes as they stand in a recording."""
    return base64.b64encode(octets).decode("ascii")


class RecordingViewer:
    """Sockets where a viewer would have them; keeps what comes and answers what is expected."""

    def __init__(self, run: Run, generation: str, viewer: str) -> None:
        self.generation = generation
        self.viewer = viewer
        self.port = free_port()
        self.frames: list[tuple[str, dict[str, str]]] = []
        self.controls: list[tuple[bytes, bytes]] = []
        self.publishes = generation == "gen1" and viewer == "napari"
        self._home = run.home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join(10)

    def _serve(self) -> None:
        with zmq.Context() as context:
            data = context.socket(zmq.SUB if self.publishes else zmq.REP)
            if self.publishes:
                data.setsockopt(zmq.SUBSCRIBE, b"")
            data.bind(their_ipc(self._home, self.port))
            asked = context.socket(zmq.REP)
            asked.bind(their_ipc(self._home, self.port + 1000))
            poller = zmq.Poller()
            for each in (data, asked):
                poller.register(each, zmq.POLLIN)
            pushes: dict[str, zmq.Socket[bytes]] = {}
            while not self._stop.is_set():
                ready = dict(poller.poll(50))
                if asked in ready:
                    request = asked.recv()
                    pong = {
                        "type": "pong", "port": self.port, "control_port": self.port + 1000,
                        "ready": True, "server": "Recorder", "server_role": "viewer",
                    }  # fmt: skip
                    asked.send(pickle.dumps(pong))
                    self.controls.append((request, b""))
                if data in ready:
                    self._take(data, context, pushes)
            for each in (data, asked, *pushes.values()):
                each.close(linger=0)

    def _take(
        self, data: zmq.Socket[bytes], context: zmq.Context[Any], pushes: dict[str, Any]
    ) -> None:
        frame = data.recv()
        message = json.loads(frame)
        blocks = {}
        for item in message["images"]:
            name = item.get("shm_name")
            if name:
                blocks[name] = text_of((SHM / name).read_bytes())
                if self.generation == "gen1":
                    (SHM / name).unlink()
        self.frames.append((frame.decode("utf-8"), blocks))
        if not self.publishes:
            data.send(b'{"status": "success", "message": "recorded"}')
        for item in message["images"]:
            ack = {
                "type": "image_ack", "image_id": item["image_id"], "viewer_port": self.port,
                "viewer_type": self.viewer, "status": "success", "timestamp": time.time(),
            }  # fmt: skip
            address = their_ipc(self._home, ACK_PORT)
            if "return_route" in item:
                address = item["return_route"]["url"]
                ack |= {key: item[key] for key in ("return_route", "producer")}
            if address not in pushes:
                pushes[address] = context.socket(zmq.PUSH)
                pushes[address].connect(address)
            pushes[address].send_json(ack)


def record_senders(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """What their sender sends for each batch, by name."""
    batches = small_batches(generation, viewer)
    recorder = RecordingViewer(run, generation, viewer)
    try:
        report = run.call(
            [str(run.pythons[generation]), str(run.drivers / "theirs_send.py")],
            f"{generation}-{viewer}-record",
            {
                "generation": generation,
                "viewer": viewer,
                "port": recorder.port,
                "mode": "ipc",
                "modes": MODES[generation, viewer],
                "batches": list(batches.values()),
                "wait_s": 10,
            },
        )
    finally:
        recorder.close()
    failed = [call for call in report["calls"] if not call["ok"]]
    if failed or len(recorder.frames) != len(batches):
        raise Failed(f"{len(recorder.frames)} of {len(batches)} frames recorded; {failed}")
    about = {
        "generation": generation,
        "packages": REQUIREMENTS[generation][0],
        "viewer": viewer,
        "socket": "PUB" if recorder.publishes else "REQ",
        "port": recorder.port,
    }
    return {
        "messages": {
            name: {**about, "batch": name, "items": batch, "frame": frame, "blocks": blocks}
            for (name, batch), (frame, blocks) in zip(batches.items(), recorder.frames, strict=True)
        },
        "ping": text_of(recorder.controls[0][0]),
        "about": about,
    }


@contextlib.contextmanager
def blocks_again(message: dict[str, Any]) -> Iterator[None]:
    """The shared memory that a recorded message names, while it is sent again."""
    for name, content in message["blocks"].items():
        descriptor = os.open(SHM / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64decode(content))
    try:
        yield
    finally:
        for name in message["blocks"]:
            with contextlib.suppress(FileNotFoundError):
                (SHM / name).unlink()


#: What a plain client may ask; ping comes before all, shutdown after.
CONTROLS: dict[str, list[dict[str, Any]]] = {
    "gen1": [{"type": "clear_state"}, {"type": "nonsense"}],
    "gen2": [{"type": "clear_state"}, {"type": "nonsense"}],
    "gen3": [],
}


def record_viewer(run: Run, sent: dict[str, Any]) -> dict[str, Any]:
    """What their viewer answers to the recorded messages."""
    about = sent["about"]
    generation, viewer = about["generation"], about["viewer"]
    theirs = TheirViewer(run, generation, viewer)
    answers: dict[str, Any] = {**about, "port": theirs.port, "controls": [], "messages": {}}
    answers.pop("socket")
    try:
        theirs.ready()

        def ask(message: dict[str, Any]) -> None:
            reply = control(theirs.control_address, message, 20000)
            if reply is None:
                raise Failed(f"{generation} {viewer} did not answer {message}")
            answers["controls"].append(
                {"asked": message, "request": text_of(pickle.dumps(message)),
                 "reply": text_of(reply)}
            )  # fmt: skip

        ask({"type": "ping"})
        with zmq.Context() as context:
            pull = context.socket(zmq.PULL)
            data = context.socket(zmq.PUB if about["socket"] == "PUB" else zmq.REQ)
            for each in (pull, data):
                each.setsockopt(zmq.LINGER, 0)
                each.setsockopt(zmq.RCVTIMEO, 5000)
            first = json.loads(next(iter(sent["messages"].values()))["frame"])["images"][0]
            route = first.get("return_route")
            pull.bind(route["url"] if route else their_ipc(run.home, ACK_PORT))
            data.connect(theirs.address)
            if about["socket"] == "PUB":
                time.sleep(1.0)  # PUB tells nobody when its subscriber is there

            def send(name: str, frame: str) -> None:
                data.send(frame.encode())
                reply = None if about["socket"] == "PUB" else data.recv().decode()
                with contextlib.suppress(ValueError):
                    wanted = {item["image_id"] for item in json.loads(frame)["images"]}
                    answers["messages"][name] = {"reply": reply, "acks": acks_of(pull, wanted)}
                    return
                answers["messages"][name] = {"reply": reply, "acks": []}

            for name, message in sent["messages"].items():
                with blocks_again(message):
                    send(name, message["frame"])
            if generation == "gen2":
                ask({"type": "settle"})
                until(lambda: settled(theirs), 20, "settled")
                ask({"type": "settle"})
            one = sent["messages"]["image_2d"]
            send("lost_block", one["frame"])
            if about["socket"] != "PUB":
                send("nonsense", "{ this is no JSON")
            if generation == "gen2":
                with blocks_again(one):
                    wrong = json.loads(one["frame"])
                    wrong["component_value_domain"]["well"] = ["H12"]
                    send("wrong_domain", json.dumps(wrong))
                    until(lambda: settled(theirs), 20, "settled")
                    ask({"type": "settle"})
            pull.close()
            data.close()
        for message in CONTROLS[generation]:
            ask(message)
        ask({"type": "shutdown"})
    finally:
        theirs.close()
    return answers


def acks_of(pull: zmq.Socket[bytes], wanted: set[str]) -> list[str]:
    """Acknowledgements until each of these has one, or none comes any more."""
    acks: list[str] = []
    with contextlib.suppress(zmq.Again):
        while {json.loads(ack)["image_id"] for ack in acks} != wanted:
            acks.append(pull.recv().decode())
    return acks


def settled(theirs: TheirViewer) -> bool:
    """Whether their viewer says that all is displayed."""
    reply = control(theirs.control_address, {"type": "settle"}, 10000)
    return reply is not None and pickle.loads(reply)["settle_phase"] != "running"


def record(run: Run, folder: Path) -> list[str]:
    """Record everything into a folder; what could not be recorded, in words.

    The files of a generation are written all, or none: else those from before stay.
    """
    problems = []
    for generation in run.pythons:
        made: dict[str, Any] = {}
        try:
            for viewer in ("napari", "fiji"):
                sent = record_senders(run, generation, viewer)
                answers = record_viewer(run, sent)
                for name, message in sent["messages"].items():
                    made[f"{viewer}_{name}.json"] = message
                made[f"{viewer}_answers.json"] = {**answers, "client_ping": sent["ping"]}
        except Failed as error:
            problems.append(f"{generation}: {error}")
            continue
        target = folder / generation
        shutil.rmtree(target, ignore_errors=True)
        for name, content in made.items():
            write(target / name, content)
        print(f"==> recorded {len(made)} files of {generation}", file=sys.stderr)
    return problems
