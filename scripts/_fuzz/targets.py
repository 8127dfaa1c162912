"""The decoders: what each takes, what it may refuse with, and samples of what is right."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from random import Random
from typing import Any, Final

import numpy as np

from openhcs_stream import dialects, discovery, rois
from openhcs_stream import messages as m
from openhcs_stream.errors import InvalidItem, ProtocolMismatch, ProtocolViolation, UsageError
from openhcs_stream.protocol import ReceiverSession, SenderSession, ViewerFacts
from openhcs_stream.recording import DamagedRecording
from openhcs_stream.transport import parse_address, socket_type
from openhcs_stream.viewer import parse_memory
from scripts._fuzz import files
from scripts._fuzz.files import written
from scripts._fuzz.mutate import mutate, mutate_json, mutate_msgpack

__all__ = ["TARGETS", "Target", "native_samples", "openhcs_samples"]

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]
_REFUSED: Final = (ProtocolViolation, ProtocolMismatch)
#: ROIs of one input that are used, and the image that they are filled in.
_USED: Final = 20
_SMALL: Final = (24, 32)
#: What a shape may take: so much, and so many times what its vertices take.
_SHAPE_NBYTES: Final = 64 << 10
_GROWTH: Final = 1100


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes
    ----------
    name : str
    decode : callable
        Takes bytes; looks itself at what came out. Raises one of `refusals`, and nothing else.
    refusals : tuple of exception types
    samples : callable
        Gives what is right, some of each kind.
    mutation : callable
    """

    name: str
    decode: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    samples: Callable[[], list[bytes]]
    mutation: Mutation = mutate


# --- native ---------------------------------------------------------------------------------------


@cache
def native_samples() -> list[bytes]:
    """One of each message, and some items of each kind."""
    spec = m.LayerSpec(
        "image", "raw", "ZYX", ("well", "channel"), source="plate", modes={"well": "split"},
        order=("well", "z"), pixel_size=(0.5, 0.5), unit="um", contrast_limits=(0.0, 9.0),
    )  # fmt: skip
    part = m.Part(-1, 0, 8, 1)
    item = m.Item(0, 0, ("A01", 1), (2, 2), "<u2", 8, (part,), {"id": "a", "n": 1, "x": 0.5})
    messages: list[m.Message] = [
        m.Hello(1, 0, "ab" * 16, "stream", "worker", "user", "host", 7, "token", ("unix",)),
        m.Hello(1, 0, "cd" * 16, "control", "ask", "user", "host", 7),
        m.Welcome(1, 0, "napari", "napari", 7, "unix:lane", "key", modes={"z": "slice"}),
        m.Refusal("why", "cure"),
        m.LaneOpened("ab" * 16, "key"),
        m.ArenaOffer(0, 4096),
        m.ArenaRetired(0),
        m.LayerDeclared(0, spec),
        m.LayerDeclared(1, m.LayerSpec("rois", "cells", "YX", ("time",))),
        m.Items((item, m.Item(1, 0, ("B02", 2), (0, 4), "|u1", 0, ()))),
        m.Items((m.Item(2, 1, (3,), (99,), "|u1", 99, (m.Part(0, 4096, 50, 2),)),)),
        m.More(2, (m.Part(0, 8192, 49, 3),)),
        m.Report((1, 2), (1,), (m.Failure(3, "why"),), (4,), (5,)),
        m.Ping(1),
        m.Pong(1),
        m.Request(1, "read", {"layer": "raw", "place": {"well": "A01"}}),
        m.Reply(1, True, {"shape": [1, 2], "data": b"ab"}),
        m.Edited(
            m.EditRecord(1, 0.5, "me", "changed", "rois", "cells", "plate", {"z": 1}, (0,), b"a"),
            (1,),
        ),
        m.EditsTaken((1, 2)),
        m.Bye("done"),
    ]
    return [m.encode(each) for each in messages]


def _native(data: bytes) -> None:
    message = m.decode(data)
    again = m.decode(m.encode(message))
    assert m.encode(again) == m.encode(message)
    m.is_native(data)


