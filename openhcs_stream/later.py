"""Names of a room that are not imported with it, but when somebody uses them.

A worker pays for what it imports each time that it starts, and uses a part of each room.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["import_later"]


def import_later(room: str, names: Mapping[str, tuple[str, ...]]) -> None:
    """Give a room names that are imported when they are first used.

    Parameters
    ----------
    room : str
        The room's ``__name__``.
    names : mapping of str to tuple of str
        For modules of the room what they define: ``{"_push": ("ZmqPusher",)}``. The room imports
        the same for the type checker, and has it in ``__all__``.
    """
    homes = {name: home for home, defined in names.items() for name in defined}
    module = sys.modules[room]

    def imported(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{room}.{homes[name]}"), name)
        setattr(module, name, value)  # from now on it is found without this
        return value

    # Set from here, the type checker does not see it: to it a wrong name stays one.
    module.__getattr__ = imported  # type: ignore[method-assign]
