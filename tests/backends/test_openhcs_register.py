"""Registering with OpenHCS: what is done in its registries, and what then goes where.

The packages here have the registries of polystore 0.2 and openhcs 0.3, as far as they are asked;
the real ones are driven by scripts/interop.
"""

from __future__ import annotations

import enum
import sys
import threading
import types
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from openhcs_stream.backends import register_with_openhcs
from openhcs_stream.errors import UsageError
from openhcs_stream.viewer import MemoryViewer, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = ("napari_stream", "fiji_stream")


class Registry(dict[str, Any]):
    """Theirs finds its backends when it is first looked into."""

    is_broken = False

    def get(self, key: str, default: Any = None) -> Any:
        if self.is_broken:
            raise ImportError("no pandas here")
        return super().get(key, default)


class Meta(type):
    """Theirs registers each class that has a name of its own."""

    registry: ClassVar[Registry]

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        key = namespace.get("_backend_type") or getattr(cls, "_backend_type", None)
        if key is None:
            return
        registered = dict.get(cls.registry, key)
        if registered is not None and namespace.get("__replaces_registered__") is not registered:
            raise ValueError(f"{key} is registered already")
        cls.registry[key] = cls


class Packages:
    """A family of theirs, for as long as a test runs."""

    def __init__(self, patch: pytest.MonkeyPatch, family: str) -> None:
        self.family = family
        self.registry = Registry()
        meta = type("AutoRegisterMeta", (Meta,), {"registry": self.registry})
        self.instances: dict[str, Any] = {}
        modules = {
            "backend_registry": self._registry_module(),
            "base": types.ModuleType("base"),
        }
        self.shared = modules["base"].storage_registry = {}  # type: ignore[attr-defined]
        for key in KEYS:
            name = "NapariStreamingBackend" if key.startswith("napari") else "FijiStreamingBackend"
            modules[key] = types.ModuleType(key)
            original = meta(name, (Original,), {"_backend_type": key, "__module__": key})
            setattr(modules[key], name, original)
        parents = family.split(".")
        for depth in range(1, len(parents) + 1):
            package = types.ModuleType(".".join(parents[:depth]))
            package.__path__ = []
            package.__spec__ = SimpleNamespace(  # type: ignore[assignment]
                submodule_search_locations=[], name=package.__name__
            )
            patch.setitem(sys.modules, package.__name__, package)
        for name, module in modules.items():
            full = f"{family}.{name}"
            module.__spec__ = SimpleNamespace(name=full)  # type: ignore[assignment]
            patch.setitem(sys.modules, full, module)

    def _registry_module(self) -> types.ModuleType:
        module = types.ModuleType("backend_registry")

        def get_backend_instance(key: str) -> Any:
            if key not in self.instances:
                self.instances[key] = self.registry[key]()
            return self.instances[key]

        module.STORAGE_BACKENDS = self.registry  # type: ignore[attr-defined]
        module._backend_instances = self.instances  # type: ignore[attr-defined]
        module.get_backend_instance = get_backend_instance  # type: ignore[attr-defined]
        return module


class Original:
    """What their backends are asked for beside sending."""

    cleaned = 0

    def save_batch(self, data: Any, paths: Any, **kwargs: Any) -> None:
        raise AssertionError("the original was asked to send")

    def accepts_payload(self, data: Any, path: Any) -> bool:
        return not str(path).endswith(".csv")

    def their_own_question(self) -> str:
        return "answered as before"

    def cleanup(self) -> None:
        type(self).cleaned += 1


@pytest.fixture
def receiver(home: Path) -> Iterator[tuple[MemoryViewer, int]]:
    viewer = MemoryViewer()
    made = Receiver(viewer, port=0)
    port = made.start().port
    assert port is not None
    thread = threading.Thread(target=viewer.run, args=(made.tick, 0.01))
    thread.start()
    yield viewer, port
    viewer.stop()
    thread.join(20)
    made.close()


class Word(enum.Enum):
    COLORMAP = "colormap"


