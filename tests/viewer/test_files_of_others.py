"""Whatever a sender names: no file of that name is read, written, moved or removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: A viewer, and a sender that names one file wherever it can name something. Python itself tells
#: of each file that is opened or changed.
PROGRAM = r"""
import json, os, sys, time
import zmq
from openhcs_stream import messages as m
from openhcs_stream import rois
from openhcs_stream.testing import run_receiver
from openhcs_stream.transport import LaneClosed, ZmqLane
from openhcs_stream.viewer import MemoryViewer

precious = sys.argv[1]
touched = []

def look(event, args):
    if event == "open" or event.partition(".")[0] in ("os", "shutil", "glob", "tempfile"):
        for each in args:
            if not isinstance(each, (str, bytes, os.PathLike)):
                continue
            path = os.fsdecode(each)
            # Where blocks of OpenHCS senders are looked for, by a plain name; no link is followed.
            if "precious" in path and os.path.dirname(path) != "/dev/shm":
                touched.append([event, repr(args)])

sys.addaudithook(look)
names = [precious, "../" * 12 + precious.lstrip("/"), f"file://{precious}",
         os.path.basename(precious)]
replies = 0

def hear(lane, kind):
    deadline, heard = time.monotonic() + 15, []
    while time.monotonic() < deadline:
        frame = lane.receive()
        if frame is not None:
            message = m.decode(frame.data)
            if isinstance(message, kind):
                return message
            heard.append(message)
    raise AssertionError(f"no {kind} but {heard}")

with run_receiver(MemoryViewer(), port=0) as running:
    for number, name in enumerate(names):
        with ZmqLane.connect(running.address) as lane:
            hello = m.Hello(1, 0, f"{number:032x}", "stream", name, name, "elsewhere", 1, "")
            lane.send(m.encode(hello))
            hear(lane, m.Welcome)
            block = rois.encode([rois.Roi.rectangle(0, 0, 2, 2, name=name)])
            for layer, (kind, shape, dtype, data) in enumerate((
                ("image", (2, 2), "|u1", b"abcd"), ("labels", (2, 2), "|u1", b"abcd"),
                ("points", (1, 2), "<f8", bytes(16)), ("rois", (len(block),), "|u1", block),
            )):
                spec = m.LayerSpec(kind, name, "YX", ("well",), source=name, unit=name,
                                   colormap=name)
                lane.send(m.encode(m.LayerDeclared(layer, spec)))
                part = m.Part(-1, 0, len(data), 1)
                item = m.Item(layer, layer, (name,), shape, dtype, len(data), (part,),
                              {"path": name, "id": name, "file": name})
                lane.send(m.encode(m.Items((item,))), blobs=[memoryview(data)])
            for verb in ("status", "log", "layers", "places", "read", "waiting_edits",
                         "screenshot", "clear", "save", "load", "open", "record", name[:60]):
                for args in ({}, {"name": name, "layer": name}, {"place": {"well": name}},
                             dict.fromkeys(("path", "file", "folder", "to", "filename"), name)):
                    lane.send(m.encode(m.Request(1, verb, args)))
                    hear(lane, m.Reply)
                    replies += 1
        for address in running.receiver.endpoint.addresses:
            sender = zmq.Context.instance().socket(zmq.REQ)
            sender.setsockopt(zmq.LINGER, 0)
            sender.setsockopt(zmq.RCVTIMEO, 20_000)
            sender.connect(address)
            image = {"path": name, "image_id": "a", "data_type": "image", "shm_name": name,
                     "shape": [2, 2], "dtype": "uint8", "metadata": {"well": name}}
            inline = {**image, "data": [[1, 2], [3, 4]]}
            del inline["shm_name"]
            for data_type in ("image", "shapes", "points", "rois"):
                batch = {"type": "batch", "images": [{**image, "data_type": data_type}, inline],
                         "images_dir": name, "display_config": {"colormap": name}}
                sender.send(json.dumps(batch).encode())
                sender.recv()
                replies += 1
            sender.close()
seen = list(touched)
open(precious, "rb").close()
print(json.dumps({"touched": seen, "looks": len(touched) > len(seen), "replies": replies}))
os._exit(0)
"""


def test_a_name_that_a_sender_gives_is_no_file_s(tmp_path: Path) -> None:
    precious = tmp_path / "precious.tif"
    precious.write_bytes(b"mine")
    before = precious.stat()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(precious)],
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["looks"], "what it watches by sees nothing"
    assert told["replies"] > 200
    assert told["touched"] == []
    assert precious.read_bytes() == b"mine"
    assert precious.stat().st_mtime_ns == before.st_mtime_ns
    assert [each.name for each in tmp_path.iterdir()] == ["precious.tif"]
