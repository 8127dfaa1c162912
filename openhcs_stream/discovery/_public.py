"""Viewers that others may reach than this user here: their keys, and what those others are given.

A key pair and a token are made once and kept in the user's configuration folder, so that what was
copied to another machine stays good. A *viewer file* holds the address with the public key, and
the token: whoever has a copy can connect. All these files can be read by their owner alone, and
are not read where others could.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from openhcs_stream.discovery._endpoints import Endpoint, Record
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "VIEWER_SUFFIX",
    "PublicIdentity",
    "config_folder",
    "is_public",
    "public_identity",
    "reachable_host",
    "read_viewer_file",
    "viewer_file",
    "write_viewer_file",
]

#: By this a file that tells where a viewer is known from a viewer's name.
VIEWER_SUFFIX = ".viewer"
_IDENTITY = "public.json"
_MAX_NBYTES = 1 << 16

_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


@dataclass(frozen=True)
class PublicIdentity:
    """What a viewer that others may reach proves itself with, and what they prove themselves with.

    Attributes
    ----------
    key, secret : str
        The viewer's CURVE key pair, 64 hexadecimal characters each.
    token : str
        What peers must know.
    """

    key: str
    secret: str = field(repr=False)
    token: str = field(repr=False)


class _Identity(msgspec.Struct, frozen=True):
    key: _Hex
    secret: _Hex
    token: _Hex


def config_folder() -> Path:
    """Folder of this user's lasting files: ``$XDG_CONFIG_HOME/openhcs-stream``, or in ~/.config.

    Created where it is missing, mode 0700.

    Raises
    ------
    UsageError
        It can't be made.
    """
    named = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(named) if os.path.isabs(named) else Path.home() / ".config"
    folder = base / "openhcs-stream"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} can't be made: {error.strerror or error}.",
            cure="Set XDG_CONFIG_HOME to a folder that you can write to.",
        ) from error
    return folder


def public_identity(make: Callable[[], PublicIdentity], *, renew: bool = False) -> PublicIdentity:
    """Read this user's keys and token, or make them.

    Parameters
    ----------
    make : callable
        Makes new ones.
    renew : bool
        Make new ones in any case: all viewer files that were given out are void.

    Raises
    ------
    UsageError
        The file is broken, belongs to another user, or could be read by others.
    """
    path = config_folder() / _IDENTITY
    if renew:
        _write(path, msgspec.json.encode(_Identity(**asdict(make()))), replace=True)
    elif not path.exists():
        # Where another viewer was quicker, its keys are taken.
        with contextlib.suppress(FileExistsError):
            _write(path, msgspec.json.encode(_Identity(**asdict(make()))), replace=False)
    found = _read(path, _Identity, "Remove it, and start the viewer again: new keys are made.")
    return PublicIdentity(found.key, found.secret, found.token)


def is_public(endpoint: Endpoint) -> bool:
    """Whether others than this user's processes here can connect: an address has a key."""
    return any("?key=" in address for address in endpoint.addresses)


def viewer_file(endpoint: Endpoint) -> Path:
    """Where `write_viewer_file` writes: in `config_folder`, named by the viewer."""
    kind, name = endpoint.viewer, endpoint.name
    return config_folder() / f"{name if name == kind else f'{kind}-{name}'}{VIEWER_SUFFIX}"


def write_viewer_file(endpoint: Endpoint) -> Path:
    """Write what somebody else needs in order to connect to a viewer.

    Parameters
    ----------
    endpoint : Endpoint
        With those addresses only that he can reach, the best first.

    Returns
    -------
    Path
        `viewer_file` of it; an older one of that name is replaced.
    """
    path = viewer_file(endpoint)
    _write(path, msgspec.json.encode(msgspec.convert(asdict(endpoint), Record)), replace=True)
    return path


def read_viewer_file(path: Path | str) -> Endpoint:
    """Read a copy of what `write_viewer_file` wrote.

    Raises
    ------
    UsageError
        There is no such file, it is no viewer file, or others could read it.
    """
    found = _read(Path(path).expanduser(), Record, "Copy it again from where the viewer runs.")
    return Endpoint(**msgspec.structs.asdict(found))


def reachable_host() -> str:
    """How other machines reach this one: the number of the interface that leads outside.

    Names are not asked for: Debian gives a machine's own name a loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses the interface
        except OSError:
            return socket.gethostname()
        return str(sock.getsockname()[0])


_T = TypeVar("_T", bound=msgspec.Struct)


def _read(path: Path, form: type[_T], cure: str) -> _T:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", cure=cure) from error
    try:
        _check(path, os.fstat(fd))
        content = os.read(fd, _MAX_NBYTES + 1)
    finally:
        os.close(fd)
    try:
        if len(content) > _MAX_NBYTES:
            raise msgspec.DecodeError(f"it has more than {_MAX_NBYTES} bytes")
        return msgspec.json.decode(content, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is broken: {error}.", cure=cure) from error


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is no file.", cure="Name the viewer's file itself.")
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to user {status.st_uid}, and this process runs as user "
            f"{os.geteuid()}.",
            cure="Copy it: with a file of his, another user could lead your images to himself.",
        )
    if status.st_mode & 0o077:
        raise UsageError(
            f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, so that other users can get at "
            "the token in it.",
            cure=f"Close it with `chmod 600 {path}`. If others had time to read it, start the "
            "viewer with --new-keys and copy the new file.",
        )


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file whole or not at all, for its owner's eyes only."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            if replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    except FileExistsError:
        raise
    except OSError as error:
        raise UsageError(
            f"{path} can't be written: {error.strerror or error}.",
            cure="Make room there, or set XDG_CONFIG_HOME to a folder that you can write to.",
        ) from error
