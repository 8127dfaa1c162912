"""Where programs of the OpenHCS family meet: sockets in the home folder, ports, one for replies.

OpenHCS and polystore bind the same kinds of sockets under names of their own. polystore's can be
changed by environment variables, which a viewer must share with its senders to be found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FAMILIES", "Family", "family_of", "ipc_address"]


@dataclass(frozen=True, slots=True)
class Family:
    """How one application names its sockets.

    Attributes
    ----------
    name : str
    folder : Path
    prefix, extension : str
        Of the socket files: ``prefix-PORT.extension``.
    control_offset : int
        From a viewer's data port to its control port.
    ack_port : int
        On which every sender of generations 1 and 2 listens for acknowledgements.
    """

    name: str
    folder: Path
    prefix: str
    extension: str = ".sock"
    control_offset: int = 1000
    ack_port: int = 7555

    def ipc(self, port: int, *, make_folder: bool = False) -> str:
        """Return the ipc address of a port; `make_folder`: for this user only."""
        if make_folder:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return f"ipc://{self.folder / f'{self.prefix}-{port}{self.extension}'}"

    def ack_address(self, *, local_ipc: bool) -> str:
        """Return where senders of generations 1 and 2 listen."""
        return self.ipc(self.ack_port) if local_ipc else f"tcp://127.0.0.1:{self.ack_port}"


def _openhcs(_: Mapping[str, str]) -> Family:
    return Family("openhcs", Path.home() / ".openhcs" / "ipc", "openhcs-zmq")


def _polystore(environ: Mapping[str, str]) -> Family:
    application = environ.get("POLYSTORE_ZMQ_APP_NAME", "polystore")
    return Family(
        name="polystore",
        folder=Path.home() / f".{application}" / environ.get("POLYSTORE_ZMQ_IPC_DIR", "ipc"),
        prefix=environ.get("POLYSTORE_ZMQ_IPC_PREFIX", "polystore-zmq"),
        extension=environ.get("POLYSTORE_ZMQ_IPC_EXT", ".sock"),
        control_offset=_number(environ.get("POLYSTORE_ZMQ_CONTROL_OFFSET", ""), 1000),
        ack_port=_number(environ.get("POLYSTORE_ZMQ_ACK_PORT", ""), 7555),
    )


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65536 else default


_MAKERS: dict[str, Callable[[Mapping[str, str]], Family]] = {
    "openhcs": _openhcs,
    "polystore": _polystore,
}

#: Names of the families that are known.
FAMILIES = tuple(_MAKERS)


def family_of(name: str = "openhcs") -> Family:
    """Return a family as it is for this user and environment now; unknown names are OpenHCS."""
    return _MAKERS.get(name, _openhcs)(os.environ)


def ipc_address(port: int, *, make_folder: bool = False) -> str:
    """Return where an OpenHCS viewer of this port binds its ipc socket, and its senders connect.

    Parameters
    ----------
    port : int
        The viewer's port.
    make_folder : bool
        Make the folder that the socket lies in, for this user only: for who binds. Where OpenHCS
        was never run it is not there.
    """
    return family_of().ipc(port, make_folder=make_folder)
