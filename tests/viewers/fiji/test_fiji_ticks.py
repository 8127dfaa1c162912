"""When ImageJ draws what came, and that it has time of its own between."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.viewers.fiji.conftest import Stage

#: Nobody waits for so long: a tick that comes was asked for.
NEVER_S = 3600.0


@contextmanager
def running(stage: Stage) -> Iterator[threading.Semaphore]:
    """Run the viewer on a thread; the semaphore counts its ticks. It ends at once when told to."""
    ticked = threading.Semaphore(0)
    thread = threading.Thread(target=stage.viewer.run, args=(ticked.release, NEVER_S))
    thread.start()
    try:
        yield ticked
    finally:
        stage.viewer.stop()
        thread.join(20)
    assert not thread.is_alive()


def test_without_windows_what_came_is_taken_up_at_once(headless: Stage) -> None:
    with running(headless) as ticked:
        assert ticked.acquire(timeout=20)
        for _ in range(3):
            headless.viewer.poke()
            assert ticked.acquire(timeout=20)


def test_with_windows_there_is_a_rest_after_a_tick(window: Stage) -> None:
    """In which what comes waits, to be drawn together, and ImageJ deals with what a person does."""
    with running(window) as ticked:
        assert ticked.acquire(timeout=20)
        for _ in range(20):
            window.viewer.poke()
            window.act(lambda: None)
        assert not ticked.acquire(blocking=False)
