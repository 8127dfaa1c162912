"""What is known to go wrong with the original's viewers, each thing shown to go right here.

Senders are the plain ones of every generation, each a process of its own. What concerns our senders
and the original's viewers is shown in `tests/stream/test_openhcs_out.py` as well, and what concerns
real windows in `tests/viewers/fiji/test_fiji_hyperstack.py` and `test_fiji_openhcs.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import zmq

import openhcs_stream
from openhcs_stream import discovery
from openhcs_stream.backends import NapariStreamingBackend
from openhcs_stream.dialects import OpenHCS, family_of
from openhcs_stream.errors import ItemFailed, ViewerLost
from openhcs_stream.viewer import MemoryViewer
from openhcs_stream.viewer import _foreign_desk as foreign_desk
from scripts._ports import free_port
from tests.dialects.conftest import until
from tests.stream.recorded_viewer import RecordedViewer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.dialects.conftest import Blocks, PlainSender, Running

    Start = Callable[..., PlainSender]
    Serve = Callable[..., Running]

ASKING = [(1, "fiji"), (2, "fiji"), (2, "napari"), (3, "fiji"), (3, "napari")]
ALL = [(1, "napari"), *ASKING]
DISPLAY = {"component_modes": {"z_index": "stack"}, "component_order": ["z_index"],
           "colormap": "gray"}  # fmt: skip
LISTENS = "0A"  #: a socket's state in /proc/net/tcp


def image(z: int, shape: tuple[int, ...] = (8, 8), **more: Any) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": "uint8", "start": z, "place": {"z_index": z}, **more}


def made(z: int, shape: tuple[int, ...] = (8, 8)) -> Any:
    """What the plain sender makes of `image`."""
    return ((np.arange(np.prod(shape)) * 7 + z) % 251).astype(np.uint8).reshape(shape)


ABSENT = {"shm_name": "fiji_absent00", "shape": [2, 2], "dtype": "uint8"}


class Gate(MemoryViewer):
    """A window that is stuck until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def show_layer(self, *arguments: Any) -> None:
        assert self.open.wait(50)
        super().show_layer(*arguments)

    def stop(self) -> None:
        self.open.set()
        super().stop()


class NeverShown(MemoryViewer):
    """A window that is closed before anything comes to it."""

    def show_layer(self, *arguments: Any) -> None:
        raise AssertionError("it is being closed")


# --- "hangs under continuous streaming" -----------------------------------------------------------


def test_continuous_streaming_does_not_hang(running: Running, start_sender: Start) -> None:
    sender = start_sender(1, "fiji", running.port)
    for z in range(300):
        sender.tell("send", items=[image(z, (256, 256))], display_config=DISPLAY)
    ids: list[str] = []
    for _ in range(300):
        told = sender.hear()
        assert told["reply"]["status"] == "success"
        ids += told["ids"]
    assert set(sender.acks(300)) == set(ids)
    planes = running.layer("image").stack.planes
    assert sorted(planes) == [(z,) for z in range(300)]
    for place, plane in planes.items():
        np.testing.assert_array_equal(plane, made(int(place[0]), (256, 256)))
    assert sender.do("left") == {"left": []}


def test_who_never_pings_is_served(running: Running, start_sender: Start) -> None:
    """The original reads nothing before somebody has pinged it."""
    sender = start_sender(1, "fiji", running.port)
    assert sender.send(image(1), display_config=DISPLAY)["reply"]["status"] == "success"


# --- "no receive timeout, or 30 s; a sleep of 0.1 s in every call" --------------------------------


class MemoryBackend(NapariStreamingBackend):
    VIEWER_TYPE: ClassVar[str] = "memory"


SETTINGS = SimpleNamespace(COMPONENT_ORDER=["z_index"], z_index_mode=SimpleNamespace(value="stack"))


def saved(backend: MemoryBackend, running: Running, *places: int) -> None:
    """Hand images to a backend as the original's pipeline does."""
    backend.save_batch(
        [made(z) for z in places],
        [f"/plate/{z}.tif" for z in places],
        port=running.port,
        display_config=SETTINGS,
        components=[{"z_index": z} for z in places],
        timeout_s=1.0,
    )