def request(port: int, places: list[dict[str, Any]], steps: list[str]) -> SimpleNamespace:
    """A stream request of generation 2: what their pipeline hands over."""
    modes = {"site": "stack", "channel": "layer", "z_index": "stack", "well": "stack"}
    return SimpleNamespace(
        host="localhost", port=port, transport_mode=SimpleNamespace(value="tcp"),
        images_dir="/plate",
        display_semantics=SimpleNamespace(component_modes=modes, component_order=tuple(modes)),
        display_config=SimpleNamespace(
            display_payload_extra=lambda: {Word.COLORMAP: "green"}
        ),
        producer=SimpleNamespace(
            identity_for_item=lambda n: SimpleNamespace(step_name=steps[n], output_key="image")
        ),
        source=SimpleNamespace(
            metadata=SimpleNamespace(component_metadata_for_item=lambda path, n: places[n])
        ),
    )  # fmt: skip


def test_without_openhcs_it_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="neither OpenHCS nor polystore") as caught:
        register_with_openhcs()
    assert "beside OpenHCS" in caught.value.cure


@pytest.mark.parametrize("family", ["polystore", "openhcs.io"])
def test_both_backends_take_the_place_of_theirs(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    theirs = Packages(monkeypatch, family)
    originals = dict(theirs.registry)
    assert register_with_openhcs() == tuple(f"{family}:{key}" for key in KEYS)
    for key in KEYS:
        made = theirs.registry[key]
        assert issubclass(made, originals[key])
        assert made is not originals[key]
        assert made.__name__ == originals[key].__name__
        assert made().their_own_question() == "answered as before"


def test_a_second_time_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Packages(monkeypatch, "polystore")
    register_with_openhcs()
    first = dict(theirs.registry)
    assert register_with_openhcs() == tuple(f"polystore:{key}" for key in KEYS)
    assert dict(theirs.registry) == first


def test_instances_that_were_made_before_are_not_used_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = Packages(monkeypatch, "polystore")
    module = sys.modules["polystore.backend_registry"]
    old = theirs.shared["napari_stream"] = module.get_backend_instance("napari_stream")
    register_with_openhcs()
    assert type(old).cleaned == 1
    new = module.get_backend_instance("napari_stream")
    assert new is not old
    assert theirs.shared["napari_stream"] is new
    assert "fiji_stream" not in theirs.shared


def test_a_registry_that_can_not_list_is_told_and_gone_round(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = Packages(monkeypatch, "polystore")
    theirs.registry.is_broken = True
    register_with_openhcs()
    assert "no pandas here" in caplog.text
    assert theirs.registry["fiji_stream"]().their_own_question() == "answered as before"


def test_a_request_of_theirs_reaches_a_viewer_at_its_place(
    monkeypatch: pytest.MonkeyPatch, receiver: tuple[MemoryViewer, int]
) -> None:
    shown, port = receiver
    theirs = Packages(monkeypatch, "polystore")
    register_with_openhcs()
    backend = theirs.registry["napari_stream"]()
    images = [np.full((4, 6), value, np.uint16) for value in (1, 2, 3)]
    places = [
        {"site": 1, "channel": channel, "z_index": z, "well": "A01"}
        for channel, z in ((1, 1), (1, 2), (2, 1))
    ]
    paths = ["/plate/a.tif", "/plate/b.tif", "/plate/c.tif", "/plate/table.csv"]
    steps = ["segment", "segment", "register", "register"]
    backend.save_batch([*images, "text"], paths, stream_request=request(port, [*places, {}], steps))
    for connection in backend._streams._connections.values():
        connection.stream.flush(20)
    planes = {
        (key.source, dict(key.split)["channel"], place): int(pixels.max())
        for key, layer in shown.layers.items()
        for place, pixels in layer.stack.planes.items()
    }
    assert planes == {
        ("segment", 1, (1, 1, "A01")): 1,
        ("segment", 1, (1, 2, "A01")): 2,
        ("register", 2, (1, 1, "A01")): 3,
    }
    assert {layer.spec.colormap for layer in shown.layers.values()} == {"green"}
    backend.cleanup()
    assert type(backend).cleaned == 1


def test_text_is_passed_over_as_by_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Packages(monkeypatch, "polystore")
    register_with_openhcs()
    with_nobody = theirs.registry["fiji_stream"]()
    with_nobody.save("a text", "notes.txt", port=1)
    with_nobody.cleanup()
