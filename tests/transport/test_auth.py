from __future__ import annotations

import os
import socket

import pytest

from openhcs_stream.transport import new_token, peer_credentials, tokens_match


def test_tokens_are_long_and_differ() -> None:
    first, second = new_token(), new_token()
    assert len(first) == 64
    assert first != second
    assert int(first, 16) >= 0


@pytest.mark.parametrize(
    ("expected", "shown", "match"),
    [("abc", "abc", True), ("abc", "abd", False), ("abc", "", False), ("é\ud800", "é\ud800", True)],
    ids=["same", "other", "empty", "not-ascii"],
)
def test_tokens_match(expected: str, shown: str, match: bool) -> None:
    assert tokens_match(expected, shown) is match


def test_the_system_tells_who_connected() -> None:
    first, second = socket.socketpair()
    with first, second:
        peer = peer_credentials(first)
    assert peer == (os.getpid(), os.geteuid(), os.getegid())


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    first, second = socket.socketpair()
    with first, second:
        assert peer_credentials(first) is None
