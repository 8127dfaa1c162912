"""Runs inside an environment of the real packages: their own viewer, and what stands in it.

    python theirs_view.py GENERATION VIEWER PORT MODE FOLDER

Beside the viewer's own loop only this happens here: when a file `look` appears in FOLDER, what the
viewer shows is written to `shown.npz` and `shown.json` there, and `look` is removed.

Their Fiji needs ImageJ2's gateway, which is fetched from a repository that not every machine
reaches. Where OPENHCS_INTEROP_IJ names ImageJ's jar, the three calls that their server makes on the
gateway go to ImageJ itself; all else is theirs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

GENERATION, VIEWER, PORT, MODE, FOLDER = sys.argv[1:6]
FOLDER_PATH = Path(FOLDER)


class Shown:
    """Collects what is on the screen; arrays go into one archive."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def add(self, array: Any, **facts: Any) -> None:
        key = f"a{len(self.arrays)}"
        self.arrays[key] = np.asarray(array)
        self.layers.append({**facts, "array": key})

    def write(self) -> None:
        np.savez(FOLDER_PATH / "shown.tmp.npz", **self.arrays)
        (FOLDER_PATH / "shown.json.tmp").write_text(json.dumps(self.layers, default=str))
        os.replace(FOLDER_PATH / "shown.tmp.npz", FOLDER_PATH / "shown.npz")
        os.replace(FOLDER_PATH / "shown.json.tmp", FOLDER_PATH / "shown.json")


def look_wanted() -> bool:
    """Whether somebody asked, once."""
    wanted = (FOLDER_PATH / "look").exists()
    if wanted:
        (FOLDER_PATH / "look").unlink()
    return wanted


# --- napari ---------------------------------------------------------------------------------------


def look_at_napari(viewer: Any) -> None:
    """Layers as napari itself has them."""
    shown = Shown()
    for layer in viewer.layers:
        kind = type(layer).__name__.lower()
        if kind == "shapes":
            shown.layers.append(
                {"name": layer.name, "kind": kind, "types": list(layer.shape_type),
                 "shapes": [np.asarray(each).tolist() for each in layer.data]}
            )  # fmt: skip
        else:
            shown.add(layer.data, name=layer.name, kind=kind)
    shown.write()


def watch_napari() -> None:
    """Have every viewer that is made look up when it is asked, on Qt's own thread."""
    import napari
    from qtpy.QtCore import QTimer

    made = napari.Viewer

    class Watched(made):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            timer = QTimer(self.window._qt_window)  # noqa: SLF001 - it lives as long as the window
            timer.timeout.connect(lambda: look_wanted() and look_at_napari(self))
            timer.start(50)

    napari.Viewer = Watched


def napari_generation1() -> None:
    from openhcs.core.config import TransportMode
    from openhcs.runtime import napari_stream_visualizer as theirs

    theirs._napari_viewer_process(  # noqa: SLF001 - their own entry point
        int(PORT), "interop", False, str(FOLDER_PATH / "viewer.log"), TransportMode[MODE.upper()]
    )


def napari_generation2() -> None:
    from openhcs.runtime.napari_viewer_server import run_napari_viewer_process
    from zmqruntime.config import TransportMode

    run_napari_viewer_process(
        int(PORT), "interop", False, str(FOLDER_PATH / "viewer.log"), TransportMode(MODE)
    )


# --- Fiji -----------------------------------------------------------------------------------------

BIT_DEPTHS = {8: np.uint8, 16: np.uint16, 32: np.float32}


def plane_of(processor: Any) -> np.ndarray[Any, Any]:
    """The pixels of one slice."""
    dtype = np.dtype(BIT_DEPTHS[int(processor.getBitDepth())])
    raw = np.asarray(memoryview(processor.getPixels()))
    shape = (int(processor.getHeight()), int(processor.getWidth()))
    return raw.view(dtype).reshape(shape).copy()