def _sessions(data: bytes) -> None:
    """Frames one after another, each with its length before it, to both halves of a session."""
    facts = ViewerFacts("memory", "memory", 1, "host", "token")
    receiver = ReceiverSession(facts, lane="unix:lane", key="key", trusted=True)
    sender = SenderSession(m.Hello(1, 0, "ab" * 16, "stream", "w", "u", "host", 1))
    sender.start(0.0)
    at = 0
    while at + 2 <= len(data):
        nbytes = int.from_bytes(data[at : at + 2], "little")
        frame = data[at + 2 : at + 2 + nbytes]
        at += 2 + nbytes
        for half in (receiver, sender):
            try:
                message = m.decode(frame)
                if isinstance(half, ReceiverSession) and isinstance(message, m.LaneOpened):
                    half.lane_opened(message, 1.0)
                else:
                    half.receive(message, 1.0)
            except _REFUSED as error:
                half.lost(error)
        receiver.report()


@cache
def _session_samples() -> list[bytes]:
    frames = native_samples()
    each = [len(frame).to_bytes(2, "little") + frame for frame in frames]
    return [b"".join(each), each[0] + each[7] + each[9], each[2] + each[12], each[0] + each[4]]


# --- regions of interest --------------------------------------------------------------------------


@cache
def _rois() -> list[rois.Roi]:
    triangle = np.array([[1.0, 2], [3, 40], [50, 6]])
    return [
        rois.Roi.polygon(triangle, name="cell", properties={"area": "7"}, position=(1, 2, 3)),
        rois.Roi.polyline(triangle + 0.25, stroke_color="#ff8000", stroke_width=2.0),
        rois.Roi.points(triangle, group=3),
        rois.Roi.rectangle(1, 2, 30, 40),
        rois.Roi.oval(1, 2, 30, 40),
        rois.Roi.line((1, 2), (3, 4)),
        rois.Roi("polygon", triangle, details=rois.Spline()),
        rois.Roi("traced", triangle, details=rois.Spline()),
        rois.Roi("freeline", triangle + 0.5, details=rois.Spline()),
        rois.Roi("ellipse", triangle),
        rois.Roi("rotated rectangle", triangle),
        rois.Roi.composite([triangle, triangle + 3], name="7"),
        rois.Roi("composite", np.vstack([triangle] * 2), details=rois.Path(bytes((0, 2, 3, 4)))),
        rois.Roi.rounded_rectangle(1, 2, 30, 40, 8),
        rois.Roi.arrow((1, 2), (3, 40)),
        rois.Roi.text(1, 2, 30, 40, "words"),
    ]


def _used(made: list[rois.Roi]) -> None:
    """What is done with ROIs that were accepted: nothing may fail, or grow with their numbers."""
    try:
        for roi in made:
            assert rois.to_mask(roi, _SMALL).shape == _SMALL
            kind, data = rois.to_napari(roi, warn=False)
            assert np.isfinite(data).all()
            assert data.nbytes <= _SHAPE_NBYTES + _GROWTH * roi.coordinates.nbytes
            rois.from_napari(kind, data)
            document = rois.to_geojson([roi], warn=False)
            json.dumps(document, allow_nan=False)
            rois.from_geojson(document)
            with contextlib.suppress(InvalidItem):  # beyond float32, or a property with a break
                rois.from_imagej(rois.to_imagej(roi))
        assert rois.to_labels(made, _SMALL, warn=False).shape == _SMALL
    except InvalidItem as error:
        raise AssertionError("what was accepted can't be used") from error


@cache
def _roi_blocks() -> list[bytes]:
    every = _rois()
    return [rois.encode(each) for each in ([], every, every[:1] * 30, every[1:2])]


def _roi_block(data: bytes) -> None:
    rois.estimated_nbytes(data)
    made = rois.decode(data)
    _used(made[:_USED])
    block = rois.encode(made)
    assert rois.encode(rois.decode(block)) == block


@cache
def _imagej_samples() -> list[bytes]:
    found = []
    for each in _rois():
        try:
            found.append(rois.to_imagej(each))
        except InvalidItem:  # this one has no place in ImageJ's format
            continue
    return found


def _imagej(data: bytes) -> None:
    roi = rois.from_imagej(data)
    _used([roi])
    rois.encode([roi])


