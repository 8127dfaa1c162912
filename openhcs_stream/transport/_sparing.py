"""Warnings that a peer can cause as often as it likes, told only so often as a person can read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["SparingLog"]

#: How long what is not told is counted.
EVERY_S = 10.0


class SparingLog:
    """Tells events of one kind at once, and when there are many, how many.

    Parameters
    ----------
    logger : Logger
        Where to.
    level : int
        Of `logging`.
    burst : int
        Events that are told within `EVERY_S` seconds.
    """

    def __init__(self, logger: logging.Logger, level: int, *, burst: int = 1) -> None:
        self._logger = logger
        self._level = level
        self._burst = burst
        self._since = float("-inf")
        self._told = 0
        self._untold = 0

    def __call__(self, text: str, *args: object) -> None:
        """Log, or only count."""
        untold = self.due()
        if untold is None:
            return
        more = f" ({untold} more since the last line like this)" if untold else ""
        self._logger.log(self._level, f"{text}%s", *args, more)

    def due(self) -> int | None:
        """Whether to tell one now: how many before it were not; None: this one is only counted."""
        now = time.monotonic()
        if now - self._since >= EVERY_S:
            self._since, self._told = now, 0
        if self._told >= self._burst:
            self._untold += 1
            return None
        self._told += 1
        untold, self._untold = self._untold, 0
        return untold
