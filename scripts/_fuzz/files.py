"""What lies in files that somebody may have changed: the runtime folder's, and recordings."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from openhcs_stream import discovery
from openhcs_stream.messages import LayerSpec
from openhcs_stream.recording import Recording, Writer
from openhcs_stream.runtime import hold
from scripts._fuzz.mutate import mutate, mutate_msgpack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

__all__ = [
    "endpoint_file",
    "ledger",
    "ledger_samples",
    "mutate_ledger",
    "mutate_recording",
    "recording",
    "recording_samples",
    "written",
]

_VARIABLE: Final = "OPENHCS_STREAM_RUNTIME_DIR"
#: Of a ledger's line: its length and its sum. Of a recording's record: see `recording._format`.
_LINE: Final = struct.Struct("<II")
_RECORD: Final = struct.Struct("<4sIQII")
_ALIGN: Final = 64


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ohs-fuzz-"))


def written(data: bytes, name: str) -> Path:
    """A file of this process with that content."""
    path = _folder() / f"{os.getpid()}-{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    return path


class _RuntimeFolder:
    """A runtime folder for one input, with a file beside it that must stay."""

    def __enter__(self) -> Path:
        self._before = os.environ.get(_VARIABLE)
        self._base = _folder() / str(os.getpid())
        shutil.rmtree(self._base, ignore_errors=True)
        folder = self._base / "run"
        folder.mkdir(mode=0o700, parents=True)
        (self._base / "bystander").write_bytes(b"mine")
        os.environ[_VARIABLE] = str(folder)
        return folder

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = self._before
        assert (self._base / "bystander").read_bytes() == b"mine"
        shutil.rmtree(self._base, ignore_errors=True)


# --- endpoint files -------------------------------------------------------------------------------


def endpoint_file(data: bytes) -> None:
    """A living viewer's file, read by who looks for viewers; a broken one is skipped."""
    with _RuntimeFolder() as folder:
        path = folder / "napari-napari.json"
        path.write_bytes(data)
        with path.open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            for endpoint in discovery.endpoints():
                assert f"{endpoint.viewer}-{endpoint.name}.json" == path.name
                discovery.is_public(endpoint)
                assert endpoint.port is None or endpoint.port >= 0
            assert path.exists()


# --- ledgers --------------------------------------------------------------------------------------


@cache
def ledger_samples() -> list[bytes]:
    """What processes write that hold something: one thing, several, some of which have gone."""
    with _RuntimeFolder() as folder:
        held = [hold("socket", folder / "napari-1-ab.ipc"), hold("file", folder / "it.tif")]
        some = [hold("segment", folder / f"segment{number}") for number in range(3)]
        some[1].release()
        held[1].temporary.write_bytes(b"")
        held[1].made()
        (own,) = folder.glob(".held-*")
        content = own.read_bytes()
        for each in (*held, *some):
            each.release()
    first = _LINE.size + _LINE.unpack_from(content)[0]
    return [content, content[:first]]


def ledger(data: bytes) -> None:
    """A dead process's ledger, swept; no file outside that it doesn't identify may go."""
    with _RuntimeFolder() as folder:
        (folder / ".held-0123456789abcdef").write_bytes(data)
        for dry_run in (True, False):
            discovery.sweep(dry_run=dry_run, patience_s=0.0)


def mutate_ledger(data: bytes, random: Random, samples: Sequence[bytes] = ()) -> bytes:
    """Change one line, its length and sum right, so that it is read; or anything."""
    lines, at = [], 0
    while at + _LINE.size <= len(data):
        nbytes, _ = _LINE.unpack_from(data, at)
        lines.append(data[at + _LINE.size : at + _LINE.size + nbytes])
        at += _LINE.size + nbytes
    if not lines or random.randrange(4) == 0:
        return mutate(data, random, samples)
    which = random.randrange(len(lines))
    lines[which] = mutate_msgpack(lines[which], random)
    return b"".join(_LINE.pack(len(line), zlib.crc32(line)) + line for line in lines)


# --- recordings -----------------------------------------------------------------------------------


@cache
def recording_samples() -> list[bytes]:
    """A recording of images and points, and an empty one."""
    raw = LayerSpec(kind="image", name="raw", axes="YX", components=("well", "z"))
    spots = LayerSpec(kind="points", name="spots", axes="YX")
    path = _folder() / f"{os.getpid()}-sample.rec"
    found = []
    for count in (2, 0):
        path.unlink(missing_ok=True)
        with Writer(path, program="fuzz 1") as writer:
            for z in range(count):
                image = np.full((5, 7), z, "<u2")
                writer.add("worker 1", raw, ("A01", z), image, {"id": f"i{z}", "x": 0.5})
                writer.add("worker 2", spots, (), np.arange(6.0).reshape(3, 2), {})
        found.append(path.read_bytes())
    return found


def recording(data: bytes) -> None:
    """All that is done with one: told, checked, read."""
    with Recording(written(data, "it.rec")) as opened:
        opened.summary()
        for entry in opened.entries():
            entry.check()
            assert entry.read().nbytes == entry.nbytes


def mutate_recording(data: bytes, random: Random, samples: Sequence[bytes] = ()) -> bytes:
    """Change one record's header, its length and sums right, so that it is read; or anything."""
    places, at = [], _ALIGN
    while at + _RECORD.size <= len(data):
        _, length, nbytes, _, _ = _RECORD.unpack_from(data, at)
        places.append(at)
        at = _aligned(_aligned(at + _RECORD.size + length) + nbytes)
    if not places or random.randrange(4) == 0:
        return mutate(data, random, samples)
    at = random.choice(places)
    magic, length, nbytes, _, _ = _RECORD.unpack_from(data, at)
    begin = at + _RECORD.size
    payload_at = _aligned(begin + length)
    header = mutate_msgpack(data[begin : begin + length], random)
    payload = data[payload_at : payload_at + nbytes]
    if random.randrange(3) == 0:
        payload = mutate(payload, random)
    head = _RECORD.pack(magic, len(header), len(payload), zlib.crc32(header), zlib.crc32(payload))
    record = head + header
    record += bytes(-len(record) % _ALIGN) + payload
    record += bytes(-len(record) % _ALIGN)
    return data[:at] + record + data[_aligned(payload_at + nbytes) :]


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
