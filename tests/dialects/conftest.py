"""Named shared memory as a foreign sender makes it: real, and cleaned up whatever happens."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

if not sys.platform.startswith("linux"):
    pytest.skip("named shared memory is read on Linux only", allow_module_level=True)

SHM = Path("/dev/shm")


class Blocks:
    """Makes named blocks, and knows which of them are still there."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def new_name(self) -> str:
        name = f"fiji_{uuid.uuid4().hex[:12]}"
        self.names.append(name)
        return name

    def fill(self, content: npt.NDArray[np.generic] | bytes, name: str | None = None) -> str:
        """A block that holds an array's bytes in C order; its name."""
        name = name or self.new_name()
        data = content if isinstance(content, bytes) else content.tobytes()
        # What shm_open does on Linux. multiprocessing.shared_memory would have its tracker remove
        # the block at the end of the test, and hide what the receiver leaves behind.
        with open(
            SHM / name, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as block:
            block.write(data)
        return name

    def exists(self, name: str) -> bool:
        return os.path.lexists(SHM / name)


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    made = Blocks()
    yield made
    for name in made.names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SHM / name)
