"""A peer can't fill the log."""

from __future__ import annotations

import logging

import pytest

from openhcs_stream.transport import SparingLog, _sparing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(f"{_sparing.__name__}.time.monotonic", lambda: now[0])
    return now


def test_many_events_are_one_line_and_their_number(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    tell = SparingLog(logging.getLogger("test"), logging.WARNING)
    for number in range(100):
        tell("refused %d of %s", number, "x")
    clock[0] += _sparing.EVERY_S
    tell("refused %d of %s", 100, "x")
    clock[0] += _sparing.EVERY_S
    tell("refused %d of %s", 101, "x")
    assert [each.getMessage() for each in caplog.records] == [
        "refused 0 of x",
        "refused 100 of x (99 more since the last line like this)",
        "refused 101 of x",
    ]


def test_some_are_told_each(clock: list[float]) -> None:
    tell = SparingLog(logging.getLogger("test"), logging.WARNING, burst=3)
    assert [tell.due() for _ in range(5)] == [0, 0, 0, None, None]
    clock[0] += _sparing.EVERY_S
    assert [tell.due() for _ in range(5)] == [2, 0, 0, None, None]
