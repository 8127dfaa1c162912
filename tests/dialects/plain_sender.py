"""A sender as OpenHCS's first generation is one: pyzmq, numpy and the standard library, no more.

Run with a JSON object on standard input: address, ack_address, and how many images to send. It
writes a JSON object to standard output: the reply, the acknowledgements, the names left behind.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import sys
import time
import uuid
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np
import zmq

TIMEOUT_MS = 20_000


def imagej_polygon(vertices_xy: list[tuple[int, int]]) -> bytes:
    """The bytes of an ImageJ .roi file, written by hand."""
    xs, ys = zip(*vertices_xy, strict=True)
    left, top = min(xs), min(ys)
    count = len(xs)
    header = b"Iout" + struct.pack(">hBBhhhhh", 227, 0, 0, top, left, max(ys), max(xs), count)
    relative = [x - left for x in xs] + [y - top for y in ys]
    return header.ljust(64, b"\0") + struct.pack(f">{2 * count}h", *relative)


def in_shared_memory(array: np.ndarray[Any, Any]) -> str:
    block = shared_memory.SharedMemory(create=True, size=array.nbytes)
    # The receiver removes the block; this process's tracker must not, nor complain.
    resource_tracker.unregister(block._name, "shared_memory")  # type: ignore[attr-defined]
    np.ndarray(array.shape, array.dtype, buffer=block.buf)[...] = array
    name = block.name
    block.close()
    return name


def main() -> None:
    """Send one batch and tell what came back."""
    task = json.load(sys.stdin)
    images, expected = [], set()
    for z in range(task["images"]):
        array = np.arange(z, z + 20 * 30, dtype=np.uint16).reshape(20, 30)
        images.append(
            {
                "path": f"/plate/A01_z{z}.tif",
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "shm_name": in_shared_memory(array),
                "data_type": "image",
                "metadata": {"well": "A01", "site": 1, "z_index": z, "source": "plain"},
                "image_id": str(uuid.uuid4()),
            }
        )
    names = [item["shm_name"] for item in images]
    images.append(
        {
            "path": "/plate/A01_z0.tif",
            "rois": [base64.b64encode(imagej_polygon([(2, 1), (9, 1), (9, 8)])).decode()],
            "data_type": "rois",
            "metadata": {"well": "A01", "site": 1, "z_index": 0, "source": "plain"},
            "image_id": str(uuid.uuid4()),
        }
    )
    if task.get("broken"):
        images.append({**images[0], "shm_name": "fiji_absent", "image_id": "broken"})
    expected = {item["image_id"] for item in images}
    message = {
        "type": "batch",
        "images": images,
        "display_config": {
            "lut": "Grays",
            "component_modes": {"well": "window", "site": "window", "z_index": "slice"},
            "component_order": ["well", "site", "z_index"],
            "auto_contrast": True,
        },
        "images_dir": None,
        "timestamp": time.time(),
    }
    with zmq.Context() as context:
        pull, request = context.socket(zmq.PULL), context.socket(zmq.REQ)
        for socket in (pull, request):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
            socket.setsockopt(zmq.SNDTIMEO, TIMEOUT_MS)
        if task["ack_address"]:
            pull.bind(task["ack_address"])
        request.connect(task["address"])
        request.send_json(message)
        reply = request.recv_json()
        acks: list[Any] = []
        while task["ack_address"] and {ack["image_id"] for ack in acks} != expected:
            acks.append(pull.recv_json())
        request.send(b"{ this is no JSON")
        nonsense = request.recv_json()
        pull.close()
        request.close()
    left = [name for name in names if os.path.exists(f"/dev/shm/{name}")]
    print(json.dumps({"reply": reply, "acks": acks, "nonsense": nonsense, "left": left}))


if __name__ == "__main__":
    main()
