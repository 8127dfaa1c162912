"""The pipeline's storage-backend contract, on top of a stream.

A pipeline that saves its results through a storage backend streams them by saving them here. The
keywords are those that OpenHCS passes; everything is read by attribute or by name, and nothing of
OpenHCS is imported.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from openhcs_stream import rois
from openhcs_stream.backends._display import Display, read_display
from openhcs_stream.dialects import contrast_limits, ipc_address, read_axes, read_place
from openhcs_stream.discovery import find
from openhcs_stream.errors import (
    DeadlineExceeded,
    InvalidItem,
    ItemFailed,
)
from openhcs_stream.stream import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.dialects import ItemPlace
    from openhcs_stream.messages import Kind
    from openhcs_stream.stream import Common, Receipt, Stream

__all__ = ["StreamingBackend"]

logger = logging.getLogger(__name__)

_LOCAL_HOSTS = frozenset({"", "*", "localhost", "127.0.0.1", "::1", "0.0.0.0"})


@dataclass(frozen=True, slots=True)
class _Entry:
    """One item that was checked and is ready to be sent."""

    id: str
    path: str
    kind: Kind
    data: Any
    axes: str
    where: ItemPlace
    limits: tuple[float, float] | None

    @property
    def title(self) -> str:
        return f"{self.path} (id {self.id})"


class _Connection:
    """One stream, made when it is first used and again when its viewer is gone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stream: Stream | None = None

    def living(self, *, may_launch: bool) -> Stream | None:
        """The stream, if it is any good; under `lock`.

        It finds its viewer again by itself. Where the viewer was given up, another may be started
        in its place.
        """
        stream = self.stream
        is_alone = stream is not None and not stream.viewers and not stream.awaited
        if stream is not None and (stream.closed or (may_launch and is_alone)):
            self.close()
        return self.stream

    def close(self) -> None:
        """Close the stream, if there is one."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()


class StreamingBackend(ABC):
    """Saves arrays and ROIs by showing them in a running viewer.

    A subclass names its viewer and says how ROIs are prepared for it. Objects may be shared
    between threads; after a fork the child connects anew. `cleanup`, or leaving the ``with``
    block, closes the connections; what is on the screen stays there.
    """

    #: Registered name of the viewer: "napari".
    VIEWER_TYPE: ClassVar[str]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[str, _Connection] = {}
        _live.add(self)

    @abstractmethod
    def _prepare_rois_data(self, data: Any, file_path: str | os.PathLike[str]) -> Sequence[Any]:
        """Turn whatever the pipeline has as ROIs into what the viewer shows.

        The base class's version takes all that `openhcs_stream.rois.coerce` knows, and gives
        `Roi` objects. One in a viewer's own words has them as ``rois``, which is what is sent.
        """
        return rois.coerce(data)

    # --- the contract ---------------------------------------------------------------------------

    def save(self, data: Any, file_path: str | os.PathLike[str], **kwargs: Any) -> None:
        """Show one image or one list of ROIs: `save_batch` of one."""
        self.save_batch([data], [file_path], **kwargs)

    def save_batch(
        self,
        data_list: Sequence[Any],
        file_paths: Sequence[str | os.PathLike[str]],
        **kwargs: Any,
    ) -> None:
        """Show images and ROIs; return when the viewer has received them all.

        What fails later, on the way to the screen, is told by the queue tracker.

        Parameters
        ----------
        data_list : sequence
            Arrays (0 to 8 dimensions), or lists of ROIs, in any mixture.
        file_paths : sequence of path
            What each would be called on disk; the file's name tells its place.
        **kwargs
            host : str
                Where the viewer runs; "localhost".
            port : int
                The viewer's port. Without it a running viewer is found, or one is started.
            transport_mode : str or enum of str
                "ipc" (the default) or "tcp".
            display_config : object
                ``COMPONENT_ORDER``, ``<component>_mode``, the name of a colormap or lookup table,
                ``auto_contrast``: see `read_display`.
            microscope_handler : object
                Its ``parser.parse_filename(name)`` gives the components as a mapping. Without it
                items have no place.
            components : sequence of mapping
                Of each item, instead of what its file's name tells.
            source : str
                What made the items; layers are grouped by it. "unknown_source".
            images_dir : str or path
                Folder of the images that ROIs belong to.
            timeout_s : float
                Deadline for the whole call; 30.

            Others are ignored: a pipeline passes the same ones to every backend.

        Raises
        ------
        InvalidItem
            Unequal lengths, data that is neither image nor ROIs, a file name that the microscope
            handler can't read, unknown settings. Nothing was sent. It is a ValueError.
        ItemFailed
            The viewer did not take some items; `failures` names each with its reason.
        DeadlineExceeded
            Not all were received in time.
        ViewerUnreachable, ViewerLost
            There is no viewer, or no longer.
        """
        if len(data_list) != len(file_paths):
            raise InvalidItem(
                f"data_list and file_paths must have same length: they have {len(data_list)}"
                f" and {len(file_paths)} items.",
                cure="Pass one path for each item.",
            )
        timeout_s = float(kwargs.get("timeout_s", 30.0))
        deadline = time.monotonic() + timeout_s
        display = read_display(kwargs.get("display_config"), viewer=self.VIEWER_TYPE)
        source = str(kwargs.get("source") or "unknown_source")
        handler = kwargs.get("microscope_handler")
        components = kwargs.get("components") or [None] * len(data_list)
        entries = [
            self._check(
                data, path, display, _components(path, handler) if where is None else where, source
            )
            for data, path, where in zip(data_list, file_paths, components, strict=True)
        ]
        if not entries:
            return
        images_dir = os.fspath(kwargs.get("images_dir") or "")
        receipts: list[Receipt] = []
        stream = self._connected(kwargs, timeout_s)
        # The stream registers all items with the queue tracker before it tells of them.
        with stream.batch():
            receipts.extend(_send(stream, entry, display, source, images_dir) for entry in entries)
        _wait(entries, receipts, deadline, timeout_s)

    def cleanup(self) -> None:
        """Close all connections; idempotent, and the next save connects anew."""
        with self._lock:
            connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.close()

    def __enter__(self) -> Self:
        """Use it as a context manager, so that `cleanup` is not forgotten."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        self.cleanup()

    # --- before anything is sent ----------------------------------------------------------------

    def _check(
        self,
        data: Any,
        file_path: str | os.PathLike[str],
        display: Display,
        components: Mapping[str, Any],
        source: str,
    ) -> _Entry:
        path = os.fspath(file_path)
        metadata = {**components, "source": source}
        kind: Kind = "rois" if rois.looks_like_rois(data) else "image"
        where = read_place(metadata, kind=kind, modes=display.modes, order=display.order)
        axes, limits = "YX", None
        if kind == "rois":
            prepared = self._prepare_rois_data(data, file_path)
            data = getattr(prepared, "rois", prepared)
        else:
            data = _as_image(data, path)
            axes = read_axes(data.shape, where.components)
            limits = _limits(data, auto_contrast=display.auto_contrast)
        return _Entry(str(uuid.uuid4()), path, kind, data, axes, where, limits)

    # --- streams --------------------------------------------------------------------------------

    def _connected(self, kwargs: Mapping[str, Any], timeout_s: float) -> Stream:
        """The stream to this viewer: that of an earlier call, if it lives."""
        address, token = self._address(kwargs)
        with self._lock:
            connection = self._connections.setdefault(address, _Connection())
        # Not under the backend's lock: a viewer that does not answer delays nobody else.
        with connection.lock:
            may_launch = kwargs.get("port") is None
            stream = connection.living(may_launch=may_launch)
            if stream is None:
                stream = connection.stream = connect(
                    address,
                    name=f"{type(self).__name__} {os.getpid()}",
                    timeout_s=timeout_s,
                    launch=may_launch,
                    token=token,
                )
            return stream

    def _address(self, kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """What `connect` is asked for, and the token that opens it."""
        port = kwargs.get("port")
        host = str(kwargs.get("host") or "localhost")
        mode = kwargs.get("transport_mode")
        mode = "ipc" if mode is None else str(getattr(mode, "value", mode)).lower()
        if mode not in ("ipc", "tcp"):
            raise InvalidItem(
                f"transport_mode={kwargs['transport_mode']!r} is unknown.",
                cure='Use "ipc" or "tcp".',
            )
        local = host in _LOCAL_HOSTS
        if port is None:
            if not local:
                raise InvalidItem(
                    f"a viewer on {host!r} can't be found without its port.", cure="Pass port=."
                )
            return self.VIEWER_TYPE, ""
        if not isinstance(port, int | np.integer) or not 0 < port < 65536:
            raise InvalidItem(f"port={port!r} is no port.", cure="Pass a number of 1 to 65535.")
        port = int(port)
        if not local:
            # There is no ipc to another machine, whatever the pipeline's setting says.
            return f"tcp://{host}:{port}", ""
        running = find(self.VIEWER_TYPE, port=port)
        if running is not None:
            fitting = (each for each in running.addresses if each.startswith(f"{mode}://"))
            return next(fitting, running.addresses[0]), running.token
        if mode == "ipc" and os.path.exists(ipc_address(port).removeprefix("ipc://")):
            return ipc_address(port), ""
        return f"tcp://127.0.0.1:{port}", ""

    def _after_fork(self) -> None:
        """In a forked child: connections, and the lock that a thread may hold, are the parent's."""
        _inherited.append(self._connections)
        self._lock = threading.Lock()
        self._connections = {}


#: A parent's streams, in its forked child: never used, and never collected there, because to
#: close their sockets would disturb the parent.
_inherited: list[object] = []
_live: weakref.WeakSet[StreamingBackend] = weakref.WeakSet()


def _forget_parents_streams() -> None:
    for backend in list(_live):
        backend._after_fork()  # noqa: SLF001 - the same module's


os.register_at_fork(after_in_child=_forget_parents_streams)


def _components(path: str | os.PathLike[str], handler: Any) -> Mapping[str, Any]:
    if handler is None:
        return {}
    name = os.path.basename(path)
    found = handler.parser.parse_filename(name)
    if not isinstance(found, Mapping):
        raise InvalidItem(
            f"{type(handler.parser).__name__}.parse_filename({name!r}) gave {found!r}: the file's"
            " name does not tell its place.",
            cure="Name the file as the microscope does, or pass microscope_handler=None to show it"
            " without a place.",
        )
    return found


def _as_image(data: Any, path: str) -> Any:
    """Check that data is an array, or make it one; what it holds the stream checks."""
    if isinstance(data, str | bytes | bytearray | Mapping | set | frozenset) or data is None:
        problem = f"{type(data).__name__} is neither an image nor ROIs"
    elif hasattr(data, "shape"):
        return data
    else:
        try:
            array = np.asarray(data)
        except (TypeError, ValueError) as error:
            problem = f"{type(data).__name__} is no array: {error}"
        else:
            if array.dtype.kind in "biuf":
                return array
            problem = f"{type(data).__name__} is neither an image nor ROIs"
    raise InvalidItem(
        f"the data for {path!r} can't be shown: {problem}.",
        cure="Save text and tables with a backend that writes files; stream arrays and ROIs.",
    )


def _limits(data: Any, *, auto_contrast: bool) -> tuple[float, float] | None:
    if auto_contrast:
        return None
    try:
        # torch.uint8 and its like are no numpy dtypes, but are called as one.
        dtype = np.dtype(str(data.dtype).rpartition(".")[2])
    except (AttributeError, TypeError):
        return None
    return contrast_limits(dtype, auto_contrast=False)


def _send(stream: Stream, entry: _Entry, display: Display, source: str, images_dir: str) -> Receipt:
    where = entry.where
    common: Common = {
        "source": source,
        "modes": display.modes,
        "order": display.order,
        "images_dir": images_dir,
        "metadata": {**where.rest, "id": entry.id, "path": entry.path},
    }
    place = dict(zip(where.components, where.place, strict=True))
    if entry.kind == "rois":
        receipt = stream.rois(entry.data, name=where.name, place=place, warn=False, **common)
        for remark in receipt.remarks:
            logger.warning("%s, in %s.", entry.title, remark)
        return receipt
    return stream.image(
        entry.data,
        name=where.name,
        axes=entry.axes,
        place=place,
        colormap=display.colormap,
        contrast_limits=entry.limits,
        **common,
    )


def _wait(
    entries: Sequence[_Entry], receipts: Sequence[Receipt], deadline: float, timeout_s: float
) -> None:
    """Wait for all of them, and tell of all that failed or came late."""
    failures: list[tuple[str, str]] = []
    late: list[str] = []
    for entry, receipt in zip(entries, receipts, strict=True):
        try:
            receipt.wait("received", timeout_s=max(0.0, deadline - time.monotonic()))
        except ItemFailed:
            failures.append((entry.title, receipt.reason))
        except DeadlineExceeded:
            late.append(entry.title)
    if failures:
        told = "; ".join(f"{title}: {reason}" for title, reason in failures[:_TOLD])
        raise ItemFailed(
            f"{len(failures)} of {len(entries)} items were not received: {told}"
            f"{_more(len(failures))}.",
            cure="The failures attribute of this error lists them.",
            failures=tuple(failures),
        )
    if late:
        raise DeadlineExceeded(
            f"{len(late)} of {len(entries)} items were not received within {timeout_s:g} s:"
            f" {'; '.join(late[:_TOLD])}{_more(len(late))}.",
            cure="Allow more time with timeout_s=, or look whether the viewer is busy or stopped.",
        )


#: Items that an error's text spells out.
_TOLD = 10


def _more(count: int) -> str:
    return f"; and {count - _TOLD} more" if count > _TOLD else ""
