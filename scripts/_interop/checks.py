"""The checks: each drives real packages, looks at what became of every pixel, and tidies up."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cases
import numpy as np
from record import ACK_PORT
from running import (
    HERE,
    Failed,
    OurViewer,
    Run,
    TheirViewer,
    a_socket,
    segments,
    their_ipc,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cases import Item

__all__ = ["Outcome", "all_checks"]

#: What their senders wait for acknowledgements.
ACK_WAIT_S = 15.0


@dataclass
class Outcome:
    """What one check came to."""

    check: str
    generation: str
    viewer: str
    passed: bool = False
    seconds: float = 0.0
    said: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check, not yet done."""

    name: str
    generation: str
    viewer: str
    do: Callable[[Run, str, str], dict[str, Any]]

    def __call__(self, run: Run) -> Outcome:
        """Do it; an error of any kind is its outcome."""
        outcome = Outcome(self.name, self.generation, self.viewer)
        started = time.monotonic()
        try:
            outcome.facts = self.do(run, self.generation, self.viewer)
            outcome.passed = True
        except Failed as error:
            outcome.said = str(error)
        except Exception as error:  # whatever it is, the other checks go on
            outcome.said = f"{type(error).__name__}: {error}"
        outcome.seconds = round(time.monotonic() - started, 1)
        return outcome


