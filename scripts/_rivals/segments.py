"""One named segment of shared memory for each image, its name through ZeroMQ."""

from __future__ import annotations

import secrets
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import zmq
from common import Progress, drive, role, touch

what, address, path = role()
context = zmq.Context()
progress = Progress(path)
if what == "receive":
    socket = context.socket(zmq.PULL)
    socket.bind(address)
    print("ready", flush=True)
    while True:
        message = socket.recv_json()
        segment = shared_memory.SharedMemory(name=message["name"])
        view = np.ndarray(message["shape"], message["dtype"], buffer=segment.buf)
        touch(view)
        del view
        segment.close()
        segment.unlink()
        progress.add()
else:
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(8)
    socket.connect(address)

    def send(image: np.ndarray) -> None:
        name = f"rival_{secrets.token_hex(6)}"
        segment = shared_memory.SharedMemory(name=name, create=True, size=image.nbytes)
        resource_tracker.unregister(f"/{name}", "shared_memory")
        view = np.ndarray(image.shape, image.dtype, buffer=segment.buf)
        np.copyto(view, image)
        del view
        segment.close()
        socket.send_json({"name": name, "shape": image.shape, "dtype": str(image.dtype)})

    drive({"copy": send}, progress)
