"""The doctor's checks of memory, sockets, limits and graphics cards."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.cli._findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cuda", "limits", "passing", "shared_memory"]

_MIB = 1 << 20
#: Files that a viewer with a few dozen streams opens at once.
_FILES = 1024
#: Address space below which a few arenas of up to 1 GiB, and what they show, find no room.
_ADDRESSES = 8 << 30


def shared_memory() -> Iterator[Finding]:
    """Memory without a name, for our own pixels; /dev/shm for those of OpenHCS."""
    if sys.platform != "linux":
        text = f"only Linux is supported for now; this is {platform.system()}"
        yield Finding("memfd", "warn", text, "Pixels travel through ZeroMQ, more slowly.")
        return
    try:
        fd = os.memfd_create("openhcs-stream-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        finally:
            os.close(fd)
    except OSError as error:
        cure = "Allow memfd_create (a seccomp profile may forbid it); without it pixels travel "
        text = f"shared memory can't be made: {error.strerror}"
        yield Finding("memfd", "fail", text, cure + "through ZeroMQ.")
    else:
        yield Finding("memfd", "ok", "shared memory can be made and sealed")
    yield from _dev_shm()


def _dev_shm() -> Iterator[Finding]:
    """Named blocks of OpenHCS senders lie there; our own pixels do not."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        text = f"can't be looked at: {error.strerror}"
        yield Finding("/dev/shm", "warn", text, "OpenHCS senders need it; mount a tmpfs there.")
        return
    size, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    text = f"{size // _MIB} MiB, {free // _MIB} MiB free"
    if free < 256 * _MIB:
        cure = "Images of OpenHCS senders may not fit; in a container use --shm-size=2g."
        yield Finding("/dev/shm", "warn", text, cure)
    else:
        yield Finding("/dev/shm", "ok", text)


def passing() -> Iterator[Finding]:
    """Whether unix sockets carry memory from one process to another."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(ours, [b"x"], [ours.fileno()])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        for fd in fds:
            os.close(fd)
    except OSError as error:
        text = f"unix sockets that pass memory don't work: {error.strerror}"
        yield Finding("unix sockets", "fail", text, "Pixels travel through ZeroMQ, more slowly.")
    else:
        yield Finding("unix sockets", "ok", "they pass memory between processes")


def limits() -> Iterator[Finding]:
    """What the shell, the service manager or the container allows this process."""
    import resource

    unlimited = resource.RLIM_INFINITY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(soft)} open files, at most {_limit(hard)}"
    if soft != unlimited and soft < _FILES:
        yield Finding("nofile", "warn", text, f"Raise it: `ulimit -n {_FILES * 4}`.")
    else:
        yield Finding("nofile", "ok", text)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    kib = "unlimited" if soft == unlimited else f"{soft >> 10} KiB"
    yield Finding("memlock", "ok", f"{kib} of locked memory; none is needed")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != unlimited and soft < _ADDRESSES:
        text = f"{soft // _MIB} MiB of addresses; shared memory and what is shown need some each"
        yield Finding("address space", "warn", text, "Raise it: `ulimit -v unlimited`.")
    else:
        found = "unlimited" if soft == unlimited else f"{soft // _MIB} MiB"
        yield Finding("address space", "ok", found)
    yield from _memory_limit()


def _limit(number: int) -> str:
    import resource

    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _memory_limit() -> Iterator[Finding]:
    """A memfd's pages count against the control group, also of a container."""
    limit = min((bytes_ for bytes_ in map(_read_limit, _limit_files()) if bytes_), default=0)
    if not limit or limit >= 1 << 60:  # version 1 writes a huge number for none
        yield Finding("cgroup memory", "ok", "no limit")
    elif limit < 2048 * _MIB:
        cure = "Shared memory counts against it: allow 2 GiB, or give connect() a quota_nbytes."
        yield Finding("cgroup memory", "warn", f"limited to {limit // _MIB} MiB", cure)
    else:
        yield Finding("cgroup memory", "ok", f"limited to {limit // _MIB} MiB")


def _limit_files() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            folder = root / group.strip("/")
            while folder.is_relative_to(root):  # each level limits those below
                yield folder / "memory.max"
                folder = folder.parent
        elif "memory" in controllers.split(","):
            yield root / "memory" / group.strip("/") / "memory.limit_in_bytes"
            yield root / "memory" / "memory.limit_in_bytes"


def _read_limit(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def cuda() -> Iterator[Finding]:
    """Nothing needs one: arrays on a graphics card are copied from there when they are sent."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("cuda", "ok", "no NVIDIA card is seen; none is needed")
        return
    try:
        tried = subprocess.run(
            [program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10.0,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("cuda", "ok", f"nvidia-smi does not answer ({error}); no card is needed")
        return
    yield Finding("cuda", "ok", "; ".join(tried.stdout.split("\n")[:4]).strip("; "))
