"""openhcs-stream, with everything switched on: receipts, tracker, credits, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common import drive, role

from openhcs_stream import connect
from openhcs_stream.bench._viewers import TouchViewer
from openhcs_stream.viewer import serve

if TYPE_CHECKING:
    import numpy as np

what, address, path = role()
PLACE: dict[str, int | str] = {"well": "A01", "z": 0}
if what == "receive":
    serve(TouchViewer(), addresses=[address], headless=True,
          on_ready=lambda endpoint: print("ready", flush=True))  # fmt: skip
else:
    with connect(address, launch=False, timeout_s=60, quota_nbytes=1 << 30) as stream:
        last = []

        def copy(image: np.ndarray) -> None:
            last[:] = [stream.image(image, name="raw", place=PLACE)]

        def allocate(image: np.ndarray) -> None:
            array = stream.allocate(image.shape, image.dtype)
            last[:] = [stream.image(array, name="raw", place=PLACE)]

        drive({"copy": copy, "loan": allocate}, None, lambda: stream.flush(60),
              lambda: last[0].wait("received", timeout_s=60))  # fmt: skip
