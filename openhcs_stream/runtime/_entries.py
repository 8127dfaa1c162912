"""What stands in a ledger, and its bytes."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

__all__ = [
    "Entry",
    "HeldKind",
    "Identity",
    "identify",
    "is_temporary_name",
    "read_entries",
    "temporary_name",
    "written",
]

#: What a held thing is; it tells how it is removed.
HeldKind: TypeAlias = Literal["socket", "segment", "file", "folder"]

_MAX_NBYTES = 16 << 20
_HEAD = 8  # two little-endian uint32: length and CRC-32 of what follows
_PREFIX = ".openhcs-stream-"


def temporary_name() -> str:
    """A random name, for a thing that has not got its final one."""
    return f"{_PREFIX}{os.urandom(8).hex()}"


def is_temporary_name(name: str) -> bool:
    """Whether it is one of `temporary_name`."""
    rest = name.removeprefix(_PREFIX)
    return name.startswith(_PREFIX) and len(rest) == 16 and set(rest) <= set("0123456789abcdef")


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Which file something is, whatever its name.

    Attributes
    ----------
    device, inode : int
    made_ns : int
        When it was made, of a socket: numbers of inodes are soon used again on some file systems.
        0 for anything else, which may have been written to since.
    """

    device: int
    inode: int
    made_ns: int = 0


def identify(path: Path) -> Identity | None:
    """Which file has that name now, links not followed; None where there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    made_ns = status.st_mtime_ns if stat.S_ISSOCK(status.st_mode) else 0
    return Identity(status.st_dev, status.st_ino, made_ns)


_Path = Annotated[bytes, msgspec.Meta(min_length=1, max_length=4096)]
_Name = Annotated[bytes, msgspec.Meta(max_length=255)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a process made, or took over.

    Attributes
    ----------
    kind : str
        "socket", "segment", "file" or "folder".
    path : bytes
        Its final name, absolute. What has that name is this thing only if it is `identity`.
    temporary : bytes
        The name that it has before, in the same folder; empty: it was there already.
    identity : Identity or None
        None: it has not got its final name.
    pid : int
        Of its process, for people to read; nothing is decided by it.
    """

    kind: HeldKind
    path: _Path
    temporary: _Name = b""
    identity: Identity | None = None
    pid: int = 0

    @property
    def final(self) -> Path:
        """Where the thing is, or was to be."""
        return Path(os.fsdecode(self.path))

    @property
    def before(self) -> Path | None:
        """Where it may still be, under its random name."""
        return self.final.with_name(os.fsdecode(self.temporary)) if self.temporary else None


class _Line(msgspec.Struct, frozen=True, array_like=True):
    """What is written: entry `number` as it is now; None: it has gone."""

    number: int
    entry: Entry | None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Line)


def written(number: int, entry: Entry | None) -> bytes:
    """The bytes that tell of an entry, or that it has gone."""
    body = _encoder.encode(_Line(number, entry))
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def read_entries(fd: int) -> list[Entry]:
    """What stands in a ledger, up to a line that was not written whole.

    Raises
    ------
    ValueError
        It is no ledger.
    """
    size = os.fstat(fd).st_size
    if size > _MAX_NBYTES:
        raise ValueError(f"it has {size} bytes, more than any ledger")
    content = os.pread(fd, size, 0)
    entries: dict[int, Entry] = {}
    at = 0
    while at + _HEAD <= len(content):
        nbytes = int.from_bytes(content[at : at + 4], "little")
        crc = int.from_bytes(content[at + 4 : at + _HEAD], "little")
        body = content[at + _HEAD : at + _HEAD + nbytes]
        if len(body) < nbytes:
            break  # its writer was killed at it, before it made the thing
        if zlib.crc32(body) != crc:
            raise ValueError(f"what stands at byte {at} is no entry")
        try:
            line = _decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"what stands at byte {at} is no entry: {error}") from error
        if line.entry is not None and not _names_a_thing(line.entry):
            raise ValueError(f"what stands at byte {at} names nothing that can be there")
        if line.entry is None:
            entries.pop(line.number, None)
        else:
            entries[line.number] = line.entry
        at += _HEAD + nbytes
    return list(entries.values())


def _names_a_thing(entry: Entry) -> bool:
    """Whether its names can be a file's: no process writes others, but files get damaged."""
    return (
        os.path.isabs(entry.path)
        and bool(entry.final.name)
        and b"\0" not in entry.path + entry.temporary
        and b"/" not in entry.temporary
        and entry.temporary not in (b".", b"..")
    )
