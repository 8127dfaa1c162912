"""What the doctor found, as the checks say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    check : str
        What was looked at.
    state : "ok", "warn" or "fail"
        Whether everything works, something does not, or nothing does.
    text : str
        What was found.
    cure : str
        What to do about it; empty where nothing is to be done.
    """

    check: str
    state: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""
