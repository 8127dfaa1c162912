"""OpenHCS's own senders, of one generation, to a receiver that copies, unlinks where it must, and
answers: less than their viewers do, as nothing is shown.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import zmq
from common import Progress, drive, role, touch

what, address, path = role()
generation, port = os.environ["RIVAL_GENERATION"], int(address.rpartition(":")[2])
progress = Progress(path)
if what == "receive":
    context = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.bind(f"tcp://127.0.0.1:{port}")
    print("ready", flush=True)
    while True:
        message = json.loads(socket.recv())
        for item in message["images"]:
            segment = shared_memory.SharedMemory(name=item["shm_name"])
            view = np.ndarray(item["shape"], item["dtype"], buffer=segment.buf)
            touch(view)
            del view
            segment.close()
            if generation == "gen1":
                segment.unlink()
            else:  # the sender unlinks; attaching has registered it here too
                resource_tracker.unregister(f"/{item['shm_name']}", "shared_memory")
        socket.send_json({"status": "success", "type": "batch", "message": "copied"})
        progress.add(len(message["images"]))
else:
    sys.path.insert(0, os.environ["RIVAL_SENDERS"])
    from theirs_send import GENERATIONS

    sender = GENERATIONS[generation](
        {"viewer": "fiji", "port": port, "mode": "tcp", "source": "raw", "modes": {}}
    )
    place = {"well": "A01", "site": 1, "channel": 1, "z_index": 1, "timepoint": 1}
    name = sender.path_of({"components": place, "kind": "image"})
    drive({"copy": lambda image: sender.save_batch([image], [name], [place])}, progress)
