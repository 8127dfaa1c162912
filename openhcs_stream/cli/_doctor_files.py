"""The doctor's checks of folders, sockets, ports, leftovers, and of the viewers that run."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.cli._doctor_python import installed_version
from openhcs_stream.cli._findings import Finding
from openhcs_stream.discovery import endpoints, sweep
from openhcs_stream.errors import StreamError, UsageError
from openhcs_stream.runtime import runtime_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["leftovers", "ports", "running", "runtime", "sockets"]

#: OpenHCS's for napari and for Fiji, and where its senders collect acknowledgements.
_PORTS = (5555, 5565, 7555)
#: Bytes that a unix socket's path may have, and of the longest name that a viewer gives to one.
_SOCKET_PATH, _SOCKET_NAME = 107, len("/memory-4194304-abcdef.ipc")
#: File systems on which locks may be a matter of one machine, or of none.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "afs", "lustre", "beegfs"})
_ASK_S = 3.0


def runtime() -> Iterator[Finding]:
    """Where running viewers are found."""
    try:
        folder = runtime_folder()
        count = len(endpoints(clear=False))
    except UsageError as error:
        yield Finding("runtime folder", "fail", error.what, error.cure)
        return
    kind = _file_system(folder)
    if kind in _REMOTE:
        text = f"{folder} lies on {kind}, where locks and sockets may not work"
        cure = "Set OPENHCS_STREAM_RUNTIME_DIR to a folder on a disk of this machine."
        yield Finding("runtime folder", "warn", text, cure)
    elif len(os.fsencode(folder)) + _SOCKET_NAME > _SOCKET_PATH:
        text = f"the path {folder} is too long for sockets in it"
        cure = "Set OPENHCS_STREAM_RUNTIME_DIR to a shorter one."
        yield Finding("runtime folder", "fail", text, cure)
    else:
        where = f" ({kind})" if kind else ""
        yield Finding("runtime folder", "ok", f"{folder}{where}, {count} running viewers")


def _file_system(path: Path) -> str:
    """Of the mount that a path lies in; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = 0, ""
    for line in lines:
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind


def sockets() -> Iterator[Finding]:
    """The folders in which OpenHCS's programs, and our receivers for them, bind their sockets."""
    from openhcs_stream.dialects import FAMILIES, family_of

    for family in map(family_of, FAMILIES):
        folder = family.folder
        try:
            status = os.stat(folder)
        except FileNotFoundError:
            yield Finding("ipc folder", "ok", f"{folder} is not there yet; it is made when needed")
            continue
        except OSError as error:
            text = f"{folder} can't be looked at: {error.strerror}"
            yield Finding("ipc folder", "warn", text, "Give yourself the right to enter it.")
            continue
        mode = stat.S_IMODE(status.st_mode)
        name = f"/{family.prefix}-65535{family.extension}"
        if status.st_uid != os.getuid() or mode & 0o022:
            text = f"{folder} belongs to user {status.st_uid} and has mode {mode:04o}"
            cure = f"Others could put a socket of theirs there: `chmod go-w {folder}` as its owner."
            yield Finding("ipc folder", "warn", text, cure)
        elif len(os.fsencode(folder)) + len(name) > _SOCKET_PATH:
            text = f"the path {folder} is too long for sockets in it"
            yield Finding(
                "ipc folder", "warn", text, "OpenHCS senders reach this user by TCP only."
            )
        else:
            yield Finding("ipc folder", "ok", f"{folder}, mode {mode:04o}")


def leftovers() -> Iterator[Finding]:
    """What ``openhcs-stream gc`` would remove."""
    from openhcs_stream.cli._gc import look_around

    try:
        swept = sweep(dry_run=True)
    except UsageError:
        return  # runtime folder, above, says why
    if swept.removed:
        names = ", ".join(found.path.name for found in swept.removed[:5])
        text = f"{len(swept.removed)} of killed processes: {names}"
        yield Finding("stale files", "warn", text, "`openhcs-stream gc` removes them.")
    else:
        yield Finding("stale files", "ok", "none")
    others = list(look_around(swept))
    if others:
        nbytes = sum(found.nbytes for found in others)
        text = f"{len(others)} that look like OpenHCS's own ({nbytes / 1e6:.1f} MB)"
        cure = "`openhcs-stream gc --dry-run` lists them; remove by hand what nobody uses."
        yield Finding("others' files", "warn", text, cure)


def ports() -> Iterator[Finding]:
    """Those at which OpenHCS's senders look for viewers."""
    for port in _PORTS:
        check = f"port {port}"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            # As ZeroMQ does: connections that linger from before are no obstacle.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    text = f"can't be used: {error.strerror}"
                    yield Finding(check, "warn", text, "Choose another one with --port.")
                    continue
                text = f"is in use{_used_by(port)}"
                cure = "Choose another one with --port, or 0 for any free one."
                yield Finding(check, "warn", text, cure)
            else:
                yield Finding(check, "ok", "is free")


def _used_by(port: int) -> str:
    for endpoint in endpoints(clear=False):
        if endpoint.port == port:
            return f" by the running viewer {endpoint.name!r} (pid {endpoint.pid})"
    listening = _listening(port)
    for process in sorted(Path("/proc").glob("[0-9]*")):
        try:
            with os.scandir(process / "fd") as fds:
                is_it = any(os.readlink(fd.path) in listening for fd in fds)
            command = (process / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:  # another user's, or it ended
            continue
        if is_it:
            return f" by {command.decode('utf-8', 'replace')} (pid {process.name})"
    return " by another user's program" if listening else ""


def _listening(port: int) -> set[str]:
    """What a descriptor of a socket that listens at a port leads to."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def running() -> Iterator[Finding]:
    """Viewers that run: whether they answer, and are of this version."""
    try:
        found = endpoints(clear=False)
    except UsageError:
        return
    if not found:
        return
    from openhcs_stream.messages import MAJOR, MINOR
    from openhcs_stream.stream import ask

    ours = installed_version("openhcs-stream")
    for endpoint in found:
        check = f"viewer {endpoint.name}"
        if endpoint.protocol[0] != MAJOR:
            text = f"speaks protocol {endpoint.protocol[0]}, this side {MAJOR}.{MINOR}"
            cure = "Start it anew from the environment that the workers use."
            yield Finding(check, "fail", text, cure)
            continue
        try:
            status = ask(endpoint, "status", timeout_s=_ASK_S)
        except StreamError as error:
            cure = f"`openhcs-stream stop {endpoint.name} --force` ends it."
            yield Finding(check, "warn", f"does not answer: {error.what}", cure)
            continue
        theirs = status.get("version", "") if isinstance(status, dict) else ""
        if theirs != ours:
            text = f"is version {theirs or 'unknown'}, and this is {ours}"
            cure = "Start it anew from this environment, if something does not work."
            yield Finding(check, "warn", text, cure)
        else:
            yield Finding(check, "ok", f"pid {endpoint.pid}, version {theirs}, answers")
