"""Plain pyzmq: PUSH and PULL over ipc, the image as one frame."""

from __future__ import annotations

import numpy as np
import zmq
from common import Progress, drive, role

what, address, path = role()
context = zmq.Context()
progress = Progress(path)
if what == "receive":
    from common import touch

    socket = context.socket(zmq.PULL)
    socket.set_hwm(16)
    socket.bind(address)
    print("ready", flush=True)
    while True:
        frame = socket.recv(copy=False)
        touch(np.frombuffer(frame.buffer, np.uint16))
        progress.add()
else:
    socket = context.socket(zmq.PUSH)
    socket.set_hwm(16)
    socket.connect(address)
    drive(
        {
            "copy": lambda image: socket.send(image, copy=True),
            "loan": lambda image: socket.send(image, copy=False),
        },
        progress,
    )
