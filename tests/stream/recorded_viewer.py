"""An OpenHCS viewer's sockets, that say what the released viewers were recorded to say.

It takes blocks as they do: attached by name, copied, and in generation 1 removed.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from openhcs_stream.dialects import dump_plain, load_plain, read_control_answer
from scripts._ports import free_port
from tests.dialects.recordings import answers, decoded

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    import numpy.typing as npt

__all__ = ["ACK_PORT", "RecordedViewer", "ipc"]

SHM = Path("/dev/shm")
ACK_PORT = 7555


def ipc(port: int) -> str:
    """Where such a viewer of this port is."""
    folder = Path.home() / ".openhcs" / "ipc"
    folder.mkdir(parents=True, exist_ok=True)
    return f"ipc://{folder}/openhcs-zmq-{port}.sock"


class RecordedViewer:
    """Runs on a thread during the context.

    Parameters
    ----------
    generation : "gen1", "gen2" or "gen3"
    kind : "napari" or "fiji"
    tcp : bool
        By ports, and not by sockets in the home folder.

    Attributes
    ----------
    taken : list
        (item as JSON, its pixels or None) of all that it took.
    batches : list of int
        How many items came in each message that was answered with a success.
    asked : list of str
        Types of control requests.
    is_silent : bool
        It takes batches, and neither answers nor reads them.
    is_deaf : bool
        It answers no control request.
    acknowledges : bool
    wrong : callable
        The reason for which it can't take an item; as theirs do, it refuses the whole batch. Fiji's
        first generation takes the batch, and says in its acknowledgement what it could not take.
    settles : deque
        What it answers to settle requests, one after the other, the last for ever: "running",
        "complete", "failed" or "unknown".
    settling : int
        How many batches it refuses because it settles.
    """

    def __init__(self, generation: str, kind: str, *, tcp: bool = False) -> None:
        self.recorded = answers(f"{generation}/{kind}_answers")
        self.generation = generation
        self.kind = kind
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}" if tcp else ipc(self.port)
        self.control = self._at(self.port + 1000)
        self.subscribes = (generation, kind) == ("gen1", "napari")
        self.taken: list[tuple[dict[str, Any], npt.NDArray[Any] | None]] = []
        self.messages: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.asked: list[str] = []
        self.is_silent = self.is_deaf = False
        self.acknowledges = True
        self.wrong: Callable[[dict[str, Any]], str] = lambda item: ""
        # Only generation 2's were recorded; earlier ones answer whatever they do not know.
        self.settles = deque(["complete" if generation == "gen2" else "unknown"])
        self.settling = 0
        self._pushers: dict[str, zmq.Socket[bytes]] = {}
        self._context: zmq.Context[Any] = zmq.Context()
        self._is_ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_ready.wait(20)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End; its sockets are closed then."""
        self._stopping.set()
        self._thread.join(20)

    @property
    def images(self) -> list[npt.NDArray[Any]]:
        """Pixels of all that had some."""
        return [pixels for _, pixels in self.taken if pixels is not None]

    # --- the thread ---------------------------------------------------------------------------

    def _at(self, port: int) -> str:
        return f"tcp://127.0.0.1:{port}" if self.address.startswith("tcp") else ipc(port)

    def _serve(self) -> None:
        with self._context as context:
            data = context.socket(zmq.SUB if self.subscribes else zmq.REP)
            if self.subscribes:
                data.setsockopt(zmq.SUBSCRIBE, b"")
            control = context.socket(zmq.REP)
            poller = zmq.Poller()
            for each, address in ((data, self.address), (control, self.control)):
                each.setsockopt(zmq.LINGER, 0)
                each.bind(address)
                poller.register(each, zmq.POLLIN)
            self._is_ready.set()
            while not self._stopping.is_set():
                ready = dict(poller.poll(5))
                if control in ready and not self.is_deaf:
                    control.send(self._answer(load_plain(control.recv())["type"]))
                if data in ready and not self.is_silent:
                    reply = self._take(data.recv())
                    if not self.subscribes:
                        data.send(reply)
            for each in (data, control, *self._pushers.values()):
                each.close(linger=0)

    def _answer(self, verb: str) -> bytes:
        self.asked.append(verb)
        told = {each["asked"]["type"]: decoded(each["reply"]) for each in self.recorded["controls"]}
        if verb != "settle":
            return told.get(verb, told.get("nonsense", b"\x80\x04}\x94."))
        phase = self.settles.popleft() if len(self.settles) > 1 else self.settles[0]
        if phase == "unknown":
            return told.get("nonsense", b"\x80\x04}\x94.")
        source = answers("gen2/fiji_answers" if phase == "complete" else "gen2/napari_answers")
        for each in source["controls"]:
            if each["asked"]["type"] == "settle":
                answer = read_control_answer(decoded(each["reply"]))
                if answer["settle_phase"] == phase:
                    return dump_plain(answer)
        raise AssertionError(phase)

    def _take(self, frame: bytes) -> bytes:
        message = json.loads(frame)
        if self.settling:
            self.settling -= 1
            return json.dumps(
                {"status": "error", "message": "Cannot reset an active Napari layer settlement."}
            ).encode()
        self.messages.append(message)
        found = []
        for item in message["images"]:
            reason = self.wrong(item)
            pixels = None
            try:
                pixels = self._read(item)
            except FileNotFoundError as error:
                reason = reason or str(error)
            if reason and not (self.generation == "gen1" and self.kind == "fiji"):
                return json.dumps(
                    {**self._recorded_reply("lost_block"), "message": reason}
                ).encode()
            found.append((item, pixels, reason))
        for item, pixels, reason in found:
            if not reason:
                self.taken.append((item, pixels))
            if self.acknowledges:
                self._acknowledge(item, reason)
        self.batches.append(len(found))
        return json.dumps(self._recorded_reply("image_2d")).encode()

    def _read(self, item: dict[str, Any]) -> npt.NDArray[Any] | None:
        if not item.get("shm_name"):
            return None
        path = SHM / item["shm_name"]
        dtype, shape = np.dtype(item["dtype"]), item["shape"]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        pixels = np.frombuffer(path.read_bytes()[:nbytes], dtype).reshape(shape)
        if self.generation == "gen1":
            os.unlink(path)
        return pixels

    def _recorded_reply(self, name: str) -> dict[str, Any]:
        reply = self.recorded["messages"][name]["reply"]
        read: dict[str, Any] = json.loads(reply) if reply else {"status": "error"}
        return read

    def _acknowledge(self, item: dict[str, Any], reason: str) -> None:
        (ack, *_) = self.recorded["messages"]["image_2d"]["acks"]
        told = {**json.loads(ack), "image_id": item["image_id"], "viewer_port": self.port}
        address = self._at(ACK_PORT)
        if "return_route" in item:
            address = item["return_route"]["url"]
            told |= {key: item[key] for key in ("return_route", "producer")}
        if reason:
            told |= {"status": "error", "error": reason}
        if address not in self._pushers:
            self._pushers[address] = self._context.socket(zmq.PUSH)
            self._pushers[address].connect(address)
        self._pushers[address].send_json(told)