def test_a_call_does_not_sleep(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = threading.current_thread()
    sleep = time.sleep

    def noticed(seconds: float) -> None:
        assert threading.current_thread() is not worker, "a call of the pipeline sleeps"
        sleep(seconds)

    with MemoryBackend() as backend:
        saved(backend, running, 0)  # it is looked for, and connected to
        monkeypatch.setattr(time, "sleep", noticed)
        for z in range(1, 50):
            saved(backend, running, z)
        monkeypatch.undo()
    until(lambda: len(running.layer("image").stack.planes) == 50, "all are shown")


@pytest.mark.parametrize("generation", ["gen1", "gen2", "gen3"])
@pytest.mark.parametrize("kind", ["napari", "fiji"])
def test_a_dead_viewer_costs_the_deadline_that_was_given(
    home: Path, generation: str, kind: str
) -> None:
    with RecordedViewer(generation, kind) as viewer:
        stream = openhcs_stream.connect(viewer.address, timeout_s=0.5)
        viewer.is_silent = True
        with pytest.raises(ItemFailed, match=r"within 0\.5 s"):
            stream.image(made(1)).wait(timeout_s=20)
        with contextlib.suppress(ItemFailed, ViewerLost):
            stream.close()


# --- "success is replied though an item failed; acks mean queued, not displayed" ------------------


@pytest.mark.parametrize(("generation", "viewer"), ASKING)
def test_a_failed_item_is_no_success(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    sender = start_sender(generation, viewer, running.port)
    told = sender.send(image(1), ABSENT, display_config=DISPLAY)
    assert told["reply"]["status"] == "error"
    assert "fiji_absent00" in told["reply"]["message"]
    acks = sender.acks(2)
    shown, failed = (acks[each] for each in told["ids"])
    assert (shown["status"], failed["status"]) == ("success", "error")
    assert "fiji_absent00" in failed["error"]
    settled = sender.control("settle")
    assert settled["settle_phase"] == "failed"
    assert (settled["completed_update_count"], settled["total_update_count"]) == (1, 2)


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_an_acknowledgement_means_displayed(
    serve: Serve, start_sender: Start, generation: int, viewer: str
) -> None:
    window = Gate()
    running = serve(window)
    sender = start_sender(generation, viewer, running.port)
    told = sender.send(image(1), display_config=DISPLAY)  # copied, and the sender may go on
    until(lambda: running.layers, "the image is at the window")
    assert sender.acks(1, timeout_s=0.2) == {}
    assert sender.control("settle")["completed_update_count"] == 0
    window.open.set()
    assert sender.acks(1)[told["ids"][0]]["status"] == "success"


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_what_a_window_can_not_show_is_told(
    serve: Serve, start_sender: Start, generation: int, viewer: str
) -> None:
    class Broken(MemoryViewer):
        def show_layer(self, *arguments: Any) -> None:
            raise RuntimeError("no such texture")

    sender = start_sender(generation, viewer, serve(Broken()).port)
    told = sender.send(image(1), display_config=DISPLAY)
    ack = sender.acks(1)[told["ids"][0]]
    assert (ack["status"], ack["error"]) == ("error", "RuntimeError: no such texture")


def test_an_error_does_not_count_as_displayed(home: Path) -> None:
    """With the original's viewer and our tracker: an acknowledged error is an item that failed."""
    with RecordedViewer("gen1", "fiji") as viewer:
        viewer.wrong = lambda item: "no such thing" if item["metadata"]["z_index"] == 2 else ""
        stream = openhcs_stream.connect(viewer.address, timeout_s=20.0)
        for z in (1, 2):
            receipt = stream.image(made(z), place={"z": z})
        with pytest.raises(ItemFailed, match="no such thing"):
            receipt.wait(timeout_s=20)
        (queue,) = stream.status()
        assert (queue.sent, queue.displayed, queue.failed, queue.waiting) == (2, 1, 1, 0)
        with contextlib.suppress(ItemFailed):
            stream.close()


def test_what_was_acknowledged_is_not_acknowledged_again(
    running: Running, start_sender: Start
) -> None:
    """The original tells of all images of a window whenever one comes to it."""
    sender = start_sender(1, "fiji", running.port)
    for z in range(5):
        (item_id,) = sender.send(image(z), display_config=DISPLAY)["ids"]
        assert list(sender.acks(1)) == [item_id]
    assert sender.acks(1, timeout_s=0.2) == {}


# --- "segments are left behind" -------------------------------------------------------------------


@pytest.mark.parametrize("viewer", ["fiji", "napari"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "object"},
        {"shape": [9999, 9999]},
        {"shape": "8x8"},
        {"data_type": "film"},
        {"data_type": 5},
        {"metadata": {"z_index": {"a": 1}}},
        {"metadata": 7},
        {"image_id": 12},
        {"producer_identity": {}},
    ],
    ids=repr,
)
def test_blocks_of_rejected_items_are_removed(
    running: Running, start_sender: Start, viewer: str, wrong: dict[str, Any]
) -> None:
    sender = start_sender(1, viewer, running.port)
    sender.send(image(1), image(2, wire=wrong), display_config=DISPLAY)
    until(lambda: running.layers, "the other item is shown")
    left = sender.do("left")["left"]
    # A block that an item of a later generation names stays its sender's.
    assert len(left) == ("producer_identity" in wrong)
    for name in left:
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.parametrize("viewer", ["fiji", "napari"])
def test_blocks_of_a_rejected_batch_are_removed(
    running: Running, start_sender: Start, viewer: str
) -> None:
    sender = start_sender(1, viewer, running.port)
    for envelope in ({"display_config": 5}, {"display_config": {"component_modes": {"z": "up"}}}):
        sender.send(image(1), image(2), **envelope)
        until(lambda: sender.do("left") == {"left": []}, "the blocks are gone")


VIEWER_THAT_IS_KILLED = """
import multiprocessing.resource_tracker as tracker, sys, threading
from openhcs_stream.viewer import MemoryViewer, Receiver
class Stuck(MemoryViewer):
    def keep(self, *_):
        print("holds", tracker._resource_tracker._pid, flush=True)
        threading.Event().wait()
viewer = Stuck()
with Receiver(viewer, port=int(sys.argv[1])) as receiver:
    print("ready", flush=True)
    viewer.run(receiver.tick, 0.01)
"""


def test_blocks_of_a_viewer_that_is_killed_are_removed(home: Path, start_sender: Start) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", VIEWER_THAT_IS_KILLED, str(port)],
        stdout=subprocess.PIPE,
        text=True,
    ) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == "ready\n"
        sender = start_sender(1, "napari", port, listen=False)
        sender.send(image(1), image(2), display_config=DISPLAY)
        # It holds both, and no resource tracker was begun, which would remove others' blocks.
        assert viewer.stdout.readline() == "holds None\n"
        viewer.send_signal(signal.SIGKILL)
    assert len(sender.do("left")["left"]) == 2
    assert discovery.endpoints() == []  # whoever looks next tidies up
    assert sender.do("left") == {"left": []}


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_a_viewer_that_is_closed_leaves_no_blocks_and_nobody_waiting(
    serve: Serve,
    start_sender: Start,
    monkeypatch: pytest.MonkeyPatch,
    generation: int,
    viewer: str,
) -> None:
    """One item waits for its window, and another comes when the viewer is being closed."""
    publishes = (generation, viewer) == (1, "napari")
    running = serve(NeverShown())
    foreign, router = running.receiver._foreign, running.receiver._router
    desk = foreign._desk
    assert desk is not None
    assert router is not None
    assert router._admission is not None
    questions = router._admission._handler  # whether somebody may come in
    running.viewer.stop()  # nothing is shown any more
    running.thread.join()
    first, second = (start_sender(generation, viewer, running.port) for _ in range(2))
    refuse_rest = foreign.refuse_rest

    def when_the_second_has_asked() -> None:
        second.tell("send", items=[image(2)], display_config=DISPLAY)
        until(lambda: desk._published if publishes else questions.poll(0), "the second asks")
        refuse_rest()

    monkeypatch.setattr(foreign, "refuse_rest", when_the_second_has_asked)
    told = [first.send(image(1), display_config=DISPLAY)]
    until(lambda: foreign._untold, "the first has come")
    running.receiver.close()
    told.append(second.hear())
    if not publishes:
        assert told[0]["reply"]["status"] == "success"  # copied
        assert told[1]["reply"]["status"] == "error"
        assert "closed" in told[1]["reply"]["message"]
    for sender, said in zip((first, second), told, strict=True):
        # The first generations have one address for all: whoever bound it last hears.
        acks = (sender if generation == 3 else second).acks(1)
        assert set(acks) <= {*told[0]["ids"], *told[1]["ids"]}
        assert all(ack["status"] == "error" and "closed" in ack["error"] for ack in acks.values())
        assert generation < 3 or list(acks) == said["ids"]
        assert sender.do("left") == {"left": []}


