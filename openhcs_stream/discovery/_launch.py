"""Start a viewer as a process of its own that outlives the worker that started it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import site
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from openhcs_stream.discovery._endpoints import Endpoint, endpoints, find
from openhcs_stream.discovery._kinds import installed_viewers, unknown_viewer
from openhcs_stream.errors import DeadlineExceeded, ViewerUnreachable
from openhcs_stream.runtime import (
    RUNTIME_VARIABLE,
    is_at,
    runtime_folder,
    try_exclusive,
    try_shared,
    unlock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["DETACH_VARIABLE", "detach", "launch", "log_file"]

_log = logging.getLogger(__name__)

#: Number of the descriptor that a launched viewer holds open until it is ready.
DETACH_VARIABLE = "OPENHCS_STREAM_DETACH_FD"

_POLL_S = 0.02
_LOG_NBYTES = 1 << 20
_LOG_LINES = 20
_TAIL_NBYTES = 1 << 14
#: How long a viewer that is not wanted any more may take to end by itself.
_END_S = 5.0


def log_file(viewer: str) -> Path:
    """Where launched viewers of this kind write what they say."""
    return runtime_folder() / f"{viewer}.log"


def launch(
    viewer: str,
    *,
    timeout_s: float,
    name: str | None = None,
    port: int | None = None,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Endpoint:
    """Start a viewer, or return the one that somebody else just started.

    However many processes call this at once, one viewer is started: a lock in the runtime folder
    lets one of them start it, and the others then find it. The viewer has a session of its own,
    inherits no descriptors, is nobody's child, and so survives the caller, its process group and
    its terminal. One that is not ready in time is ended again, and one whose launcher dies before
    it is ready ends: nobody waits for it, and the next launcher starts another.

    Parameters
    ----------
    viewer : str
        Which kind: "napari".
    timeout_s : float
        Within how many seconds it must be ready, waiting for other launchers included.
    name : str or None
        Find, or else start, the viewer of this name.
    port : int or None
        Find, or else start, the viewer on this TCP port.
    options : sequence of str
        More options for ``openhcs-stream VIEWER``, where one is started.
    env : mapping or None
        The new process's environment; None: this process's.

    Raises
    ------
    UnknownViewer
        No viewer of that name is installed.
    ViewerUnreachable
        It ended before it was ready; the last lines of its log are in the text.
    DeadlineExceeded
        It was not ready in time.
    UsageError
        The runtime folder can't be trusted.
    """
    if viewer not in installed_viewers():
        raise unknown_viewer(viewer)
    return launch_command(
        # -P: or else `-m` looks into the current folder first, whatever lies there.
        [sys.executable, "-P", "-m", "openhcs_stream", viewer],
        viewer,
        timeout_s=timeout_s,
        name=name,
        port=port,
        options=options,
        env=env,
    )


def launch_command(
    command: Sequence[str],
    viewer: str,
    *,
    timeout_s: float,
    name: str | None,
    port: int | None,
    options: Sequence[str],
    env: Mapping[str, str] | None,
) -> Endpoint:
    """`launch` by another command, which must call `detach` first and publish in the end."""
    deadline = time.monotonic() + timeout_s
    with _launch_lock(viewer, deadline, timeout_s):
        endpoint = find(viewer, name=name, port=port)
        if endpoint is not None:
            return endpoint
        arguments = list(command)
        if name is not None:
            arguments += ["--name", name]
        if port is not None:
            arguments += ["--port", str(port)]
        arguments += options
        return _start(arguments, viewer, name, port, env, deadline, timeout_s)


def detach() -> Callable[[], None]:
    """In a launched process, before anything else: become nobody's child.

    Must run before the first thread. In a process that `launch` started it forks, the parent
    ends, and the child goes on as the viewer; in any other process it does nothing.

    Returns
    -------
    callable
        To be called once the viewer is published: wakes the launcher. Until then the launcher
        takes this process's end for a failure to start, and this process ends with its launcher.
    """
    text = os.environ.pop(DETACH_VARIABLE, "")
    if not text.isdigit():
        return lambda: None
    fd = int(text)
    os.set_inheritable(fd, False)
    if os.fork() != 0:
        os._exit(0)
    # A descriptor that a thread polls can't be closed in the kernel's eyes: so the thread is woken.
    woken, wake = os.pipe()
    watch = threading.Thread(
        target=_end_with_launcher, args=(fd, woken), name="launcher", daemon=True
    )
    watch.start()
    held = [wake, woken, fd]

    def ready() -> None:
        if held:
            os.close(held.pop(0))
            watch.join()
        while held:
            os.close(held.pop())

    return ready


def _end_with_launcher(pipe: int, woken: int) -> None:
    """End this process and its group where the pipe's reader dies before anything is published."""
    poll = select.poll()
    poll.register(pipe, 0)  # errors are told unasked
    poll.register(woken, select.POLLIN)
    if woken in (fd for fd, _ in poll.poll()):
        return
    # The launcher that found this viewer may close its end before `ready` is called.
    if any(endpoint.pid == os.getpid() for endpoint in endpoints(clear=False)):
        return
    _log.warning("whoever started this viewer died before it was ready; it ends")
    os.killpg(0, signal.SIGTERM)
    if not _has_ended(woken, _END_S):
        os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _launch_lock(viewer: str, deadline: float, timeout_s: float) -> Iterator[None]:
    path = runtime_folder() / f".launch-{viewer}.lock"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if try_exclusive(fd) and is_at(fd, path):
            break
        os.close(fd)
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(
                f"another process has been starting a {viewer} viewer for {timeout_s:g} s.",
                cure=f"See {log_file(viewer)} for what it waits for, or allow more time.",
            )
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # ours while we hold the lock
        unlock(fd)  # not by closing: another thread may have forked, and the child holds it too
        os.close(fd)


