"""Wake a loop that waits in a selector, from any thread."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Waker"]

_HAS_EVENTFD = hasattr(os, "eventfd")


class Waker:
    """A flag with a file descriptor that is readable while the flag is set.

    Every method may be called from any thread, also while another thread closes it. A context
    manager.

    Examples
    --------
    >>> import select
    >>> with Waker() as waker:
    ...     waker.set()
    ...     ready = select.select([waker], [], [], 0)[0] == [waker]
    ...     waker.clear()
    >>> ready
    True
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may call set
        self._set = False
        self._ends: tuple[socket.socket, socket.socket] | None = None
        if _HAS_EVENTFD:
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            self._fd = self._ends[0].fileno()

    def set(self) -> None:
        """Make `fileno` readable; nothing happens where it is already, or is closed."""
        with self._lock:
            if self._set or self._fd < 0:
                return
            self._set = True
            if self._ends is None:
                os.eventfd_write(self._fd, 1)
            else:
                self._ends[1].send(b"!")

    def clear(self) -> None:
        """Make `fileno` unreadable again."""
        with self._lock:
            if not self._set or self._fd < 0:
                return
            self._set = False
            if self._ends is None:
                os.eventfd_read(self._fd)
            else:
                self._ends[0].recv(1)

    def fileno(self) -> int:
        """Give the descriptor to wait for; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Give the descriptor back; more than once if you like."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd < 0:
                return
            if self._ends is None:
                os.close(fd)
            else:
                for end in self._ends:
                    end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Attributes miss where the constructor raised.
        with contextlib.suppress(AttributeError):
            self.close()
