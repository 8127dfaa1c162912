"""napari-stream: its own sender, and its own listener in a Qt application without a window."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from common import Progress, drive, role, touch

if TYPE_CHECKING:
    import numpy as np

what, address, path = role()
progress = Progress(path)
if what == "receive":
    from napari_stream._listener import ZMQImageListener
    from qtpy.QtCore import QCoreApplication, QThread

    application = QCoreApplication(sys.argv[:1])
    listener = ZMQImageListener(address)
    thread = QThread()
    listener.moveToThread(thread)

    def received(image: np.ndarray, meta: dict) -> None:
        touch(image)
        progress.add()

    listener.received.connect(received)
    listener.status.connect(lambda _: print("ready", flush=True))
    thread.started.connect(listener.start)
    thread.start()
    application.exec()
else:
    from napari_stream import StreamSender

    sender = StreamSender(address)
    drive({"copy": lambda image: sender.send(image, name="raw")}, progress)
