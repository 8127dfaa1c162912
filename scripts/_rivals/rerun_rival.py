"""rerun: images logged to its gRPC server; arrived when a blocking flush returns."""

from __future__ import annotations

import rerun as rr
from common import drive, role

what, address, path = role()
if what == "receive":
    import subprocess
    import sys

    port = address.rpartition(":")[2]
    server = subprocess.Popen(
        [sys.executable, "-m", "rerun", "--serve-grpc", "--port", port, "--bind", "127.0.0.1"],
    )
    import socket
    import time

    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port)), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    print("ready", flush=True)
    try:
        server.wait()
    finally:
        server.kill()
else:
    rr.init("rivals")
    rr.connect_grpc(f"rerun+http://{address.removeprefix('tcp://')}/proxy")
    recording = rr.get_global_data_recording()
    assert recording is not None
    drive(
        {"copy": lambda image: rr.log("raw", rr.Image(image))},
        None,
        lambda: recording.flush(),
    )
