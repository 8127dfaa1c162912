"""Endpoint files: one for each running viewer, locked by it for as long as it lives.

The lock, not the file, says that a viewer lives: the kernel drops it at the owner's death, also
by kill -9, so no pid is ever guessed at. Three rules keep the files right:

1. A file gets its final name by `link`, complete and already locked, and only where no file has
   that name. Nobody locks it later: once it is free, its owner is dead.
2. A final name is removed by its owner, or by who holds both the file's lock and the folder's.
3. Only owners hold the lock *exclusively*, so that others are never taken for one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import weakref
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import msgspec

from openhcs_stream.discovery._files import ENDPOINT, names, remove_if_left
from openhcs_stream.discovery._sweep import sweep
from openhcs_stream.errors import UsageError
from openhcs_stream.runtime import (
    is_at,
    open_to_lock,
    runtime_folder,
    try_exclusive,
    try_shared,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["Endpoint", "Publication", "endpoints", "find", "publish"]

_log = logging.getLogger(__name__)

_MAX_NBYTES = 1 << 16
_VIEWER = r"^[a-z][a-z0-9_]{0,31}\Z"  # without '-', which ends it in a file's name
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
#: How long a publisher waits for others that just look at (or clear away) a stale file.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Endpoint:
    """Where a running viewer can be reached.

    Attributes
    ----------
    viewer : str
        What it is: "napari", "memory".
    name : str
        What this one is called; no two running viewers of one kind have the same name.
    pid : int
        Of its process, in its own process namespace.
    started : float
        Seconds since the epoch.
    protocol : (major, minor)
        Version that it speaks.
    addresses : tuple of str
        ZeroMQ addresses, the nearest first: "ipc://..." before "tcp://...". One that other
        machines can reach has the viewer's public key in it.
    token : str
        What opens a session; never printed.
    headless : bool
        Whether it has no window.
    """

    viewer: str
    name: str
    pid: int
    started: float
    protocol: tuple[int, int]
    addresses: tuple[str, ...]
    token: str
    headless: bool

    def __repr__(self) -> str:
        """All but the token, which must not end up in logs and tracebacks."""
        return (
            f"Endpoint(viewer={self.viewer!r}, name={self.name!r}, pid={self.pid}, "
            f"started={self.started}, protocol={self.protocol}, addresses={self.addresses}, "
            f"headless={self.headless})"
        )

    @property
    def port(self) -> int | None:
        """TCP port, or None where it listens on no port."""
        for address in self.addresses:
            if address.startswith("tcp://"):
                digits = address.partition("?")[0].rpartition(":")[2]
                return int(digits) if digits.isdigit() else None
        return None


_Text = Annotated[str, msgspec.Meta(max_length=1024)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Record(msgspec.Struct, frozen=True):
    """An endpoint file's content; unknown fields are a later version's and are ignored."""

    viewer: Annotated[str, msgspec.Meta(pattern=_VIEWER)]
    name: Annotated[str, msgspec.Meta(pattern=_NAME)]
    pid: _Number
    started: Annotated[float, msgspec.Meta(ge=0, le=2**53)]
    protocol: tuple[_Number, _Number]
    addresses: Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1, max_length=16)]
    token: _Text
    headless: bool


_decoder = msgspec.json.Decoder(Record, strict=True)

#: Publications of this process, so that a forked child lets go of the locks at once.
_open: weakref.WeakSet[Publication] = weakref.WeakSet()


class Publication:
    """A viewer's endpoint file, locked until `close` or the death of this process.

    Attributes
    ----------
    endpoint : Endpoint
        As published.
    path : Path
        Of the file.
    """

    def __init__(self, endpoint: Endpoint, path: Path, fd: int) -> None:
        self.endpoint = endpoint
        self.path = path
        self._fd = fd
        _open.add(self)

    def close(self) -> None:
        """Remove the file and drop the lock; more than once is the same as once."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        _open.discard(self)
        try:
            if is_at(fd, self.path):  # somebody may have cleared the folder by hand
                self.path.unlink()
        finally:
            os.close(fd)

    def __enter__(self) -> Publication:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        """In a forked child: the lock stays the parent's, and dies with it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _after_fork() -> None:
    for publication in list(_open):
        publication._let_go()  # noqa: SLF001 - the same module's
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


def publish(endpoint: Endpoint, *, number: bool = False) -> Publication:
    """Make a running viewer findable by its user's processes.

    Parameters
    ----------
    endpoint : Endpoint
        Where it is reached; it must answer there already.
    number : bool
        Where the name is taken, append "-2", "-3", ... instead of raising. What was published is
        in `Publication.endpoint`.

    Raises
    ------
    UsageError
        A living viewer of this kind has that name already, or the name can't be a file's name.
    """
    content = _encode(endpoint)
    folder = runtime_folder()
    trial, count = endpoint, 1
    while True:
        path = folder / f"{trial.viewer}-{trial.name}.json"
        fd = _try_publish(folder, path, content)
        if fd is not None:
            return Publication(trial, path, fd)
        if not number:
            raise UsageError(
                f"a running {endpoint.viewer} viewer is called {endpoint.name!r} already.",
                cure=f"Choose another name with --name, or end that one with "
                f"`openhcs-stream stop {endpoint.name}`.",
            )
        count += 1
        suffix = f"-{count}"
        trial = replace(endpoint, name=endpoint.name[: 64 - len(suffix)] + suffix)
        content = _encode(trial)


def endpoints(viewer: str | None = None, *, clear: bool = True) -> list[Endpoint]:
    """Living viewers, the one that started last first.

    Parameters
    ----------
    viewer : str or None
        Only viewers of this kind.
    clear : bool
        `sweep` away what the dead left, too.

    Raises
    ------
    UsageError
        The runtime folder can't be trusted.
    """
    living: list[Endpoint] = []
    for path in names():
        if not ENDPOINT.match(path.name):
            continue
        if viewer is not None and not path.name.startswith(f"{viewer}-"):
            continue
        record = _look(path)
        if record is not None:
            living.append(record)
    if clear:
        sweep(patience_s=0.0)
    return sorted(living, key=lambda endpoint: endpoint.started, reverse=True)


def find(viewer: str, *, name: str | None = None, port: int | None = None) -> Endpoint | None:
    """The living viewer of that kind (and name, and TCP port) that started last, or None.

    Raises
    ------
    UsageError
        The runtime folder can't be trusted.
    """
    for endpoint in endpoints(viewer):
        if (name is None or endpoint.name == name) and (port is None or endpoint.port == port):
            return endpoint
    return None


def _encode(endpoint: Endpoint) -> bytes:
    if not re.match(_NAME, endpoint.name):
        raise UsageError(
            f"{endpoint.name!r} can't be the name of a running viewer.",
            cure="Use 1 to 64 letters, digits, '.', '_' and '-'; the first a letter or a digit.",
        )
    try:
        content = msgspec.json.encode(msgspec.convert(asdict(endpoint), Record))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise UsageError(
            f"{endpoint!r} can't be published: {error}.",
            cure="Viewer kinds are up to 32 of a-z, 0-9 and '_'; there is at least one address.",
        ) from error
    return content


def _try_publish(folder: Path, path: Path, content: bytes) -> int | None:
    """The locked descriptor of the new file at `path`; None where a living viewer has the name."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        fd, temporary = _write_locked(folder, content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            os.close(fd)
            if not _is_stale(path):
                return None
            if not remove_if_left(path):
                _wait_for_others(path, deadline)
        except FileNotFoundError:
            # Between its creation and its lock the file looked stale to somebody. Once more.
            os.close(fd)
        except BaseException:
            os.close(fd)
            raise
        else:
            return fd
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _write_locked(folder: Path, content: bytes) -> tuple[int, Path]:
    temporary = folder / f".new-{os.urandom(8).hex()}"
    # os.open makes it close-on-exec: a child program must not keep the lock.
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        while not try_exclusive(fd):
            time.sleep(0.001)  # somebody looks whether it is stale: a matter of microseconds
        os.write(fd, content)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return fd, temporary


