"""What a link knows of a bridge to a viewer of OpenHCS: its lane, without what lies behind it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from openhcs_stream.transport import InProcessLane

if TYPE_CHECKING:
    from collections.abc import Callable

    from openhcs_stream.messages import LayerSpec

__all__ = ["BridgedLane"]

#: Longest that closing a stream waits for its bridge to have ended.
_CLOSE_S = 5.0


class BridgedLane(InProcessLane):
    """The stream's end of a lane to a bridge.

    Attributes
    ----------
    tells_displayed : bool
        False: no fact tells when this viewer displays something, and "displayed" on this lane
        only means that nothing more will be told of an item.
    check : callable or None
        Raises InvalidItem for a layer that this viewer has no way to show.
    """

    tells_displayed = True
    check: Callable[[LayerSpec], None] | None = None
    thread: threading.Thread | None = None

    def close(self) -> None:
        """Close this end, and see the bridge remove what it has made."""
        super().close()
        thread, self.thread = self.thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_S)
