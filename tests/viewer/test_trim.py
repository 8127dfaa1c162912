"""Memory that many messages took goes back to the system."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from openhcs_stream.pixels import give_back_free_memory
from openhcs_stream.stream import connect
from openhcs_stream.testing import run_receiver
from openhcs_stream.viewer import MemoryViewer, _serve

if TYPE_CHECKING:
    import pytest


def test_after_many_messages_and_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(_serve, "TRIM_AFTER", 20)
    monkeypatch.setattr(_serve, "TRIM_EVERY_S", 0.0)
    monkeypatch.setattr(_serve, "give_back_free_memory", lambda: given.append(1))
    with run_receiver(MemoryViewer()) as running:
        with connect(running.address, side_lane=False) as stream:
            for _ in range(60):
                stream.image(np.zeros((8, 8), np.uint8)).wait()
            deadline = time.monotonic() + 20
            while not given:
                assert time.monotonic() < deadline
                stream.request("status")
    assert 1 <= len(given) <= 4


def test_can_be_done_anywhere() -> None:
    give_back_free_memory()
