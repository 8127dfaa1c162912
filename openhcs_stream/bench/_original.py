"""OpenHCS's own scheme, written down plainly, to be measured beside.

One named segment of shared memory for each image, made, filled and forgotten by the sender; one
JSON message for a batch; the receiver attaches, copies out, unlinks and answers; the sender waits
for the answer. Without the sleep of 0.1 s in each call that some of its generations have.
"""

from __future__ import annotations

import json
import secrets
from multiprocessing import resource_tracker, shared_memory
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["OriginalSender", "serve_original"]

#: Longest wait for an answer, milliseconds; the original has none in its first generation.
_WAIT_MS = 60_000


class OriginalSender:
    """Sends as the original does; it is closed after use.

    Parameters
    ----------
    address : str
        Of a receiver that was started as ``python -m openhcs_stream.bench original``.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, _WAIT_MS)
        self._socket.connect(address)

    def send(self, images: list[npt.NDArray[Any]]) -> None:
        """Send one batch and wait for the answer."""
        items = []
        for image in images:
            name = f"ohsbench_{secrets.token_hex(6)}"
            segment = shared_memory.SharedMemory(name=name, create=True, size=image.nbytes)
            # The receiver unlinks it.
            resource_tracker.unregister(f"/{name}", "shared_memory")
            view: npt.NDArray[Any] = np.ndarray(image.shape, image.dtype, buffer=segment.buf)
            np.copyto(view, image)
            del view
            segment.close()
            items.append(
                {
                    "path": "image.tif",
                    "shape": list(image.shape),
                    "dtype": str(image.dtype),
                    "shm_name": name,
                    "data_type": "image",
                    "metadata": {"well": "A01", "site": 1, "channel": 1, "z_index": 1},
                    "image_id": secrets.token_hex(16),
                }
            )
        message = {"type": "batch", "images": items, "display_config": {"component_modes": {}}}
        self._socket.send(json.dumps(message).encode())
        answer = json.loads(self._socket.recv())
        if answer["status"] != "success":
            raise RuntimeError(f"the re-implementation of the original failed: {answer}")

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
        self._context.term()


def serve_original() -> None:
    """Receive: attach, copy out, close, unlink, answer."""
    address = f"ipc://@ohsbench-{secrets.token_hex(8)}"
    context = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.bind(address)
    print(address, flush=True)
    kept: npt.NDArray[Any] | None = None
    try:
        while True:
            message = json.loads(socket.recv())
            for item in message["images"]:
                segment = shared_memory.SharedMemory(name=item["shm_name"])
                view: npt.NDArray[Any] = np.ndarray(
                    item["shape"], item["dtype"], buffer=segment.buf
                )
                kept = view.copy()
                del view
                segment.close()
                segment.unlink()
            socket.send(
                json.dumps(
                    {"status": "success", "shape": np.shape(kept if kept is not None else 0)}
                ).encode()
            )
    finally:
        socket.close(linger=0)
        context.term()
