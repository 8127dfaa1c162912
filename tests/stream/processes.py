"""What tests do to processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def stop(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until it is: the signal takes its time."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 20
    while " T " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "it goes on"
