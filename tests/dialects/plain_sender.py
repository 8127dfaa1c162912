"""A sender as each generation of OpenHCS is one: pyzmq, numpy and the standard library, no more.

Run with generation, viewer, port, mode and family as arguments. It reads one JSON object a line,
does what it says, and writes one JSON object a line.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import sys
import time
import uuid
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import zmq

TIMEOUT_MS = 15_000
ACK_PORT = 7555
FAMILIES = {"openhcs": ".openhcs/ipc/openhcs-zmq", "polystore": ".polystore/ipc/polystore-zmq"}


def pixels(shape: list[int], dtype: str, start: int) -> np.ndarray[Any, Any]:
    """The same array wherever it is made."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 + start) % 251).astype(dtype).reshape(shape)


def imagej_polygon(vertices_xy: list[tuple[int, int]]) -> bytes:
    """The bytes of an ImageJ .roi file, written by hand."""
    xs, ys = zip(*vertices_xy, strict=True)
    left, top = min(xs), min(ys)
    count = len(xs)
    header = b"Iout" + struct.pack(">hBBhhhhh", 227, 0, 0, top, left, max(ys), max(xs), count)
    relative = [x - left for x in xs] + [y - top for y in ys]
    return header.ljust(64, b"\0") + struct.pack(f">{2 * count}h", *relative)


