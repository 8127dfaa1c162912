"""What tests count, because noise can't reach it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openhcs_stream
from openhcs_stream.messages import decode
from openhcs_stream.transport import UnixLane

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from openhcs_stream.messages import Message


def count_sent(monkeypatch: pytest.MonkeyPatch, key_of: Callable[[Message], Any]) -> Counter[Any]:
    """Messages that go over unix lanes from now on, either way, by what `key_of` gives of each."""
    counted: Counter[Any] = Counter()
    send = UnixLane.send

    def counting(self: UnixLane, data: bytes, **rest: Any) -> bool:
        done = send(self, data, **rest)
        key = key_of(decode(data))
        if done and key is not None:
            counted[key] += 1
        return done

    monkeypatch.setattr(UnixLane, "send", counting)
    return counted


def calls_of(act: Callable[[], object]) -> int:
    """How many functions of ours are called, on this thread."""
    root = str(Path(openhcs_stream.__file__).parent)
    count = 0

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(root):
            count += 1

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count