@cache
def _zip_samples() -> list[bytes]:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number, data in enumerate(_imagej_samples()):
            file.writestr(f"{number}.roi", data)
    stored = BytesIO()
    with zipfile.ZipFile(stored, "w") as file:
        file.writestr("a.roi", _imagej_samples()[0])
        file.writestr("../../b.roi", _imagej_samples()[1])
        file.writestr("readme.txt", b"text")
    return [archive.getvalue(), stored.getvalue()]


def _roi_zip(data: bytes) -> None:
    _used(rois.read_imagej(written(data, "rois.zip"))[:_USED])


def _roi_file(data: bytes) -> None:
    _used(rois.read_imagej(written(data, "roi.roi")))


@cache
def _geojson_samples() -> list[bytes]:
    document = rois.to_geojson(_rois(), warn=False)
    return [json.dumps(each).encode() for each in (document, document["features"])]


def _geojson(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidItem("no JSON") from error
    made = rois.from_geojson(document)
    _used(made[:_USED])
    rois.encode(made)


# --- files ----------------------------------------------------------------------------------------


@cache
def _endpoint_samples() -> list[bytes]:
    return [
        json.dumps(
            {
                "viewer": "napari", "name": "napari", "pid": 7, "started": 1.5,
                "protocol": [1, 0], "token": "ab" * 32, "headless": False,
                "addresses": ["ipc:///tmp/x.ipc", f"tcp://127.0.0.1:5555?key={'cd' * 32}"],
            }
        ).encode()
    ]  # fmt: skip


def _viewer_file(data: bytes) -> None:
    endpoint = discovery.read_viewer_file(written(data, "a.viewer"))
    assert endpoint.token not in repr(endpoint) or len(endpoint.token) < 40
    discovery.is_public(endpoint)
    assert endpoint.port is None or endpoint.port >= 0


# --- other people's wires -------------------------------------------------------------------------


@cache
def openhcs_samples() -> list[bytes]:
    """Batches as OpenHCS's senders send them; their names of shared memory are nobody's."""
    image = {
        "path": "/plate/A01_s1_w1.tif", "image_id": "a" * 32, "data_type": "image",
        "shape": [2, 3], "dtype": "uint16", "shm_name": "psm_openhcs_stream_fuzz",
        "metadata": {"well": "A01", "site": 1, "channel": 1, "z_index": 2, "timepoint": 0},
    }  # fmt: skip
    inline = {**image, "data": [[1, 2, 3], [4, 5, 6]]}
    del inline["shm_name"]
    shapes = {
        "path": "/plate/A01.json", "image_id": "b" * 32, "data_type": "shapes",
        "metadata": {"well": "A01"},
        "shapes": [
            {"type": "polygon", "coordinates": [[1, 2], [3, 4], [5, 1]], "metadata": {"label": 1}},
            {"type": "ellipse", "center": [5, 5], "radii": [2, 3]},
            {"type": "path", "coordinates": [[1, 2], [3, 4]]},
        ],
    }  # fmt: skip
    display = {
        "component_modes": {"well": "stack", "channel": "slice"}, "colormap": "gray",
        "component_order": ["well", "site", "channel"], "auto_contrast": True,
    }  # fmt: skip
    batches = [
        {"type": "batch", "images": [image, inline, shapes], "display_config": display},
        {"type": "batch", "images": [], "images_dir": "/plate", "display_config": None},
        inline,
    ]
    return [json.dumps(each).encode() for each in batches]


def _openhcs(data: bytes) -> None:
    dialect = dialects.dialect_for(data)
    if dialect is None:
        return
    for family in ("", *dialects.FAMILIES):
        batch = dialect.read(data, viewer="napari", viewer_port=5555, local_ipc=True, family=family)
        json.loads(batch.reply([(item.id, "why") for item in batch.items[:3]]))
        for item in batch.items:
            assert item.spec.kind in ("image", "labels", "rois", "points")
            item.finish()
            item.finish()


@cache
def _pickle_samples() -> list[bytes]:
    values: list[Any] = [
        {"type": "ping"},
        {"type": "pong", "viewer": "napari", "port": 5555, "memory_mb": 12.5, "ready": True},
        {"a": [1, (2, None), {"b": b"c"}], "d": {1, 2}, "e": -(10**12)},
    ]
    return [pickle.dumps(each, protocol) for each in values for protocol in (2, 4, 5)]


def _pickle(data: bytes) -> None:
    pickle.dumps(dialects.load_plain(data))


def _control_answer(data: bytes) -> None:
    answer = dialects.read_control_answer(data)
    dialects.read_viewer(answer)
    dialects.read_settlement(answer)


def _command(data: bytes) -> None:
    dialects.read_command(data)


def _acknowledgement(data: bytes) -> None:
    dialects.read_acknowledgement(data)


def _batch_reply(data: bytes) -> None:
    dialects.read_batch_reply(data)


@cache
def _answer_samples() -> list[bytes]:
    return [
        json.dumps(each).encode()
        for each in (
            {"status": "success", "message": "done"},
            {"status": "error", "message": "why"},
            {
                "type": "image_ack", "image_id": "a", "viewer_port": 5555,
                "viewer_type": "napari", "status": "success", "timestamp": 1.5,
            },
        )
    ]  # fmt: skip


@cache
def _greetings() -> list[bytes]:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ\x08Identity\x00\x00\x00\x00"
    return [greeting + bytes([4, len(ready)]) + ready, greeting, b"GET / HTTP/1.1\r\n\r\n"]


def _greeting(data: bytes) -> None:
    kind = socket_type(data)
    assert kind is None or isinstance(kind, bytes)


# --- texts ----------------------------------------------------------------------------------------


def _address(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    where = parse_address(text)
    assert parse_address(str(where)) == where


def _memory(data: bytes) -> None:
    assert parse_memory(data.decode("utf-8", "surrogateescape")) > 0


@cache
def _address_samples() -> list[bytes]:
    return [
        b"tcp://127.0.0.1:5555",
        b"tcp://[::1]:0",
        f"tcp://host.example:5555?key={'ab' * 32}".encode(),
        b"ipc:///run/user/1000/x",
        b"ipc://@name",
        b"unix:name",
        b"inproc://name",
    ]


TARGETS: Final = {
    target.name: target
    for target in (
        Target("native messages", _native, _REFUSED, native_samples, mutate_msgpack),
        Target("sessions", _sessions, (), _session_samples),
        Target("ROI blocks", _roi_block, (ProtocolViolation,), _roi_blocks, mutate_msgpack),
        Target("ImageJ ROIs", _imagej, (InvalidItem,), _imagej_samples),
        Target("ImageJ .roi files", _roi_file, (InvalidItem,), _imagej_samples),
        Target("ImageJ .zip files", _roi_zip, (InvalidItem,), _zip_samples),
        Target("GeoJSON", _geojson, (InvalidItem,), _geojson_samples, mutate_json),
        Target("viewer files", _viewer_file, (UsageError,), _endpoint_samples, mutate_json),
        Target("endpoint files", files.endpoint_file, (), _endpoint_samples, mutate_json),
        Target("ledgers", files.ledger, (), files.ledger_samples, files.mutate_ledger),
        Target(
            "recordings", files.recording, (DamagedRecording,), files.recording_samples,
            files.mutate_recording,
        ),
        Target("OpenHCS batches", _openhcs, (ProtocolViolation,), openhcs_samples, mutate_json),
        Target("pickles", _pickle, (ProtocolViolation,), _pickle_samples),
        Target("OpenHCS control answers", _control_answer, (ProtocolViolation,), _pickle_samples),
        Target("OpenHCS commands", _command, (ProtocolViolation,), _pickle_samples),
        Target(
            "OpenHCS acknowledgements", _acknowledgement, (ProtocolViolation,), _answer_samples,
            mutate_json,
        ),
        Target(
            "OpenHCS replies", _batch_reply, (ProtocolViolation,), _answer_samples, mutate_json
        ),
        Target("ZeroMQ greetings", _greeting, (), _greetings),
        Target("addresses", _address, (InvalidItem,), _address_samples),
        Target("amounts of memory", _memory, (InvalidItem,), lambda: [b"4G", b"25%", b"512 MiB"]),
    )
}  # fmt: skip