class Sender:
    """One process of a pipeline, with one viewer."""

    def __init__(self, generation: int, viewer: str, port: int, mode: str, family: str) -> None:
        self.generation, self.viewer, self.port = generation, viewer, port
        self.mode, self.family = mode, family
        self.context = zmq.Context()
        self.blocks: list[shared_memory.SharedMemory] = []
        self.names: list[str] = []
        self.pull: zmq.Socket[bytes] | None = None
        self.route: dict[str, Any] = {}
        self.publisher: zmq.Socket[bytes] | None = None

    def address(self, port: int, host: str = "localhost") -> str:
        if self.mode == "tcp":
            return f"tcp://{host}:{port}"
        path = Path.home() / f"{FAMILIES[self.family]}-{port}.sock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"ipc://{path}"

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        made = self.context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        made.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        made.setsockopt(zmq.SNDTIMEO, TIMEOUT_MS)
        return made

    # --- what it is told to do ----------------------------------------------------------------

    def listen(self) -> dict[str, Any]:
        """Bind the socket of acknowledgements."""
        self.pull = self.socket(zmq.PULL)
        if self.generation < 3:
            self.pull.bind(self.address(ACK_PORT, "127.0.0.1"))
            return {}
        incarnation = str(uuid.uuid4())
        url = f"ipc://{Path.home()}/ack-{incarnation[:8]}.sock"
        if self.mode == "tcp":
            port = self.pull.bind_to_random_port("tcp://127.0.0.1")
            url = f"tcp://127.0.0.1:{port}"
        else:
            self.pull.bind(url)
        owner = {"pid": os.getpid(), "create_time": 1234.5}
        self.route = {"url": url, "incarnation": incarnation, "owner": owner}
        return {"route": self.route}

    def send(self, items: list[dict[str, Any]], **envelope: Any) -> dict[str, Any]:
        """Send a batch; an item is its metadata under "place" and what else it is to have.

        What stands under "wire" replaces what would have been sent.
        """
        made = [self.item(dict(item)) for item in items]
        message = {"type": "batch", "images": made, "timestamp": time.time(), **envelope}
        if self.viewer == "fiji":
            message.setdefault("images_dir", None)
        ids = [item["image_id"] for item in made if "image_id" in item]
        return {"ids": ids, "reply": self.exchange(json.dumps(message).encode())}

    def item(self, item: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {"data_type": "image", "metadata": item.pop("place", {})}
        wrong = item.pop("wire", {})
        if "start" in item:
            array = pixels(item.pop("shape"), item.pop("dtype"), item.pop("start"))
            made |= {"shape": list(array.shape), "dtype": str(array.dtype)}
            made["shm_name"] = self.in_shared_memory(array)
        elif "polygons" in item:
            polygons = item.pop("polygons")
            made["data_type"] = "rois"
            made["rois"] = [base64.b64encode(imagej_polygon(each)).decode() for each in polygons]
        made |= {"path": "/plate/A01.tif", "image_id": str(uuid.uuid4())}
        producer = item.pop("producer", {})
        if self.generation >= 2:
            made["producer_identity"] = {
                "origin": "pipeline",
                "output_kind": "main",
                "output_key": "image",
                "projection_key": "image",
                "step_name": "blur",
                "pipeline_position": 1,
                **producer,
            }
        if self.generation >= 3 and self.route:
            made["return_route"] = self.route
            made["producer"] = {"pid": os.getpid(), "create_time": 99.25}
        return {**made, **item, **wrong}

    def in_shared_memory(self, array: np.ndarray[Any, Any]) -> str:
        length = 8 if self.generation == 1 else 12
        name = f"{self.viewer}_{uuid.uuid4().hex[:length]}"
        block = shared_memory.SharedMemory(name=name, create=True, size=array.nbytes)
        # This process's tracker must not remove it, nor complain: who does is what is tested.
        resource_tracker.unregister(block._name, "shared_memory")  # type: ignore[attr-defined]
        np.ndarray(array.shape, array.dtype, buffer=block.buf)[...] = array
        self.blocks.append(block)
        self.names.append(name)
        return name

    def exchange(self, frame: bytes) -> Any:
        """Ask and hear, or publish; then let go of the blocks as this generation does."""
        if self.generation == 1 and self.viewer == "napari":
            if self.publisher is None:
                # The original's is PUB, and sleeps for a tenth of a second; this one hears when
                # somebody listens, and is the same otherwise.
                self.publisher = self.socket(zmq.XPUB)
                self.publisher.connect(self.address(self.port))
                assert self.publisher.recv() == b"\x01"
            self.publisher.send(frame, zmq.NOBLOCK)
            reply = None
        else:
            request = self.socket(zmq.REQ)
            request.connect(self.address(self.port))
            request.send(frame)
            reply = request.recv_json()
            request.close()
        for block in self.blocks:
            block.close()
            if self.generation >= 2:
                os.unlink(f"/dev/shm/{block.name}")
        self.blocks.clear()
        return reply

    def publish_until_acknowledged(self, items: list[dict[str, Any]], **envelope: Any) -> Any:
        """As the original does: PUB, whoever listens or not; anew until it was heard."""
        publisher = self.socket(zmq.PUB)
        publisher.connect(self.address(self.port))
        while True:
            message = {"type": "batch", "images": [self.item(dict(item)) for item in items]}
            publisher.send_json({**message, **envelope}, zmq.NOBLOCK)
            acks = self.acks(len(items), 0.2)["acks"]
            if acks:
                return {"acks": acks}
            for name in self.names:
                if os.path.lexists(f"/dev/shm/{name}"):
                    os.unlink(f"/dev/shm/{name}")

    def raw(self, text: str) -> dict[str, Any]:
        """Send any frame."""
        return {"reply": self.exchange(text.encode())}

    def acks(self, count: int, timeout_s: float = 15.0) -> dict[str, Any]:
        """Acknowledgements, until there are so many or the time is over."""
        assert self.pull is not None
        found: list[Any] = []
        deadline = time.monotonic() + timeout_s
        while len(found) < count and time.monotonic() < deadline:
            if self.pull.poll(50):
                found.append(self.pull.recv_json())
        return {"acks": found}

    def control(self, request: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
        """Ask on the control socket, as their clients do."""
        asking = self.socket(zmq.REQ)
        asking.setsockopt(zmq.RCVTIMEO, int(timeout_s * 1000))
        asking.connect(self.address(self.port + 1000))
        asking.send(pickle.dumps(request))
        answer = pickle.loads(asking.recv())
        asking.close()
        return {"answer": answer}

    def left(self) -> dict[str, Any]:
        """Blocks of this sender that are still there."""
        return {"left": [name for name in self.names if os.path.lexists(f"/dev/shm/{name}")]}


def main() -> None:
    """Do what each line says."""
    generation, viewer, port, mode, family = sys.argv[1:]
    sender = Sender(int(generation), viewer, int(port), mode, family)
    for line in sys.stdin:
        task = json.loads(line)
        answer = getattr(sender, task.pop("do"))(**task)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
