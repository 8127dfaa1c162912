"""OpenHCS's control channel, the viewer's side: pickled dictionaries in, pickled dictionaries out.

The answers have every field that a client of any generation looks at (openhcs 0.3.15:
runtime/zmq_base.py, fiji_viewer_server.py; zmqruntime 0.2.24 and 0.6.5: messages.py, server.py;
openhcs 0.8.6: runtime/viewer_protocol.py). Commands whose request or answer is made of OpenHCS's
own classes can't be understood without importing it, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from openhcs_stream.dialects._pickles import dump_plain, load_plain
from openhcs_stream.errors import ProtocolViolation

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Heartbeat", "Progress", "control_answer", "pong", "read_command", "refusal"]

#: What clients of generations 2 and 3 know by name; a name that they don't know fails the ping.
_CAPABILITIES: Final = ["force_shutdown", "ping", "shutdown"]
_SERVERS: Final = {"napari": "NapariViewerServer", "fiji": "FijiViewerServer"}
_TITLES: Final = {"napari": "Napari", "fiji": "Fiji"}
_CLEARED: Final = {"fiji": "Dimension values cleared"}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a viewer tells of itself.

    Attributes
    ----------
    viewer : str
        "napari" or "fiji"; anything else counts as napari.
    port, control_port : int
    pid : int
    create_time : float
        When the process began, seconds since the epoch, as psutil has it.
    memory_mb : float
    uptime_s : float
    version : str
        Of this package.
    """

    viewer: str
    port: int
    control_port: int
    pid: int
    create_time: float
    memory_mb: float
    uptime_s: float
    version: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far what was received is displayed."""

    phase: Literal["running", "complete", "failed"]
    completed: int  #: items on the screen
    total: int  #: items received
    reason: str = ""  #: why one failed


def read_command(request: bytes | memoryview) -> str:
    """Read a control request; its command.

    Raises
    ------
    ProtocolViolation
        It is no pickled dictionary of plain values with a text as its type.
    """
    message = load_plain(request)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolViolation(
            f"a control request is {type(message).__name__} without a type.",
            cure='Send {"type": "ping"}, pickled.',
        )
    command: str = message["type"]
    return command[:100]


def pong(heartbeat: Heartbeat, *, version: str, generation: Literal[2, 3] = 2) -> bytes:
    """Answer a ping.

    Parameters
    ----------
    heartbeat : Heartbeat
        What it is told.
    version : str
        Of OpenHCS; clients of generation 2 use a viewer of their own version only. Empty: not
        told.
    generation : 2 or 3
        How the version is told: the two refuse each other's words for it.
    """
    viewer = heartbeat.viewer if heartbeat.viewer in _SERVERS else "napari"
    answer: dict[str, Any] = {
        "type": "pong",
        "port": heartbeat.port,
        "control_port": heartbeat.control_port,
        "ready": True,
        "server": _SERVERS[viewer],
        # Generation 1:
        "viewer": viewer,
        "openhcs": True,
        "memory_mb": heartbeat.memory_mb,
        "cpu_percent": 0.0,
        # Generations 2 and 3:
        "server_type": viewer,
        "server_role": "viewer",
        "control_capabilities": list(_CAPABILITIES),
        "process_identity": {"pid": heartbeat.pid, "create_time": heartbeat.create_time},
        "uptime": heartbeat.uptime_s,
        # Who we are, for who wants to know:
        "openhcs_stream": heartbeat.version,
    }
    if version and generation == 2:
        answer["application"] = {"application_id": "openhcs", "application_version": version}
    elif version:
        answer["application"] = {"identifier": "openhcs", "version": version}
    return dump_plain(answer)


def control_answer(command: str, viewer: str, progress: Progress) -> bytes:
    """Answer any command but a ping: shutdown, force_shutdown, clear_state, settle.

    Others are answered in the form of the viewer meant: Fiji's ``status: success``, or
    ``status: ok`` of generation 1, would say that they were obeyed; so it is an error.
    """
    title = _TITLES.get(viewer, "Napari")
    match command:
        case "shutdown" | "force_shutdown":
            return _answer("shutdown_ack", "success", f"{title} viewer shutting down")
        case "clear_state":
            message = _CLEARED.get(viewer, "Component groups cleared")
            return _answer("clear_state_ack", "success", message)
        case "settle":
            return _settled(progress)
        case _:
            return _answer("error", "error", f"Unsupported {title} control message: {command!r}.")


def refusal(reason: str) -> bytes:
    """Answer what could not be read."""
    return _answer("error", "error", reason)


def _settled(progress: Progress) -> bytes:
    failed = progress.phase == "failed"
    counts = f"{progress.completed}/{progress.total}"
    return _answer(
        "settle_ack",
        "error" if failed else "success",
        f"Viewer settlement failed: {progress.reason}"
        if failed
        else f"Viewer settlement progress: {counts}.",
        {
            "settle_phase": progress.phase,
            "completed_update_count": progress.completed,
            "total_update_count": progress.total,
            "active_route": None,
            "active_route_work_unit_count": 0,
            "active_route_work_unit_active": False,
        },
    )


def _answer(type_: str, status: str, message: str, more: Mapping[str, Any] | None = None) -> bytes:
    return dump_plain({"status": status, "type": type_, "message": message, **(more or {})})
