"""How much a viewer keeps, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream.errors import ItemFailed
from openhcs_stream.stream import ask, connect

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_limit_and_what_happens_at_it(
    start: Callable[..., Any], command: Callable[..., Any]
) -> None:
    started = start("--memory", "32M", "--when-full", "oldest")
    with connect("memory", launch=False) as stream:
        for time in range(50):
            stream.image(np.zeros((1024, 1024), np.uint8), place={"time": time}).wait()
    kept = ask("memory", "status")["kept"]
    assert kept["limit_nbytes"] == 32 << 20
    assert kept["when_full"] == "oldest"
    assert kept["removed"] > 10
    told = json.loads(command("status", "--json").stdout)["viewers"][0]["status"]["kept"]
    assert told == kept
    assert ask("memory", "stop") is None
    _, stderr = started.process.communicate(timeout=20)
    assert "oldest removed" in stderr


def test_by_default_an_image_without_room_is_refused(start: Callable[..., Any]) -> None:
    start("--memory=16M")
    with connect("memory", launch=False) as stream:
        with pytest.raises(ItemFailed, match="there is no room for"):
            stream.image(np.zeros((5000, 5000), np.uint8)).wait()
        with pytest.raises(ItemFailed):
            stream.flush()


@pytest.mark.parametrize("size", ["lots", "1M", "-5G"])
def test_no_amount_of_memory(command: Callable[..., Any], size: str) -> None:
    done = command("memory", f"--memory={size}")
    assert done.returncode == 2
    assert "memory" in done.stderr or "bytes are too few" in done.stderr


def test_detached(command: Callable[..., Any], detached: Any) -> None:
    assert command("memory", "--detach", "--memory=64M", "--when-full=oldest").returncode == 0
    assert ask("memory", "status")["kept"]["limit_nbytes"] == 64 << 20
    assert ask("memory", "status")["kept"]["when_full"] == "oldest"