def look_at_imagej(windows: dict[str, Any]) -> None:
    """Hyperstacks as ImageJ itself has them, and its ROI Manager."""
    import scyjava

    shown = Shown()
    for name, window in windows.items():
        channels, slices, frames = window.getNChannels(), window.getNSlices(), window.getNFrames()
        stack = window.getStack()
        planes, labels = [], []
        for index in range(1, stack.getSize() + 1):
            planes.append(plane_of(stack.getProcessor(index)))
            labels.append(str(stack.getSliceLabel(index)))
        same = len({plane.dtype for plane in planes}) == 1
        order = (int(frames), int(slices), int(channels))
        array = np.stack(planes if same else [plane.astype(np.float64) for plane in planes])
        shown.add(
            array.reshape(*order, *array.shape[1:]), name=name, kind="hyperstack",
            title=str(window.getTitle()), labels=labels, one_type=same,
        )  # fmt: skip
    manager = scyjava.jimport("ij.plugin.frame.RoiManager").getInstance()
    if manager is not None:
        for roi in manager.getRoisAsArray():
            polygon = roi.getFloatPolygon()
            yx = [[float(polygon.ypoints[n]), float(polygon.xpoints[n])]
                  for n in range(polygon.npoints)]  # fmt: skip
            shown.layers.append(
                {"name": str(roi.getName()), "kind": "roi", "type": str(roi.getTypeAsString()),
                 "group": int(roi.getGroup()), "yx": yx,
                 "position": [int(roi.getCPosition()), int(roi.getZPosition()),
                              int(roi.getTPosition())]}
            )  # fmt: skip
    shown.write()


class Converter:
    """`ij.py`: an array to an image that ImageJ shows."""

    def to_imageplus(self, array: np.ndarray[Any, Any]) -> Any:
        import jpype
        import scyjava

        height, width = array.shape
        kinds = {
            "u1": ("ij.process.ByteProcessor", jpype.JByte, np.int8),
            "u2": ("ij.process.ShortProcessor", jpype.JShort, np.int16),
        }
        name, element, signed = kinds.get(
            array.dtype.str[1:], ("ij.process.FloatProcessor", jpype.JFloat, np.float32)
        )
        flat = np.ascontiguousarray(array).ravel()
        flat = flat.view(signed) if signed != np.float32 else flat.astype(np.float32)
        pixels = jpype.JArray(element)(flat)
        processor = scyjava.jimport(name)(width, height, pixels, None)
        return scyjava.jimport("ij.ImagePlus")("", processor)


class Gateway:
    """What their servers call of ImageJ2's gateway."""

    def __init__(self) -> None:
        self.py = Converter()

    def ui(self) -> Gateway:
        return self

    def showUI(self) -> None:
        """ImageJ's main window, as ImageJ2 would show it."""
        import scyjava

        scyjava.jimport("ij.ImageJ")()

    @property
    def IJ(self) -> Any:
        import scyjava

        return scyjava.jimport("ij.IJ")

    def dispose(self) -> None:
        """Nothing is to be disposed of."""


def start_imagej(*_: Any, **__: Any) -> Gateway:
    """Java with ImageJ in it, at most once."""
    import scyjava

    if not scyjava.jvm_started():
        scyjava.config.endpoints.clear()
        scyjava.config.set_java_constraints(fetch="never")
        scyjava.config.add_classpath(os.environ["OPENHCS_INTEROP_IJ"])
        scyjava.start_jvm()
    return Gateway()


def bring_imagej() -> None:
    """Instead of ImageJ2's gateway, where it can't be fetched."""
    if "OPENHCS_INTEROP_IJ" not in os.environ:
        return
    stand_in = types.ModuleType("imagej")
    stand_in.init = start_imagej  # type: ignore[attr-defined]
    sys.modules["imagej"] = stand_in
    if GENERATION != "gen1":
        from polystore.imagej_runtime import FIJI_IMAGEJ_RUNTIME, ImageJRuntimePolicy

        def initialize(*_: Any, **__: Any) -> Gateway:
            return start_imagej()

        ImageJRuntimePolicy.initialize = initialize
        assert isinstance(FIJI_IMAGEJ_RUNTIME, ImageJRuntimePolicy)


def watch_fiji(server_class: Any, windows_of: Any) -> None:
    """Look at the windows of the server that is made, on a thread of its own."""
    servers: list[Any] = []
    made = server_class.__init__

    def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        servers.append(self)

    server_class.__init__ = remembered

    def watch() -> None:
        while True:
            time.sleep(0.05)
            if servers and servers[0].ij is not None and look_wanted():
                look_at_imagej(windows_of(servers[0]))

    threading.Thread(target=watch, daemon=True).start()


