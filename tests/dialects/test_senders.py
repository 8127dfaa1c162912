"""Plain senders of every generation, with nothing of this package, against a running receiver."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from openhcs_stream import connect
from tests.dialects.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.dialects.conftest import PlainSender, Running

    Start = Callable[..., PlainSender]

ALL = [(1, "fiji"), (1, "napari"), (2, "fiji"), (2, "napari"), (3, "fiji"), (3, "napari")]
FIJI = {
    "lut": "Grays",
    "component_modes": {
        "well": "window", "site": "frame", "channel": "channel", "z_index": "slice",
        "timepoint": "frame",
    },
    "component_order": ["site", "channel", "z_index", "timepoint", "well"],
    "auto_contrast": True,
}  # fmt: skip
NAPARI = {
    "colormap": "gray",
    "component_modes": {
        "well": "stack", "site": "stack", "channel": "stack", "z_index": "stack",
        "timepoint": "stack",
    },
    "component_order": ["site", "channel", "z_index", "timepoint", "well"],
    "variable_size_handling": "pad_to_max",
}  # fmt: skip
POLYGON = [(2, 1), (9, 1), (9, 8)]


def display(viewer: str) -> dict[str, Any]:
    return FIJI if viewer == "fiji" else NAPARI


def place(**changes: Any) -> dict[str, Any]:
    usual = {"well": "A01", "site": 1, "channel": 1, "z_index": 1, "timepoint": 1}
    return {**usual, **changes}


def image(z: int = 1, dtype: str = "uint16", shape: tuple[int, ...] = (12, 16)) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": dtype, "start": z, "place": place(z_index=z)}


def outlines(viewer: str, z: int = 1) -> dict[str, Any]:
    if viewer == "fiji":
        return {"polygons": [POLYGON], "place": place(z_index=z)}
    shape = {"type": "polygon", "coordinates": [[y, x] for x, y in POLYGON], "metadata": {}}
    return {"data_type": "shapes", "shapes": [shape], "place": place(z_index=z)}


def made(z: Any, dtype: str = "uint16", shape: tuple[int, ...] = (12, 16)) -> Any:
    """What the plain sender makes of `image`."""
    return ((np.arange(np.prod(shape)) * 7 + z) % 251).astype(dtype).reshape(shape)


def planes(running: Running) -> dict[int | str, Any]:
    """Planes of the one image layer by z."""
    layer = running.layer("image")
    at = layer.components.index("z")
    return {coords[at]: np.asarray(plane) for coords, plane in layer.stack.planes.items()}


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_every_item_is_shown_and_acknowledged(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    sender = start_sender(generation, viewer, running.port)
    told = sender.send(
        *(image(z) for z in (1, 2, 3)), outlines(viewer, 2), display_config=display(viewer)
    )
    if told["reply"] is not None:  # who publishes hears nothing
        assert told["reply"]["status"] == "success"
        assert ("type" in told["reply"]) == (viewer == "napari")
    acks = sender.acks(4)
    assert set(acks) == set(told["ids"])
    for ack in acks.values():
        assert ack["type"] == "image_ack"
        assert ack["status"] == "success"
        assert (ack["viewer_port"], ack["viewer_type"]) == (running.port, viewer)
        assert "error" not in ack
    assert sender.do("left") == {"left": []}
    shown = planes(running)
    assert sorted(shown) == [1, 2, 3]
    for z, plane in shown.items():
        assert plane.dtype == np.uint16
        np.testing.assert_array_equal(plane, made(z))
    ((_, (roi,)),) = running.layer("rois").items.items()
    corners = np.array(POLYGON) + (0.5 if viewer == "napari" else 0.0)
    np.testing.assert_array_equal(roi.coordinates, corners)


@pytest.mark.parametrize("viewer", ["fiji", "napari"])
def test_generation_3_is_answered_on_its_own_route(
    running: Running, start_sender: Start, viewer: str
) -> None:
    sender = start_sender(3, viewer, running.port, listen=False)
    route = sender.do("listen")["route"]
    told = sender.send(image(), {"shm_name": "fiji_absent0"}, display_config=display(viewer))
    assert told["reply"]["status"] == "error"
    acks = sender.acks(2)
    shown, failed = (acks[each] for each in told["ids"])
    assert (shown["status"], failed["status"]) == ("success", "error")
    for ack in acks.values():
        assert ack["return_route"] == route
        assert ack["producer"] == {"pid": sender.process.pid, "create_time": 99.25}


@pytest.mark.parametrize(("generation", "viewer"), ALL)
def test_over_tcp(running: Running, start_sender: Start, generation: int, viewer: str) -> None:
    # Acknowledgements of the first two would go to the one port that all OpenHCS programs of this
    # machine share, so that nobody listens there in a test: they must be served all the same.
    sender = start_sender(generation, viewer, running.port, mode="tcp", listen=generation == 3)
    told = sender.send(image(), display_config=display(viewer))
    if (generation, viewer) != (1, "napari"):  # which publishes, and hears nothing
        assert told["reply"]["status"] == "success"
    until(lambda: running.layers, "the image is shown")
    if generation == 3:
        assert sender.acks(1)[told["ids"][0]]["status"] == "success"
    assert sender.do("left") == {"left": []}
    assert sender.control("ping")["type"] == "pong"


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_senders_of_polystore_alone(running: Running, start_sender: Start, generation: int) -> None:
    sender = start_sender(generation, "fiji", running.port, family="polystore")
    told = sender.send(image(), display_config=FIJI)
    assert told["reply"]["status"] == "success"
    assert sender.acks(1)[told["ids"][0]]["status"] == "success"
    assert sender.control("ping")["port"] == running.port
    assert sender.do("left") == {"left": []}


def test_all_generations_and_a_native_stream_at_once(running: Running, start_sender: Start) -> None:
    senders = [start_sender(*each, running.port, listen=False) for each in ALL]
    endpoint = running.receiver.endpoint
    assert endpoint is not None
    with connect(endpoint.addresses[0], token=endpoint.token) as stream:
        for number, (sender, (_, viewer)) in enumerate(zip(senders, ALL, strict=True)):
            sender.tell(
                "send",
                items=[
                    {
                        **image(z),
                        "place": place(z_index=z, source=f"sender {number}"),
                        "producer": {"step_name": f"sender {number}"},
                    }
                    for z in range(1, 6)
                ],
                display_config=display(viewer),
            )
        for z in range(20):
            stream.image(made(z), name="native", place={"z": z})
        for sender, (generation, viewer) in zip(senders, ALL, strict=True):
            reply = sender.hear()["reply"]
            assert (reply is None) == (generation == 1 and viewer == "napari")
            assert reply is None or reply["status"] == "success"
        stream.flush()
    wait_for(running, 20 + len(ALL) * 5)
    assert [sender.do("left")["left"] for sender in senders] == [[]] * 6


def wait_for(running: Running, count: int) -> None:
    """Until so many planes are shown."""
    deadline = time.monotonic() + 20
    while sum(len(layer.stack.planes) for layer in running.layers) < count:
        titles = [(layer.title, len(layer.stack.planes)) for layer in running.layers]
        assert time.monotonic() < deadline, titles
        time.sleep(0.01)


def test_what_is_published_by_a_plain_pub_socket(running: Running, start_sender: Start) -> None:
    sender = start_sender(1, "napari", running.port)
    (ack,) = sender.do("publish_until_acknowledged", items=[image()], display_config=NAPARI)["acks"]
    assert ack["status"] == "success"
    np.testing.assert_array_equal(planes(running)[1], made(1))


@pytest.mark.parametrize(("generation", "viewer"), [(1, "fiji"), (2, "napari"), (3, "fiji")])
def test_what_fails_is_said_and_hurts_nothing_else(
    running: Running, start_sender: Start, generation: int, viewer: str
) -> None:
    sender = start_sender(generation, viewer, running.port)
    told = sender.send(
        image(1),
        {"shm_name": f"{viewer}_absent00", "shape": [2, 2], "dtype": "uint8"},
        {"data_type": "film"},
        image(2),
        display_config=display(viewer),
    )
    assert told["reply"]["status"] == "error"
    assert "2 of 4 items failed" in told["reply"]["message"]
    acks = sender.acks(4)
    statuses = [acks[each]["status"] for each in told["ids"]]
    assert statuses == ["success", "error", "error", "success"]
    assert all(acks[each]["error"] for each in told["ids"][1:3])
    assert sorted(planes(running)) == [1, 2]
    assert sender.do("left") == {"left": []}


def test_what_is_no_batch_is_answered(running: Running, start_sender: Start) -> None:
    sender = start_sender(2, "fiji", running.port)
    for text in ("{ this is no JSON", "", "[]", '{"type": "batch"}', "\x80\x04pickle"):
        assert sender.do("raw", text=text)["reply"]["status"] == "error"
    assert sender.send(image(), display_config=FIJI)["reply"]["status"] == "success"


def test_what_is_published_and_is_no_batch_is_let_go(running: Running, start_sender: Start) -> None:
    sender = start_sender(1, "napari", running.port)
    for text in ("{ this is no JSON", "", "[]", '{"type": "batch"}'):
        sender.do("raw", text=text)
    told = sender.send(image(), display_config=NAPARI)
    assert sender.acks(1)[told["ids"][0]]["status"] == "success"


def test_many_batches_of_many_senders(running: Running, start_sender: Start) -> None:
    senders = [start_sender(1, viewer, running.port, listen=False) for viewer in ("fiji", "napari")]
    senders += [start_sender(3, viewer, running.port) for viewer in ("fiji", "napari")]
    ids: list[list[str]] = [[] for _ in senders]
    for batch in range(20):
        for sender in senders:
            sender.tell(
                "send",
                items=[image(4 * batch + each, shape=(64, 64)) for each in range(1, 5)],
                display_config=FIJI,
            )
        for number, sender in enumerate(senders):
            ids[number] += sender.hear()["ids"]
    for number in (2, 3):
        acks = senders[number].acks(80)
        assert set(acks) == set(ids[number])
        assert {ack["status"] for ack in acks.values()} == {"success"}
    layers = running.layers
    assert {len(layer.stack.planes) for layer in layers} == {80}
    assert [sender.do("left")["left"] for sender in senders] == [[]] * 4