def _wait_for_others(path: Path, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise UsageError(
            f"the stale file {path} stays locked by other processes that look at it.",
            cure=f"Remove it with `rm {path}`.",
        )
    time.sleep(0.002)


def _look(path: Path) -> Endpoint | None:
    """The endpoint in a living viewer's file."""
    fd = _open_file(path)
    if fd is None:
        return None
    try:
        if try_shared(fd):
            return None
        content = os.read(fd, _MAX_NBYTES + 1)
    finally:
        os.close(fd)
    try:
        if len(content) > _MAX_NBYTES:
            raise msgspec.DecodeError(f"more than {_MAX_NBYTES} bytes")
        record = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("the endpoint file %s of a living viewer is broken, skipped: %s", path, error)
        return None
    if path.name != f"{record.viewer}-{record.name}.json":
        _log.warning("the endpoint file %s belongs to %s, skipped", path, record.name)
        return None
    return Endpoint(**msgspec.structs.asdict(record))


def _is_stale(path: Path) -> bool:
    """Whether nobody owns the file; True as well where it has just gone."""
    fd = _open_file(path)
    if fd is None:
        return True
    try:
        return try_shared(fd)
    finally:
        os.close(fd)


def _open_file(path: Path) -> int | None:
    try:
        return open_to_lock(path)
    except OSError as error:
        _log.warning("the endpoint file %s can't be opened, skipped: %s", path, error)
        return None
