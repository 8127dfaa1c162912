from __future__ import annotations

import select
import threading
from typing import TYPE_CHECKING

import pytest

from openhcs_stream.transport import Waker, _wake

if TYPE_CHECKING:
    from collections.abc import Iterator


def readable(waker: Waker, timeout_s: float = 0.0) -> bool:
    return bool(select.select([waker], [], [], timeout_s)[0])


@pytest.fixture(params=["eventfd", "socketpair"])
def waker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waker]:
    monkeypatch.setattr(_wake, "_HAS_EVENTFD", request.param == "eventfd")
    with Waker() as waker:
        yield waker


def test_is_a_flag_that_a_selector_sees(waker: Waker) -> None:
    assert not readable(waker)
    waker.set()
    waker.set()
    assert readable(waker)
    waker.clear()
    assert not readable(waker)
    waker.clear()
    waker.set()
    assert readable(waker)


def test_wakes_from_another_thread(waker: Waker) -> None:
    thread = threading.Thread(target=waker.set)
    thread.start()
    assert readable(waker, 20)
    thread.join()


def test_is_quiet_once_closed(waker: Waker) -> None:
    waker.set()
    waker.close()
    waker.close()
    waker.set()
    waker.clear()
    assert waker.fileno() == -1


def test_closes_when_dropped() -> None:
    waker = Waker()
    waker.set()
    del waker  # the fixture in conftest counts


def test_can_be_dropped_where_its_constructor_failed() -> None:
    Waker.__new__(Waker).__del__()