def _start(
    command: Sequence[str],
    viewer: str,
    name: str | None,
    port: int | None,
    env: Mapping[str, str] | None,
    deadline: float,
    timeout_s: float,
) -> Endpoint:
    import subprocess

    folder = runtime_folder()
    ours, theirs = os.pipe()
    log_fd, log_start = _open_log(viewer)
    try:
        process = subprocess.Popen(
            command,
            env=_environment(env, folder, theirs),
            cwd=_home(),  # not the worker's folder: that may be unmounted before the viewer ends
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
            pass_fds=(theirs,),
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        os.close(log_fd)
    # From here on the pipe's end of file means that the viewer is ready, or has ended.
    ready = False
    try:
        while True:
            left_s = deadline - time.monotonic()
            told = _has_ended(ours, max(0.0, min(_POLL_S, left_s)))
            endpoint = find(viewer, name=name, port=port)
            if endpoint is not None:
                ready = True
                return endpoint
            if told:
                raise ViewerUnreachable(
                    f"the {viewer} viewer ended before it was ready. Its last words:",
                    lines=_tail(viewer, log_start),
                    cure="Run `openhcs-stream doctor` to see what this machine lacks, or "
                    f"`openhcs-stream {viewer}` to watch it start.",
                )
            if left_s <= 0:
                raise DeadlineExceeded(
                    f"the {viewer} viewer was not ready within {timeout_s:g} s. Its last words:",
                    lines=_tail(viewer, log_start),
                    cure=f"Allow more time, or start it beforehand with `openhcs-stream {viewer}`.",
                )
    finally:
        if not ready:
            _end_group(process.pid, ours)
        os.close(ours)
        # It forks before it is ready, so that this is its end and takes no time.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def _home() -> Path:
    home = Path.home()
    return home if os.access(home, os.R_OK | os.X_OK) else Path("/")


def _environment(env: Mapping[str, str] | None, folder: Path, fd: int) -> dict[str, str]:
    merged = dict(os.environ if env is None else env)
    # Both sides must look into the same folder, whatever TMPDIR and XDG_RUNTIME_DIR say there.
    merged[RUNTIME_VARIABLE] = str(folder)
    merged[DETACH_VARIABLE] = str(fd)
    merged["PYTHONUNBUFFERED"] = "1"  # its last words must be in the log when it dies
    # This very package, also where it is not installed but found through the current folder.
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in merged.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in paths and root not in site.getsitepackages():
        merged["PYTHONPATH"] = os.pathsep.join([*paths, root])
    return merged


def _open_log(viewer: str) -> tuple[int, int]:
    """The log's descriptor, for appending, and where this launch's lines begin.

    It is locked beside others who write there. The viewer inherits the open file, so that the
    lock lasts for as long as anybody writes.
    """
    path = log_file(viewer)
    while True:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        if try_shared(fd) and is_at(fd, path):
            break
        os.close(fd)  # a sweeper is removing it
        time.sleep(_POLL_S)
    size = os.fstat(fd).st_size
    if size > _LOG_NBYTES:
        os.ftruncate(fd, 0)
        size = 0
    return fd, size


def _tail(viewer: str, start: int) -> list[str]:
    with log_file(viewer).open("rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - _TAIL_NBYTES))
        text = log.read().decode("utf-8", "replace")
    return text.splitlines()[-_LOG_LINES:] or ["(nothing)"]


def _end_group(group: int, pipe: int) -> None:
    """End a process group whose first process is not reaped yet, so that its number is its own."""
    for number, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        except PermissionError as error:  # macOS says so of a group of zombies
            _log.debug("process group %d can't be signalled: %s", group, error)
            return
        if _has_ended(pipe, wait_s):
            return


def _has_ended(pipe: int, wait_s: float) -> bool:
    """Whether nobody holds the pipe's other end any more."""
    poll = select.poll()  # select() has no room for descriptors above 1023
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))
