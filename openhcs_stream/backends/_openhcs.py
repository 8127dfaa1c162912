"""OpenHCS's own streaming outputs through this package: one call, and nothing else changes.

Nothing of OpenHCS is imported before that call, and none of it is a dependency. Its registries of
storage backends are dictionaries that a metaclass fills; what is registered here is a subclass of
its own backend, so that whatever it asks of one is answered as before, and only the way of the data
is another.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from openhcs_stream.backends._fiji import FijiStreamingBackend
from openhcs_stream.backends._napari import NapariStreamingBackend
from openhcs_stream.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openhcs_stream.backends._base import StreamingBackend

__all__ = ["register_with_openhcs"]

logger = logging.getLogger(__name__)

#: Packages that have the registry and the two backends as modules of these names: since
#: generation 2, and generation 1.
_FAMILIES = ("polystore", "openhcs.io")
_BACKENDS: dict[str, tuple[str, type[StreamingBackend]]] = {
    "napari_stream": ("NapariStreamingBackend", NapariStreamingBackend),
    "fiji_stream": ("FijiStreamingBackend", FijiStreamingBackend),
}


def register_with_openhcs() -> tuple[str, ...]:
    """Have OpenHCS's napari_stream and fiji_stream outputs go through this package.

    Call it in the process that runs the pipeline, before it starts: in the pipeline's own file, or
    where the execution server is started. Processes that are forked afterwards have it as well.
    Calling it again does nothing. The pipeline's settings stay as they are: what it streams goes to
    the viewer at the port that they name, ours or OpenHCS's own.

    Returns
    -------
    tuple of str
        What was registered: ``("polystore:napari_stream", "polystore:fiji_stream")``.

    Raises
    ------
    UsageError
        Neither OpenHCS nor polystore is installed here.
    """
    done: list[str] = []
    for family in _FAMILIES:
        if not _is_installed(f"{family}.backend_registry"):
            continue
        for key in _BACKENDS:
            _register(family, key)
            done.append(f"{family}:{key}")
    if not done:
        raise UsageError(
            "neither OpenHCS nor polystore is installed in this environment.",
            cure="Install openhcs-stream where the pipeline runs, beside OpenHCS.",
        )
    return tuple(done)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # one of its parents
        return False


def _register(family: str, key: str) -> None:
    """Put our subclass in the place of one of their backends."""
    registry = importlib.import_module(f"{family}.backend_registry")
    name, ours = _BACKENDS[key]
    # Where it is in their registry, importing it put it there. (In openhcs 0.3 it never is.)
    original = getattr(importlib.import_module(f"{family}.{key}"), name)
    try:
        # What they find by themselves they find now: later it would take our place.
        original = registry.STORAGE_BACKENDS.get(key, original)
    except Exception as error:
        # For instance of a package that another backend of theirs needs and does not ask for.
        logger.warning("%s can't list its storage backends: %s", family, error)
    if issubclass(original, _ThroughStreams):
        return
    made = type(original)(  # by their metaclass
        original.__name__,
        (_ThroughStreams, original),
        {
            "__module__": __name__,
            "__doc__": f"OpenHCS's {key}, by way of openhcs-stream.",
            "_ours": ours,
            # Their metaclass registers a class when it is made; since 0.4 it asks whose place it is
            # to take.
            "__replaces_registered__": original,
        },
    )
    registry.STORAGE_BACKENDS[key] = made
    # An instance that was made before would be used for ever.
    cached = getattr(registry, "_backend_instances", {}).pop(key, None)
    if cached is not None:
        cached.cleanup()
    shared = getattr(importlib.import_module(f"{family}.base"), "storage_registry", None)
    if isinstance(shared, dict) and dict.__contains__(shared, key):
        shared[key] = registry.get_backend_instance(key)


class _ThroughStreams:
    """What is put before their backend in the order of resolution."""

    _ours: ClassVar[type[StreamingBackend]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._streams = self._ours()

    def save(self, data: Any, file_path: Any, **kwargs: Any) -> None:
        """Show one thing; a text is passed over, as by the original."""
        if not isinstance(data, str):
            self.save_batch([data], [file_path], **kwargs)

    def save_batch(
        self, data_list: Sequence[Any], file_paths: Sequence[Any], **kwargs: Any
    ) -> None:
        """Show a batch; raises what `openhcs_stream.backends.StreamingBackend` does."""
        request = kwargs.get("stream_request")
        if request is None:
            self._streams.save_batch(data_list, file_paths, **kwargs)
            return
        kept = [
            (index, data, path)
            for index, (data, path) in enumerate(zip(data_list, file_paths, strict=True))
            if self.accepts_payload(data, path)  # type: ignore[attr-defined]
        ]
        # What one step made is one layer.
        by_source: dict[str, list[tuple[int, Any, Any]]] = {}
        for each in kept:
            by_source.setdefault(_source_of(request, each[0]), []).append(each)
        for source, items in by_source.items():
            self._streams.save_batch(
                [data for _, data, _ in items],
                [path for _, _, path in items],
                components=[
                    request.source.metadata.component_metadata_for_item(path, index)
                    for index, _, path in items
                ],
                source=source,
                **_settings_of(request),
            )

    def cleanup(self) -> None:
        """Close the streams; what is on the screen stays there."""
        streams = self.__dict__.get("_streams")
        if streams is not None:
            streams.cleanup()
        super().cleanup()  # type: ignore[misc]

    cleanup_connections = cleanup


def _source_of(request: Any, index: int) -> str:
    identity = request.producer.identity_for_item(index)
    return str(identity.step_name or identity.output_key)


def _settings_of(request: Any) -> dict[str, Any]:
    """A request of generations 2 and 3 in the keywords of generation 1, which are ours."""
    semantics = request.display_semantics
    modes = semantics.component_modes
    extra = request.display_config.display_payload_extra()
    look = {str(getattr(key, "value", key)): value for key, value in extra.items()}
    display = SimpleNamespace(
        COMPONENT_ORDER=tuple(semantics.component_order),
        **{f"{component}_mode": mode for component, mode in modes.items()},
        **look,
    )
    return {
        "host": request.host,
        "port": request.port,
        "transport_mode": request.transport_mode,
        "display_config": display,
        "images_dir": request.images_dir,
    }
