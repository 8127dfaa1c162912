"""Runs inside an environment of the real packages: drives their senders, and reports.

A JSON object comes on standard input (generation, viewer, port, mode, batches, wait_s); one goes to
the file that the argument names. Nothing of ours is imported but the description of the pixels,
unless "through_ours" asks for it: then our package takes the place of their backends first.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from types import SimpleNamespace
from typing import Any

import numpy as np
from cases import file_name, pixels

PLATE = "/plate/TimePoint_1"


class Sender:
    """One generation's sender to one viewer."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.viewer: str = task["viewer"]
        self.port: int = task["port"]
        self.mode: str = task["mode"]
        self.source: str = task.get("source", "segmentation")
        self.modes: dict[str, str] = task.get("modes", {})
        self.through_ours: bool = task.get("through_ours", False)

    def ask(self, timeout_s: float) -> dict[str, Any] | None:
        """Their own ping, which also arms a viewer; None: no answer."""
        raise NotImplementedError

    def listen(self) -> None:
        """Start their own listener of acknowledgements."""

    def backend_of(self, family: str) -> Any:
        """Their backend; or what a pipeline gets from their registry when ours is registered."""
        from importlib import import_module

        key = f"{self.viewer}_stream"
        if not self.through_ours:
            made = import_module(f"{family}.{key}")
            return (
                made.FijiStreamingBackend()
                if self.viewer == "fiji"
                else made.NapariStreamingBackend()
            )
        from openhcs_stream.backends import register_with_openhcs

        assert f"{family}:{key}" in register_with_openhcs()
        backend = import_module(f"{family}.base").get_backend(key)
        assert backend is import_module(f"{family}.backend_registry").get_backend_instance(key)
        return backend

    def counts(self) -> tuple[int, int]:
        """Done and sent, by the tracker of whoever sends."""
        if not self.through_ours:
            return self.progress()
        from openhcs_stream.tracker import registry

        queues = registry().status()
        return sum(queue.displayed for queue in queues), sum(queue.sent for queue in queues)

    def save(self, batch: list[dict[str, Any]]) -> None:
        """Hand a batch to their backend."""
        data = [self.data_of(item) for item in batch]
        paths = [self.path_of(item) for item in batch]
        self.save_batch(data, paths, [item["components"] for item in batch])

    def save_batch(self, data: list[Any], paths: list[str], places: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def progress(self) -> tuple[int, int]:
        """Processed and sent, as their own tracker counts."""
        raise NotImplementedError

    def data_of(self, item: dict[str, Any]) -> Any:
        if item["kind"] == "image":
            return pixels(item["shape"], item["dtype"], item["number"])
        return [self.roi_of(shape) for shape in item["shapes"]]

    def path_of(self, item: dict[str, Any]) -> str:
        name = file_name(item["components"])
        return f"{PLATE}/{name}"

    def roi_of(self, shape: dict[str, Any]) -> Any:
        models = self.roi_models()
        match shape["shape"]:
            case "polygon":
                made = models.PolygonShape(np.array(shape["yx"]))
            case "point":
                made = models.PointShape(*shape["yx"])
            case "ellipse":
                made = models.EllipseShape(*shape["center"], *shape["radii"])
        return models.ROI([made], {"label": shape["label"], "area": 12.5, "centroid": (3.0, 2.5)})

    def roi_models(self) -> Any:
        raise NotImplementedError


class Generation1(Sender):
    """openhcs 0.3.15: `openhcs.io`."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        from openhcs.core import config
        from openhcs.microscopes.imagexpress import ImageXpressFilenameParser

        self.transport = config.TransportMode[self.mode.upper()]
        self.handler = SimpleNamespace(parser=ImageXpressFilenameParser())
        if self.viewer == "fiji":
            display, modes = config.FijiDisplayConfig, config.FijiDimensionMode
        else:
            display, modes = config.NapariDisplayConfig, config.NapariDimensionMode
        self.backend = self.backend_of("openhcs.io")
        self.display = display(**{f"{name}_mode": modes(mode) for name, mode in self.modes.items()})

    def ask(self, timeout_s: float) -> dict[str, Any] | None:
        from openhcs.runtime.zmq_base import ZMQClient

        servers = ZMQClient.scan_servers(
            [self.port], timeout_ms=int(timeout_s * 1000), transport_mode=self.transport
        )
        return servers[0] if servers else None

    def listen(self) -> None:
        from openhcs.runtime.zmq_base import start_global_ack_listener

        start_global_ack_listener(self.transport)
        time.sleep(0.5)  # it binds in a thread and tells nobody

    def save_batch(self, data: list[Any], paths: list[str], places: list[dict[str, Any]]) -> None:
        self.backend.save_batch(
            data,
            paths,
            host="localhost",
            port=self.port,
            transport_mode=self.transport,
            display_config=self.display,
            microscope_handler=self.handler,
            source=self.source,
            images_dir=PLATE,
        )

    def progress(self) -> tuple[int, int]:
        from openhcs.runtime.queue_tracker import GlobalQueueTrackerRegistry

        tracker = GlobalQueueTrackerRegistry().get_tracker(self.port)
        return tracker.get_progress() if tracker else (0, 0)

    def roi_models(self) -> Any:
        from openhcs.core import roi

        return roi


class Polystore(Sender):
    """What generations 2 and 3 have in common: polystore's backends and zmqruntime's tracker."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task)
        from zmqruntime.config import TransportMode
        from zmqruntime.viewer_protocol import ViewerTransportEndpoint

        self.transport = TransportMode(self.mode)
        self.endpoint = ViewerTransportEndpoint(
            port=self.port, host="localhost", transport_mode=self.transport
        )
        self.backend = self.backend_of("polystore")

    def config(self) -> Any:
        """The transport's configuration under which OpenHCS's viewers are met."""
        raise NotImplementedError

    def display_config(self) -> Any:
        raise NotImplementedError

    def ask(self, timeout_s: float) -> dict[str, Any] | None:
        pong = self.endpoint.ping(self.config(), timeout_ms=int(timeout_s * 1000))
        return None if pong is None else {"ready": pong.ready, "server": pong.server}

    def request(self, places: list[dict[str, Any]], paths: list[str]) -> Any:
        from polystore.streaming.identity import StreamProducerIdentity
        from polystore.streaming.viewer_transport import (
            ExplicitViewerTransportConfig,
            IndexedViewerStreamSourceMetadata,
            ViewerStreamProducer,
            ViewerStreamRequest,
            ViewerStreamSource,
            ViewerStreamSourceIdentity,
        )

        producer = StreamProducerIdentity.pipeline_output(
            output_kind="main",
            output_key="image",
            projection_key="image",
            step_name=self.source,
            pipeline_position=1,
        )
        handler = SimpleNamespace(
            parser=None,
            metadata_handler=SimpleNamespace(get_component_values=lambda plate, component: None),
        )
        return ViewerStreamRequest(
            viewer_transport=self.endpoint,
            display_config=self.display_config(),
            source=ViewerStreamSource(
                identity=ViewerStreamSourceIdentity(microscope_handler=handler, plate_path=PLATE),
                metadata=IndexedViewerStreamSourceMetadata(metadata_by_index=places),
            ),
            producer=ViewerStreamProducer.from_identity(producer),
            transport_config=ExplicitViewerTransportConfig(self.config()),
            images_dir=PLATE if self.viewer == "fiji" else None,
        )

    def save_batch(self, data: list[Any], paths: list[str], places: list[dict[str, Any]]) -> None:
        self.backend.save_batch(data, paths, stream_request=self.request(places, paths))

    def path_of(self, item: dict[str, Any]) -> str:
        path = super().path_of(item)
        return path if item["kind"] == "image" else path.removesuffix(".tif") + ".roi.zip"

    def progress(self) -> tuple[int, int]:
        from zmqruntime.queue_tracker import GlobalQueueTrackerRegistry

        tracker = GlobalQueueTrackerRegistry().get_tracker(self.port)
        return tracker.get_progress() if tracker else (0, 0)

    def roi_models(self) -> Any:
        from polystore import roi

        return roi


class Generation2(Polystore):
    """openhcs 0.8.6 with polystore 0.2.19 and zmqruntime 0.2.24."""

    def config(self) -> Any:
        from openhcs.runtime.zmq_config import OPENHCS_ZMQ_CONFIG

        return OPENHCS_ZMQ_CONFIG

    def display_config(self) -> Any:
        from openhcs.core import config

        if self.viewer == "fiji":
            display, modes = config.FijiDisplayConfig, config.FijiDimensionMode
        else:
            display, modes = config.NapariDisplayConfig, config.NapariDimensionMode
        return display(**{f"{name}_mode": modes(mode) for name, mode in self.modes.items()})

    def ask(self, timeout_s: float) -> dict[str, Any] | None:
        """Also what their client decides about a viewer that runs already."""
        from openhcs.runtime.viewer_protocol import ViewerRuntimeEndpoint

        told = super().ask(timeout_s)
        if told is not None:
            endpoint = ViewerRuntimeEndpoint(self.endpoint, self.config())
            try:
                endpoint.application_compatibility(timeout_ms=2000).require_match()
                told["reusable"] = True
            except Exception as error:  # whatever it is, it is what they decide by
                told["reusable"] = f"{type(error).__name__}: {error}"
        return told


class Generation3(Polystore):
    """polystore 0.6.3 with zmqruntime 0.6.5: senders only."""

    def config(self) -> Any:
        from zmqruntime.config import ZMQConfig

        return ZMQConfig(ipc_socket_prefix="openhcs-zmq", app_name="openhcs")

    def display_config(self) -> Any:
        from polystore.streaming.viewer_transport import ViewerDisplayConfigABC

        fiji = self.viewer == "fiji"
        usual = (
            {"site": "frame", "channel": "channel", "z_index": "slice", "timepoint": "frame",
             "well": "frame"}
            if fiji
            else dict.fromkeys(("site", "channel", "z_index", "timepoint", "well"), "stack")
        )  # fmt: skip
        modes = {**usual, **self.modes}

        class Display(ViewerDisplayConfigABC):
            COMPONENT_ORDER = tuple(usual)

            def component_modes(self) -> dict[str, str]:
                return modes

            def display_payload_extra(self) -> dict[str, Any]:
                if fiji:
                    return {"lut": "Grays", "auto_contrast": True}
                return {"colormap": "gray", "variable_size_handling": "pad_to_max"}

        return Display()


GENERATIONS = {"gen1": Generation1, "gen2": Generation2, "gen3": Generation3}


def main() -> None:
    """Send what is asked for, wait for the acknowledgements, report."""
    task = json.load(sys.stdin)
    report: dict[str, Any] = {"pong": None, "calls": [], "progress": [0, 0]}
    sender = GENERATIONS[task["generation"]](task)
    sender.listen()
    if task.get("ping", True):
        report["pong"] = sender.ask(5.0)
    for batch in task["batches"]:
        started = time.monotonic()
        try:
            sender.save(batch)
            outcome: dict[str, Any] = {"ok": True}
        except Exception as error:  # it is what is reported
            outcome = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        outcome["seconds"] = round(time.monotonic() - started, 3)
        report["calls"].append(outcome)
    deadline = time.monotonic() + task.get("wait_s", 10.0)
    while time.monotonic() < deadline:
        done, sent = sender.counts()
        report["progress"] = [done, sent]
        if sent and done == sent:
            break
        time.sleep(0.05)
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(report, file, default=str)


if __name__ == "__main__":
    main()