# --- "one message that is not JSON aborts the viewer" ---------------------------------------------


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_what_is_no_json_hurts_nobody(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    sender = start_sender(generation, viewer, running.port)
    sender.send(image(1), display_config=DISPLAY)
    sender.acks(1)
    for text in ("", "{", "not JSON", "\x00\x01", '{"images": NaN}', "[" * 50_000, '"' * 9):
        reply = sender.do("raw", text=text)["reply"]
        assert (
            reply is None if (generation, viewer) == (1, "napari") else reply["status"] == "error"
        )
    sender.send(image(2), display_config=DISPLAY)
    sender.acks(1)
    assert sorted(running.layer("image").stack.planes) == [(1,), (2,)]


# --- "pickle on the control socket, on every interface; any name is unlinked" ---------------------


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOME"] + "/it-ran",)


def test_control_messages_run_nothing(running: Running, home: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.setsockopt(zmq.RCVTIMEO, 10_000)
        asking.connect(family_of().ipc(running.port + 1000))
        for message in ({"type": "ping", "payload": Runs()}, Runs(), [Runs()]):
            asking.send(pickle.dumps(message))
            assert pickle.loads(asking.recv())["status"] == "error"
        assert not (home / "it-ran").exists()
        asking.send(pickle.dumps({"type": "ping"}))
        assert pickle.loads(asking.recv())["type"] == "pong"


def test_nobody_elsewhere_can_connect(running: Running) -> None:
    ours = {f"{running.port:04X}", f"{running.port + 1000:04X}"}
    listening = [
        line.split()[1].split(":")
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
        if line.split()[3] == LISTENS
    ]
    found = {port: host for host, port in listening if port in ours}
    assert found == dict.fromkeys(ours, "0100007F")  # 127.0.0.1


@pytest.mark.parametrize(
    "name",
    ["victim", "psm_0123abcd", "fiji_0123abcde", "fiji_0123ABCD", "napari_0123abcdef01",
     "openhcs-stream-1-2"],
)  # fmt: skip
def test_only_names_of_the_first_generation_s_form_are_removed(
    running: Running, start_sender: Start, blocks: Blocks, name: str
) -> None:
    blocks.names.append(name)
    blocks.fill(made(1), name)
    sender = start_sender(1, "fiji", running.port)
    item = {"shm_name": name, "shape": [8, 8], "dtype": "uint8", "place": {"z_index": 1}}
    told = sender.send(item, {**item, "dtype": "object"}, display_config=DISPLAY)
    assert [ack["status"] for ack in sender.acks(2).values()].count("success") == 1
    assert told["reply"]["status"] == "error"
    assert blocks.exists(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("generation", [1, 2])
def test_nobody_else_s_block_is_removed_or_shown(
    running: Running, start_sender: Start, blocks: Blocks, generation: int
) -> None:
    name = blocks.fill(made(1))
    os.chown(f"/dev/shm/{name}", 65534, 65534)
    sender = start_sender(generation, "fiji", running.port)
    item = {"shm_name": name, "shape": [8, 8], "dtype": "uint8"}
    assert sender.send(item, display_config=DISPLAY)["reply"]["status"] == "error"
    assert blocks.exists(name)
    assert running.layers == []


# --- "several copies; unbounded queues" -----------------------------------------------------------


def test_pixels_are_read_where_they_lie(blocks: Blocks) -> None:
    """One copy is made of them: to where they are shown."""
    array = made(1)
    name = blocks.fill(array)
    item = {"shape": [8, 8], "dtype": "uint8", "shm_name": name, "metadata": {}, "image_id": "i"}
    frame = json.dumps({"type": "batch", "images": [item]}).encode()
    batch = OpenHCS().read(frame, viewer="napari", viewer_port=1, local_ipc=True)
    with open(f"/dev/shm/{name}", "r+b") as file:
        file.write(b"\xff")
    assert batch.items[0].payload[0, 0] == 255
    batch.items[0].finish()


def test_a_stuck_window_takes_up_no_more_than_it_may(serve: Serve, start_sender: Start) -> None:
    limit = 16 << 20
    window = Gate()
    running = serve(window, memory_nbytes=limit)
    sender = start_sender(2, "napari", running.port)
    statuses: list[str] = []
    for z in range(24):
        told = sender.send(image(z, (1024, 1024)), display_config=DISPLAY)
        statuses.append(told["reply"]["status"])
        if statuses[-1] == "error":
            assert "memory" in told["reply"]["message"]
    assert statuses[:15] == ["success"] * 15
    assert statuses[16:] == ["error"] * 8
    assert running.receiver.status()["kept"]["nbytes"] <= limit
    window.open.set()
    acks = sender.acks(24)
    assert [ack["status"] for ack in acks.values()].count("error") == statuses.count("error")


def test_what_is_published_waits_in_a_bounded_queue(
    serve: Serve, start_sender: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_desk, "_MOST_WAITING", 5)
    release, taken = threading.Event(), threading.Event()

    class Stuck(MemoryViewer):
        def keep(self, *arguments: Any) -> Any:
            taken.set()
            assert release.wait(50)
            return super().keep(*arguments)

    running = serve(Stuck())
    sender = start_sender(1, "napari", running.port)
    try:
        ids = sender.send(image(0), display_config=DISPLAY)["ids"]
        assert taken.wait(20)
        for z in range(1, 60):
            ids += sender.send(image(z), display_config=DISPLAY)["ids"]
        desk = running.receiver._foreign._desk
        assert desk is not None
        until(lambda: len(desk._published) == 5, "the queue is full")
        assert sender.control("ping")["type"] == "pong"  # that goes on
        assert len(desk._published) == 5
    finally:
        release.set()
    assert set(sender.acks(60)) == set(ids)  # they waited before it
    assert sender.do("left") == {"left": []}


# --- "only the middle plane of a 3-D image is shown" ----------------------------------------------


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_every_plane_of_a_stack_is_shown(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    sender = start_sender(generation, viewer, running.port)
    shape = (5, 8, 9)
    told = sender.send({**image(1, shape), "place": {"well": "A01"}}, display_config=DISPLAY)
    assert sender.acks(1)[told["ids"][0]]["status"] == "success"
    layer = running.layer("image")
    at = layer.components.index("z")
    shown = {coords[at]: np.asarray(plane) for coords, plane in layer.stack.planes.items()}
    assert len(shown) == 5
    np.testing.assert_array_equal(np.stack([shown[z] for z in sorted(shown)]), made(1, shape))


# --- "two clients on one host: the second steals the first one's acks" ----------------------------


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("viewer", ["fiji", "napari"])
def test_two_clients_on_one_host_hear_of_their_own(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    first = start_sender(generation, viewer, running.port)
    ids = first.send(image(1), display_config=DISPLAY)["ids"]
    assert set(first.acks(1)) == set(ids)
    second = start_sender(generation, viewer, running.port)  # takes the one address for itself
    theirs: list[str] = []
    ours: list[str] = []
    for z in range(2, 12):
        theirs += second.send(image(z), display_config=DISPLAY)["ids"]
        ours += first.send(image(100 + z), display_config=DISPLAY)["ids"]
    assert set(second.acks(10)) == set(theirs)
    assert set(first.acks(10)) == set(ours)
    assert first.acks(1, timeout_s=0.1) == second.acks(1, timeout_s=0.1) == {}


# --- "a viewer that misses a ping of half a second is killed" -------------------------------------


def test_pings_are_answered_while_everything_else_is_stuck(
    serve: Serve, start_sender: Start
) -> None:
    release = threading.Event()

    class Stuck(MemoryViewer):
        def keep(self, *_: Any) -> Any:
            assert release.wait(50)
            raise RuntimeError("it was stuck")

        def set_axes(self, axes: Any) -> None:
            assert release.wait(50)

    running = serve(Stuck())
    sender = start_sender(2, "fiji", running.port)
    asking = start_sender(2, "fiji", running.port, listen=False)
    try:
        sender.tell("send", items=[image(1)], display_config=DISPLAY)
        for _ in range(5):
            assert asking.control("ping")["type"] == "pong"
            assert asking.control("settle")["settle_phase"] in ("running", "complete")
        release.set()
        assert sender.hear()["reply"]["status"] == "error"
    finally:
        release.set()
