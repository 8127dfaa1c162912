"""iceoryx2: publish and subscribe of slices; the receiver looks for samples all the time."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import iceoryx2 as iox2
import numpy as np
from common import Progress, drive, role, touch

MOST_NBYTES = 128 << 20
what, address, path = role()
progress = Progress(path)
iox2.set_log_level(iox2.LogLevel.Error)
node = (
    iox2.NodeBuilder.new()
    .signal_handling_mode(iox2.SignalHandlingMode.Disabled)
    .create(iox2.ServiceType.Ipc)
)
service = (
    node.service_builder(iox2.ServiceName.new(address))
    .publish_subscribe(iox2.Slice[ctypes.c_uint8])
    .subscriber_max_buffer_size(4)
    .enable_safe_overflow(False)
    .open_or_create()
)
if what == "receive":
    subscriber = service.subscriber_builder().buffer_size(4).create()
    print("ready", flush=True)
    idle = 0
    while True:
        sample = subscriber.receive()
        if sample is None:
            idle += 1
            if idle > 20_000:
                time.sleep(0.0001)
            continue
        idle = 0
        payload = sample.payload()
        raw = (ctypes.c_uint8 * payload.len()).from_address(payload.as_ptr())
        touch(np.frombuffer(raw, np.uint8))
        del raw, payload
        sample.delete()
        progress.add()
else:
    publisher = None
    size = 0

    def port(nbytes: int) -> Any:
        """A publisher whose slots are of this size."""
        global publisher, size
        if size != nbytes:
            if publisher is not None:
                publisher.delete()
            publisher = (
                service.publisher_builder()
                .initial_max_slice_len(nbytes)
                .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
                .create()
            )
            size = nbytes
        return publisher

    def copy(image: np.ndarray) -> None:
        sample = port(image.nbytes).loan_slice_uninit(image.nbytes)
        ctypes.memmove(sample.payload().as_ptr(), image.ctypes.data, image.nbytes)
        sample.assume_init().send()

    def loan(image: np.ndarray) -> None:
        port(image.nbytes).loan_slice_uninit(image.nbytes).assume_init().send()

    drive({"copy": copy, "loan": loan}, progress)
