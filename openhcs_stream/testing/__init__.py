"""For those who write viewers, and those who test what sends to them.

`ViewerTests` is the suite that every viewer passes. `run_receiver` and `watch_leaks` are what the
fixtures of the pytest plugin (`openhcs_stream.testing.plugin`) are made of.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openhcs_stream.testing._conformance import ViewerTests
    from openhcs_stream.testing._leaks import SETTLE_S, Leak, LeakError, Snapshot, watch_leaks
    from openhcs_stream.testing._running import RunningReceiver, run_receiver

__all__ = [
    "SETTLE_S",
    "Leak",
    "LeakError",
    "RunningReceiver",
    "Snapshot",
    "ViewerTests",
    "run_receiver",
    "watch_leaks",
]

# Imported on first use: pytest imports this package wherever it is installed, for its fixtures.
_MODULES: Final[Mapping[str, str]] = {
    "SETTLE_S": "_leaks",
    "Leak": "_leaks",
    "LeakError": "_leaks",
    "RunningReceiver": "_running",
    "Snapshot": "_leaks",
    "ViewerTests": "_conformance",
    "run_receiver": "_running",
    "watch_leaks": "_leaks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