def fiji_generation1() -> None:
    from openhcs.core.config import FijiDisplayConfig, TransportMode
    from openhcs.runtime import fiji_viewer_server as theirs

    bring_imagej()
    watch_fiji(theirs.FijiViewerServer, lambda server: dict(server.hyperstacks))
    theirs._fiji_viewer_server_process(  # noqa: SLF001 - their own entry point
        int(PORT), "interop", FijiDisplayConfig(), None, TransportMode[MODE.upper()]
    )


def fiji_generation2() -> None:
    from openhcs.runtime import fiji_viewer_server as theirs
    from openhcs.runtime.zmq_config import OPENHCS_ZMQ_CONFIG
    from zmqruntime.config import TransportMode

    def windows(server: Any) -> dict[str, Any]:
        states = server.windows._states  # noqa: SLF001 - they offer no list of windows
        return {name: each.image_plus for name, each in states.items() if each.has_hyperstack()}

    bring_imagej()
    watch_fiji(theirs.FijiViewerServer, windows)
    theirs.fiji_viewer_server_process(
        int(PORT), "interop", None, None, True, TransportMode(MODE), OPENHCS_ZMQ_CONFIG
    )


# --- generation 3: no viewer was released; their own server class, completed by what it leaves open


def any_generation3() -> None:
    """zmqruntime's streaming server with polystore's reader: it keeps what it gets."""
    import zmq
    from polystore.streaming import StreamingSharedMemoryAuthority
    from zmqruntime.config import TransportMode, ZMQConfig
    from zmqruntime.messages import ImageTransferIdentity
    from zmqruntime.streaming.server import StreamingVisualizerServer
    from zmqruntime.viewer_protocol import ViewerComponentMetadataPayload

    config = ZMQConfig(ipc_socket_prefix="openhcs-zmq", app_name="openhcs")
    shown = Shown()

    class Viewer(StreamingVisualizerServer):
        _server_type = VIEWER
        stopping = False

        def display_image(self, image_data: Any, metadata: dict[str, Any]) -> None:
            raise NotImplementedError

        def handle_control_message(self, message: dict[str, Any]) -> dict[str, Any]:
            if message.get("type") in ("shutdown", "force_shutdown"):
                self.stopping = True
                return {"type": "shutdown_ack", "status": "success", "message": "closing"}
            return {"status": "ok"}

        def take(self, frame: bytes) -> dict[str, Any]:
            message = self.deserialize_message(frame)
            ViewerComponentMetadataPayload.from_wire_mapping(message)
            taken = []
            for item in message["images"]:
                transfer = ImageTransferIdentity.from_item(item)
                facts = {key: item.get(key) for key in
                         ("path", "data_type", "metadata", "producer_identity")}  # fmt: skip
                facts["display_config"] = message["display_config"]
                if item.get("shm_name"):
                    array = StreamingSharedMemoryAuthority.copy_sender_owned_array(
                        name=item["shm_name"], shape=item["shape"], dtype=item["dtype"]
                    )
                    taken.append((transfer, array, facts))
                else:
                    facts["shapes"] = item.get("shapes") or item.get("rois")
                    taken.append((transfer, None, facts))
            for transfer, array, facts in taken:
                name = facts["path"]
                if array is None:
                    shown.layers.append({**facts, "name": name, "kind": "shapes"})
                else:
                    shown.add(array, **facts, name=name, kind="image")
                self.send_ack(transfer)
            return {"status": "success", "type": "batch"}

    server = Viewer(
        int(PORT), VIEWER, data_socket_type=zmq.REP, transport_mode=TransportMode(MODE),
        config=config,
    )  # fmt: skip
    server.start()
    while not server.stopping:
        server.process_messages()
        if server.data_socket.poll(5):
            try:
                reply = server.take(server.data_socket.recv())
            except Exception as error:  # as their viewers do
                reply = {"status": "error", "message": f"{type(error).__name__}: {error}"}
            server.data_socket.send_json(reply)
        if look_wanted():
            shown.write()
    server.process_messages()
    server.stop()


def main() -> None:
    """Run the viewer until it is shut down."""
    if GENERATION == "gen3":
        any_generation3()
    elif VIEWER == "napari":
        watch_napari()
        (napari_generation1 if GENERATION == "gen1" else napari_generation2)()
    else:
        (fiji_generation1 if GENERATION == "gen1" else fiji_generation2)()


if __name__ == "__main__":
    main()
