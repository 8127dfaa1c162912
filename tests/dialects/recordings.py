"""What the released packages really sent and answered: recorded by `scripts/interop --record`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

__all__ = ["ANSWERS", "FOLDER", "MESSAGES", "Recorded", "answers", "decoded", "message"]

FOLDER = Path(__file__).with_name("recorded")
SHM = Path("/dev/shm")

_ALL = sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.json"))
#: "gen1/napari_image_2d", and so on.
MESSAGES = [name for name in _ALL if not name.endswith("_answers")]
ANSWERS = [name for name in _ALL if name.endswith("_answers")]


@dataclass(frozen=True)
class Recorded:
    """One batch as its sender sent it."""

    generation: str
    viewer: str
    port: int
    items: list[dict[str, Any]]  #: what was to be sent
    frame: bytes
    blocks: dict[str, bytes]  #: by name

    @property
    def images(self) -> list[dict[str, Any]]:
        """The items of the message, as JSON."""
        found: list[dict[str, Any]] = json.loads(self.frame)["images"]
        return found

    def pixels(self, item: dict[str, Any]) -> npt.NDArray[Any]:
        """What stood in an item's block."""
        dtype, shape = np.dtype(item["dtype"]), item["shape"]
        return np.frombuffer(
            self.blocks[item["shm_name"]][: int(np.prod(shape)) * dtype.itemsize], dtype
        ).reshape(shape)

    def renamed(self) -> Recorded:
        """The same with blocks of new names, of the same form: other tests use this one too."""
        frame, blocks = self.frame.decode(), {}
        for name, content in self.blocks.items():
            kind, _, number = name.partition("_")
            other = f"{kind}_{uuid.uuid4().hex[: len(number)]}"
            frame = frame.replace(name, other)
            blocks[other] = content
        return Recorded(self.generation, self.viewer, self.port, self.items, frame.encode(), blocks)

    @contextlib.contextmanager
    def in_memory(self) -> Iterator[None]:
        """Its blocks stand in shared memory during the context."""
        for name, content in self.blocks.items():
            descriptor = os.open(SHM / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
        try:
            yield
        finally:
            for name in self.blocks:
                with contextlib.suppress(FileNotFoundError):
                    (SHM / name).unlink()


def message(name: str) -> Recorded:
    """One recorded batch by its name in `MESSAGES`."""
    read = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Recorded(
        read["generation"], read["viewer"], read["port"], read["items"], read["frame"].encode(),
        {each: decoded(content) for each, content in read["blocks"].items()},
    )  # fmt: skip


def answers(name: str) -> dict[str, Any]:
    """What one viewer answered, by its name in `ANSWERS`."""
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return read


def decoded(text: str) -> bytes:
    """Bytes as they stand in a recording."""
    return base64.b64decode(text)