def all_checks() -> list[Check]:
    """Every check, in the order in which they are done."""
    generations = ("gen1", "gen2", "gen3")
    both = ("napari", "fiji")
    made: list[Check] = []
    for generation, viewer in itertools.product(generations, both):
        made += [
            Check("their sender, our receiver", generation, viewer, their_sender),
            Check("the same by tcp", generation, viewer, their_sender_by_tcp),
            Check("all types and outlines", generation, viewer, their_types),
        ]
    made += [
        Check("two generations at once", "gen1+gen3", viewer, two_generations) for viewer in both
    ]
    for generation, viewer in itertools.product(generations, both):
        made += [
            Check("our stream, their viewer", generation, viewer, our_stream),
            Check("kill -9 of our worker", generation, viewer, our_worker_killed),
        ]
    made += [
        Check("continuous streaming", "gen1", "fiji", our_endurance),
        Check("their acknowledgements taken", "gen1", "fiji", port_taken),
        Check("a viewer that was killed", "gen2", "napari", their_viewer_killed),
    ]
    for generation, viewer in itertools.product(generations, both):
        made.append(Check("drop-in backend, our receiver", generation, viewer, drop_in))
    made.append(Check("drop-in backend, their viewer", "gen2", "napari", drop_in_to_theirs))
    return made


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Shared memory is as it was before, soon after the block."""
    before = segments()
    yield
    until(
        lambda: not left_since(before),
        5.0,
        f"shared memory is given back: {sorted(left_since(before))[:5]}",
    )


def left_since(before: set[str]) -> set[str]:
    """New names of the kinds that either side makes; others may be made by other programs."""
    ours = ("napari_", "fiji_", "openhcs-stream-", ".openhcs-stream-", "psm_")
    return {name for name in segments() - before if name.startswith(ours)}


# --- their senders --------------------------------------------------------------------------------


def send_theirs(
    run: Run, generation: str, viewer: str, port: int, batches: list[list[Item]], **task: Any
) -> dict[str, Any]:
    """Have their sender send; what it reports."""
    report: dict[str, Any] = run.call(
        [str(run.pythons[generation]), str(run.drivers / "theirs_send.py")],
        f"{generation}-{viewer}-send",
        {
            "generation": generation,
            "viewer": viewer,
            "port": port,
            "mode": "ipc",
            "batches": batches,
            "wait_s": ACK_WAIT_S,
            **task,
        },
    )
    return report


def expect_sent(report: dict[str, Any], count: int) -> None:
    """All calls were right, and their own tracker counts N of N."""
    wrong = [call["error"] for call in report["calls"] if not call["ok"]]
    if wrong:
        raise Failed(f"{len(wrong)} of {len(report['calls'])} calls failed: {wrong[0]}")
    if not report["pong"]:
        raise Failed("their ping was not answered")
    if report["progress"] != [count, count]:
        raise Failed(f"their tracker says {report['progress']}, and {count} were sent")


def images_of(batches: list[list[Item]]) -> list[Item]:
    return [item for batch in batches for item in batch if item["kind"] == "image"]


def canonical(components: Item) -> Item:
    names = {"z_index": "z", "timepoint": "time"}
    return {names.get(name, name): value for name, value in components.items()}


def find_plane(viewer: OurViewer, layers: list[Any], where: Item) -> np.ndarray[Any, Any] | None:
    """The plane at a place, as our receiver holds it."""
    for layer in layers:
        if layer["kind"] not in ("image", "labels"):
            continue
        split = {key: value for key, value in layer["split"].items() if key in where}
        if any(str(where[key]) != str(value) for key, value in split.items()):
            continue
        place = {name: where[name] for name in layer["components"] if name in where}
        if list(place.values()) not in [
            [value for name, value in zip(layer["components"], plane, strict=True) if name in where]
            for plane in layer["planes"]
        ]:
            continue
        missing = [name for name in layer["components"] if name not in where]
        if missing:
            continue
        found = viewer.ask("read", layer=layer["title"], place=place)
        return np.frombuffer(found["data"], found["dtype"]).reshape(found["shape"])
    return None


def expect_pixels(viewer: OurViewer, images: list[Item]) -> int:
    """Every image stands at its place, pixel by pixel; the number of planes."""
    layers = viewer.ask("layers")
    planes = 0
    for item in images:
        expected = cases.pixels(item["shape"], item["dtype"], item["number"])
        where = canonical(item["components"])
        places = [where]
        if expected.ndim == 3:
            places = [{**where, "z": index} for index in range(len(expected))]
        for index, place in enumerate(places):
            got = find_plane(viewer, layers, place)
            wanted = expected if expected.ndim == 2 else expected[index]
            if got is None:
                raise Failed(
                    f"nothing stands at {place}; layers {[each['title'] for each in layers]}"
                )
            if got.shape != wanted.shape or not np.array_equal(
                got.astype(np.float64), wanted.astype(np.float64)
            ):
                raise Failed(f"other pixels stand at {place}")
            planes += 1
    return planes


@contextlib.contextmanager
def ours(run: Run, viewer: str) -> Iterator[OurViewer]:
    """A receiver of ours."""
    made = OurViewer(run, viewer)
    try:
        yield made.ready()
    finally:
        made.close()


def their_sender(run: Run, generation: str, viewer: str, mode: str = "ipc") -> dict[str, Any]:
    """A plate: every pixel, their tracker N of N, nothing left."""
    batches = cases.large_batches()
    images = images_of(batches)
    with nothing_left(), ours(run, viewer) as receiver:
        report = send_theirs(run, generation, viewer, receiver.port, batches, mode=mode)
        facts = {"pong": report["pong"], "progress": report["progress"]}
        expect_sent(report, len(images))
        facts["planes"] = expect_pixels(receiver, images)
    return facts


def their_sender_by_tcp(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """The same by tcp; the port of acknowledgements is one for the whole machine."""
    if generation != "gen3":
        import socket

        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", ACK_PORT)) == 0:
                return {"skipped": f"somebody listens at {ACK_PORT}"}
    return their_sender(run, generation, viewer, mode="tcp")


def their_types(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """Each type of pixel, a 3-D image, outlines and points."""
    small = cases.small_batches(generation, viewer)
    volume = cases.image(2, (3, 24, 32), "uint16", well="C03")
    batches = [
        [{**item, "shape": [24, 32]} for item in small["dtypes"]],
        [volume],
        small["image_and_rois"],
        *([small["points"]] if "points" in small else []),
    ]
    count = sum(len(batch) for batch in batches)
    images = [item for item in images_of(batches) if item["dtype"] != "float64" or viewer != "fiji"]
    with nothing_left(), ours(run, viewer) as receiver:
        report = send_theirs(run, generation, viewer, receiver.port, batches)
        expect_sent(report, count)
        planes = expect_pixels(receiver, [item for item in images if item is not volume])
        layers = receiver.ask("layers")
        depth = [layer for layer in layers if "C03" in json.dumps(layer, default=str)]
        if not any(len(layer.get("planes", ())) >= 3 for layer in depth):
            raise Failed(f"the 3-D image has not 3 planes: {depth}")
        outlines = [layer for layer in layers if layer["kind"] == "rois"]
        found = sum(size for layer in outlines for _, size in layer["items"])
        points = [layer for layer in layers if layer["kind"] == "points"]
        found += sum(size for layer in points for _, size in layer["items"])
        wanted = sum(len(item.get("shapes", ())) for batch in batches for item in batch)
        if found != wanted:
            raise Failed(f"{found} of {wanted} outlines and points are there: {outlines} {points}")
    return {"planes": planes, "outlines": found}


def moved(item: Item, sites: int) -> Item:
    """The same item at another site."""
    where = item["components"]
    return {**item, "components": {**where, "site": where["site"] + sites}}


def two_generations(run: Run, generations: str, viewer: str) -> dict[str, Any]:
    """Senders of two generations, and a native stream, on one receiver."""
    import openhcs_stream

    first, second = generations.split("+")
    plates = {}
    for number, generation in enumerate((first, second)):
        plates[generation] = [
            [moved(item, sites=10 * number + 10) for item in batch]
            for batch in cases.large_batches()[:2]
        ]
    with nothing_left(), ours(run, viewer) as receiver:
        with receiver.in_its_world():
            stream = openhcs_stream.connect(receiver.name, source="native")
        with stream:
            native = cases.image(77, (96, 128), "uint16", site=99)
            stream.image(
                cases.pixels(native["shape"], native["dtype"], native["number"]),
                place=canonical(native["components"]),
            )
            for generation, batches in plates.items():
                report = send_theirs(run, generation, viewer, receiver.port, batches)
                expect_sent(report, len(images_of(batches)))
            stream.flush(20)
        planes = expect_pixels(receiver, [native])
        for batches in plates.values():
            planes += expect_pixels(receiver, images_of(batches))
    return {"planes": planes}


# --- our streams ----------------------------------------------------------------------------------


@contextlib.contextmanager
def theirs(run: Run, generation: str, viewer: str, mode: str = "ipc") -> Iterator[TheirViewer]:
    """A viewer of theirs."""
    made = TheirViewer(run, generation, viewer, mode)
    try:
        yield made.ready()
    finally:
        made.close()


def send_ours(
    run: Run, target: str | int, batches: list[list[Item]], **task: Any
) -> dict[str, Any]:
    """Have a worker of ours send; what it reports."""
    report: dict[str, Any] = run.call(
        [sys.executable, str(HERE / "ours_send.py")],
        "ours-send",
        {"target": str(target), "batches": batches, **task},
    )
    return report


def expect_shown(viewer: TheirViewer, images: list[Item], limit_s: float = 15.0) -> int:
    """Every plane stands in their viewer, in the right order along every slider."""

    def problem() -> str:
        layers = [each for each in viewer.shown() if "array" in each and each["kind"] != "points"]
        planes = [
            plane.astype(np.float64)
            for layer in layers
            if layer["array"].ndim >= 2
            for plane in layer["array"].reshape(-1, *layer["array"].shape[-2:])
        ]
        for item in images:
            wanted = cases.pixels(item["shape"], item["dtype"], item["number"]).astype(np.float64)
            for part in wanted.reshape(-1, *wanted.shape[-2:]):
                if not any(np.array_equal(part, plane) for plane in planes):
                    shapes = [(each["name"], each["array"].shape) for each in layers]
                    return f"image {item['number']} is not among {shapes}"
        return order_of(viewer, layers, images)

    deadline = time.monotonic() + viewer.run.left(limit_s)
    while (wrong := problem()) and time.monotonic() < deadline:
        time.sleep(0.3)
    if wrong:
        raise Failed(f"{wrong}; {viewer.said()[-300:]}")
    return len(images)


def order_of(viewer: TheirViewer, layers: list[Any], images: list[Item]) -> str:
    """Along each slider values count up: of a layer's planes by position, their items' places."""
    if viewer.generation == "gen3":
        return ""
    numbers = {}
    for item in images:
        array = cases.pixels(item["shape"], item["dtype"], item["number"]).astype(np.float64)
        if array.ndim == 2:
            numbers[array.tobytes()] = item["components"]
    names = ("well", "site", "z_index", "timepoint", "channel")
    for layer in layers:
        array = layer["array"]
        grid = array.shape[:-2]
        places = {
            index: numbers.get(array[index].astype(np.float64).tobytes())
            for index in np.ndindex(grid)
        }
        for axis in range(len(grid)):
            for index, place in places.items():
                behind = (*index[:axis], index[axis] + 1, *index[axis + 1 :])
                later = places.get(behind)
                if place is None or later is None:
                    continue
                # One component, or of Fiji's frames several in turn, goes up; none goes down first.
                changed = [(place[n], later[n]) for n in names if place[n] != later[n]]
                if not changed or all(str(a) > str(b) for a, b in changed):
                    return f"{layer['name']} is out of order along axis {axis}: {place}, {later}"
    return ""


def our_batches(generation: str, viewer: str) -> list[list[Item]]:
    """A plate out of order, a volume, outlines, points."""
    plate = [item for batch in cases.large_batches() for item in batch]
    shuffled = [plate[index] for index in np.random.default_rng(1).permutation(len(plate))]
    items: list[Item] = [*shuffled]
    overlay = cases.rois(cases.SHAPES, z=2)
    items.append(overlay)
    if (generation, viewer) != ("gen1", "napari"):
        items.append(
            {"kind": "points", "yx": [[2.0, 3.0], [5.5, 1.5]], "components": cases.place(z=3)}
        )
    return [items]


def our_stream(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """Images out of order, outlines, points: every pixel at its place, our tracker N of N."""
    batches = our_batches(generation, viewer)
    count = len(batches[0])
    with nothing_left(), theirs(run, generation, viewer) as their_viewer:
        report = send_ours(run, their_viewer.port, batches)
        if report["error"]:
            raise Failed(report["error"])
        tells = report["viewer"]["tells_displayed"]
        queue = report["queue"]
        if queue["sent"] - queue["failed"] < count or queue["received"] < count:
            raise Failed(f"{count} were sent, and the queue says {queue}; {report['reasons']}")
        if report["states"] != (["displayed"] if tells else ["received"]):
            raise Failed(f"states {report['states']} of a viewer that tells: {tells}")
        for what in ("tracks", "axis", *(["rgb"] if viewer == "fiji" else [])):
            if "can't" not in report["refused"][what]:
                raise Failed(f"{what} was not refused by name: {report['refused'][what]}")
        planes = expect_shown(their_viewer, images_of(batches))
        outlines = outlines_of(their_viewer, generation, viewer)
    return {"planes": planes, "queue": queue, "outlines": outlines, "tells_displayed": tells}


def outlines_of(their_viewer: TheirViewer, generation: str, viewer: str) -> int:
    """How many outlines stand in their viewer, where they lie."""
    shown = their_viewer.shown()
    if generation == "gen3":
        return sum(len(each["shapes"]) for each in shown if each["kind"] == "shapes")
    if viewer == "fiji":
        rois = [each for each in shown if each["kind"] == "roi"]
        if len(rois) != len(cases.SHAPES) + 1:
            raise Failed(f"{len(rois)} regions are in the ROI Manager")
        # Position C, Z, T counts from 1: the outlines lie over z 2 of 1, 2, 3.
        if {tuple(each["position"])[1] for each in rois[:-1]} != {2}:
            raise Failed(f"they lie at {[each['position'] for each in rois]}, not at z 2")
        corner = min(rois[0]["yx"])
        if corner != [1.5, 1.5]:  # pixel centres are 0.5 in ImageJ
            raise Failed(f"the first outline begins at {corner}")
        return len(rois)
    if generation == "gen1":
        labels = [each for each in shown if each["kind"] == "labels"]
        found = {int(n) for each in labels for n in np.unique(each["array"])} - {0}
        if len(found) != len(cases.SHAPES):
            raise Failed(f"{len(found)} regions are drawn")
        return len(found)
    shapes = [each for each in shown if each["kind"] == "shapes"]
    points = [each for each in shown if each["kind"] == "points"]
    count = sum(len(each["shapes"]) for each in shapes)
    if count != len(cases.SHAPES) or sum(len(each["array"]) for each in points) != 2:
        raise Failed(f"{count} shapes and {[each['array'].shape for each in points]} points")
    return count


def our_worker_killed(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """A worker that dies while it sends leaves nothing, and the viewer goes on."""
    batches = cases.large_batches()
    with nothing_left(), theirs(run, generation, viewer) as their_viewer:
        with contextlib.suppress(Failed):  # it is killed, and reports nothing
            send_ours(run, their_viewer.port, batches, die_at=True)
        # Generation 3's viewer answers nobody while it acknowledges to the dead worker: `send_ack`
        # of zmqruntime waits 1 s for each image of the batch.
        busy_s = float(len(images_of(batches)))
        report = send_ours(run, their_viewer.port, [batches[0]], timeout_s=busy_s + 20.0)
        # Generation 2's napari can't draw a stack in which the dead worker left a plane out, and
        # says so of all that it has: that our worker hears it is right.
        if report["error"] and "stack missing routed image" not in report["error"]:
            raise Failed(f"after the other's death: {report['error']}")
        if report["queue"]["received"] < len(batches[0]):
            raise Failed(f"after the other's death the queue says {report['queue']}")
    return {}


def our_endurance(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """Seconds of small images, in which generation 1's own senders are hung up for ever."""
    items = [
        cases.image(200 + n, (64, 64), "uint8", z=n % 40 + 1, channel=n // 40 + 1)
        for n in range(160)
    ]
    with nothing_left(), theirs(run, generation, viewer) as their_viewer:
        report = send_ours(run, their_viewer.port, [items], pause_s=0.04, flush_s=60)
        if report["error"] or report["states"] != ["displayed"]:
            raise Failed(f"{report['error']} {report['states']} {report['queue']}")
        expect_shown(their_viewer, items)
    return {"queue": report["queue"]}


def port_taken(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """Another program has the port of acknowledgements: it keeps it, and we say what is known."""
    import zmq

    items = cases.large_batches()[0]
    with a_socket(zmq.PULL, 8000) as other:
        other.bind(their_ipc(run.home, ACK_PORT))
        with nothing_left(), theirs(run, generation, viewer) as their_viewer:
            report = send_ours(run, their_viewer.port, [items])
            taken = json.loads(other.recv())
            expect_shown(their_viewer, items)
    if report["viewer"]["acknowledges"] or report["states"] != ["received"] or report["error"]:
        raise Failed(f"{report['viewer']} {report['states']} {report['error']}")
    return {"the other still gets": taken["type"]}


def their_viewer_killed(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """A dead viewer is told within the deadline, by name."""
    import openhcs_stream
    from openhcs_stream.errors import StreamError

    with nothing_left():
        their_viewer = TheirViewer(run, generation, viewer).ready()
        with our_world(run):
            stream = openhcs_stream.connect(their_viewer.port, timeout_s=3.0)
        with contextlib.ExitStack() as stack:
            stack.callback(stream.close, timeout_s=0.0)
            stack.callback(their_viewer.close)
            stream.image(np.zeros((8, 8), np.uint8)).wait("received", timeout_s=10)
            their_viewer.process.kill()
            their_viewer.process.wait()
            started = time.monotonic()
            receipt = stream.image(np.ones((8, 8), np.uint8))
            try:
                receipt.wait("received", timeout_s=15)
            except StreamError as error:
                told = f"{type(error).__name__}: {error}"
            else:
                raise Failed("a dead viewer received an image")
            seconds = time.monotonic() - started
    if seconds > 10:
        raise Failed(f"it took {seconds:.1f} s: {told}")
    return {"told": told, "seconds": round(seconds, 1)}


@contextlib.contextmanager
def our_world(run: Run) -> Iterator[None]:
    """This process with the run's HOME and runtime folder."""
    names = ("HOME", "OPENHCS_STREAM_RUNTIME_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: run.environment[name] for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --- drop-in --------------------------------------------------------------------------------------


def drop_in(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """Their pipeline's call, through our package, into our receiver: native all the way."""
    batches = cases.large_batches()
    batches.append([cases.rois(cases.SHAPES, z=2)])
    images = images_of(batches)
    with nothing_left(), ours(run, viewer) as receiver:
        report = send_theirs(run, generation, viewer, receiver.port, batches, through_ours=True)
        expect_sent(report, len(images) + 1)
        planes = expect_pixels(receiver, images)
        outlines = [each for each in receiver.ask("layers") if each["kind"] == "rois"]
        if sum(size for layer in outlines for _, size in layer["items"]) != len(cases.SHAPES):
            raise Failed(f"the outlines are {outlines}")
    return {"planes": planes}


def drop_in_to_theirs(run: Run, generation: str, viewer: str) -> dict[str, Any]:
    """The same with their own viewer at that port."""
    batches = cases.large_batches()
    images = images_of(batches)
    with nothing_left(), theirs(run, generation, viewer) as their_viewer:
        report = send_theirs(run, generation, viewer, their_viewer.port, batches, through_ours=True)
        expect_sent(report, len(images))
        planes = expect_shown(their_viewer, images)
    return {"planes": planes}
