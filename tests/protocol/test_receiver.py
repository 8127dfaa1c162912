"""The viewer's half: messages and times go in, effects come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import pytest

from openhcs_stream.errors import (
    OutOfSpace,
    ProtocolMismatch,
    ProtocolViolation,
    StreamError,
    ViewerLost,
)
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaOffer,
    ArenaRetired,
    Bye,
    Failure,
    Hello,
    Item,
    Items,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Message,
    More,
    Part,
    Ping,
    Pong,
    Refusal,
    Report,
    Request,
    Welcome,
    encode,
)
from openhcs_stream.protocol import (
    Answer,
    Effect,
    Ended,
    MapArena,
    Opened,
    ReceiverPhase,
    ReceiverSession,
    SendControl,
    Take,
    TakePart,
    UnmapArena,
    ViewerFacts,
    _receiver,
)

FACTS = ViewerFacts("napari", "napari-2", 77, "host", "secret", modes={"z": "stack"},
                    required=("well",))  # fmt: skip
NEAR = Hello(MAJOR, MINOR, "5e55", "stream", "worker", "ada", "host", 1, lanes=("unix",))
FAR = msgspec.structs.replace(NEAR, host="another host")
CONTROL = msgspec.structs.replace(NEAR, role="control")
WELCOME = Welcome(MAJOR, MINOR, "napari", "napari-2", 77, "", "", FACTS.kinds, {"z": "stack"},
                  ("well",))  # fmt: skip
SIDE = msgspec.structs.replace(WELCOME, lane="unix:side", key="key")
SPEC = LayerSpec("image", "raw", "YX", ("z",))
LAYER = LayerDeclared(0, SPEC)
GONE = ViewerLost("it is gone.")

#: A message to take in, or something else to do with the session.
Step: TypeAlias = Message | Callable[[ReceiverSession], list[Effect] | None]


def item(seq: int, *parts: Part, nbytes: int = 10, **changes: Any) -> Item:
    made = Item(seq, 0, (3,), (nbytes,), "|u1", nbytes, parts)
    return msgspec.structs.replace(made, **changes)


def part(nbytes: int, lease: int = 0) -> Part:
    return Part(0, 0, nbytes, lease)


def lane(key: str = "key", session: str = "5e55") -> Callable[[ReceiverSession], list[Effect]]:
    return lambda receiver: receiver.lane_opened(LaneOpened(session, key), 0.0)


def lost(error: StreamError | None) -> Callable[[ReceiverSession], list[Effect]]:
    return lambda receiver: receiver.lost(error)


def failed(seq: int, reason: str = "why") -> Callable[[ReceiverSession], None]:
    return lambda receiver: receiver.failed(seq, reason)


OPEN: list[Step] = [FAR, LAYER]
WHOLE = item(0, part(10, 90))
HALF = item(0, part(4, 90))
EMPTY = item(0, nbytes=0)


@dataclass(frozen=True)
class Case:
    name: str
    given: list[Step]
    effects: list[Effect]  #: of the last step
    phase: ReceiverPhase = ReceiverPhase.OPEN


CASES = [
    Case("a near sender gets a lane", [NEAR], [SendControl(SIDE), Opened(None)],
         ReceiverPhase.LINKING),
    Case("a far sender stays", [FAR], [SendControl(WELCOME), Opened(None)]),
    Case("one that can't open lanes stays", [msgspec.structs.replace(NEAR, lanes=("shm",))],
         [SendControl(WELCOME), Opened(None)]),
    Case("a control session needs no lane", [CONTROL], [SendControl(WELCOME), Opened(None)]),
    Case("the lane is opened", [NEAR, lane()], []),
    Case("items on the control lane: the lane could not be opened",
         [NEAR, LAYER, Items((WHOLE,))], [Take(WHOLE, SPEC)]),
    Case("a layer may be declared while linking", [NEAR, LAYER], [], ReceiverPhase.LINKING),
    Case("a ping before the greeting", [Ping(1)], [SendControl(Pong(1))], ReceiverPhase.WAITING),
    Case("a ping", [FAR, Ping(2)], [SendControl(Pong(2))]),
    Case("a pong", [FAR, Pong(2)], []),
    Case("a request", [CONTROL, Request(1, "status")], [Answer(Request(1, "status"))]),
    Case("a request while linking", [NEAR, Request(1, "clear")], [Answer(Request(1, "clear"))],
         ReceiverPhase.LINKING),
    Case("an arena", [NEAR, lane(), ArenaOffer(2, 4096)], [MapArena(2, 4096)]),
    Case("an arena retires", [NEAR, lane(), ArenaRetired(2)], [UnmapArena(2)]),
    # --- items ---
    Case("an item in one part", [*OPEN, Items((WHOLE,))], [Take(WHOLE, SPEC)]),
    Case("an item of no bytes", [*OPEN, Items((EMPTY,))], [Take(EMPTY, SPEC)]),
    Case("several items", [*OPEN, Items((WHOLE, item(1, part(10, 91))))],
         [Take(WHOLE, SPEC), Take(item(1, part(10, 91)), SPEC)]),
    Case("no items", [*OPEN, Items(())], []),
    Case("a layer declared again: its items look different",
         [*OPEN, LayerDeclared(0, msgspec.structs.replace(SPEC, opacity=0.5)), Items((WHOLE,))],
         [Take(WHOLE, msgspec.structs.replace(SPEC, opacity=0.5))]),
    Case("the first part", [*OPEN, Items((HALF,))], [TakePart(HALF, SPEC, part(4, 90), 0, False)]),
    Case("the last part", [*OPEN, Items((HALF,)), More(0, (part(6, 91),))],
         [TakePart(HALF, SPEC, part(6, 91), 4, True)]),
    Case("an item whose parts all follow", [*OPEN, Items((item(0),)), More(0, (part(10, 91),))],
         [TakePart(item(0), SPEC, part(10, 91), 0, True)]),
    Case("parts in one message", [*OPEN, Items((item(0, part(4), part(6)),))],
         [TakePart(item(0, part(4), part(6)), SPEC, part(4), 0, False),
          TakePart(item(0, part(4), part(6)), SPEC, part(6), 4, True)]),
    Case("parts of two items, mixed",
         [*OPEN, Items((HALF, item(1, part(1)))), More(0, (part(6),)), More(1, (part(9),))],
         [TakePart(item(1, part(1)), SPEC, part(9), 1, True)]),
    Case("parts of an item that failed are left alone",
         [*OPEN, Items((HALF,)), failed(0), More(0, (part(6, 91),))], []),
    # --- the end ---
    Case("a goodbye", [FAR, Bye()], [Ended(None)], ReceiverPhase.CLOSED),
    Case("a goodbye before the greeting", [Bye()], [Ended(None)], ReceiverPhase.CLOSED),
    Case("gone", [FAR, lost(GONE)], [Ended(GONE)], ReceiverPhase.CLOSED),
    Case("given up", [FAR, lost(None)], [Ended(None)], ReceiverPhase.CLOSED),
    Case("gone twice", [FAR, lost(GONE), lost(GONE)], [], ReceiverPhase.CLOSED),
    Case("nothing counts after the end", [FAR, Bye(), LAYER], [], ReceiverPhase.CLOSED),
    Case("not even what is forbidden", [FAR, Bye(), FAR], [], ReceiverPhase.CLOSED),
    Case("parts do not outlive the session", [*OPEN, Items((HALF,)), Bye(), More(0, ())], [],
         ReceiverPhase.CLOSED),
]  # fmt: skip


def session(*, trusted: bool = True, side: str = "unix:side") -> ReceiverSession:
    return ReceiverSession(FACTS, lane=side, key="key", trusted=trusted)


def run(receiver: ReceiverSession, steps: list[Step]) -> list[Effect]:
    effects: list[Effect] = []
    for step in steps:
        effects = (step(receiver) if callable(step) else receiver.receive(step, 0.0)) or []
    return effects


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_receiver(case: Case) -> None:
    receiver = session()
    assert run(receiver, case.given) == case.effects
    assert receiver.phase is case.phase


def test_a_viewer_without_a_side_lane_offers_none() -> None:
    receiver = session(side="")
    assert run(receiver, [NEAR]) == [SendControl(WELCOME), Opened(None)]
    assert receiver.hello is NEAR


@pytest.mark.parametrize("token", ["", "guess", "sécret"])
def test_a_stranger_without_the_token_is_refused(token: str) -> None:
    receiver = session(trusted=False)
    [told, ended] = run(receiver, [msgspec.structs.replace(NEAR, token=token)])
    assert isinstance(told, SendControl)
    assert isinstance(told.message, Refusal)
    assert told.message.cure
    assert ended == Ended(None)
    assert receiver.phase is ReceiverPhase.CLOSED


def test_a_stranger_with_the_token_is_welcome() -> None:
    receiver = session(trusted=False)
    run(receiver, [msgspec.structs.replace(FAR, token="secret")])
    assert receiver.phase is ReceiverPhase.OPEN


def test_a_viewer_without_a_token_trusts_no_stranger() -> None:
    receiver = ReceiverSession(
        ViewerFacts("napari", "n", 1, "host", token=""), lane="", key="", trusted=False
    )
    run(receiver, [msgspec.structs.replace(FAR, token="")])
    assert receiver.phase is ReceiverPhase.CLOSED


VIOLATIONS: list[tuple[str, list[Step], str]] = [
    ("no greeting", [Items(())], "Items while waiting"),
    ("a request without a greeting", [Request(1, "stop")], "Request while waiting"),
    ("a second greeting", [FAR, FAR], "Hello while open"),
    ("a viewer's message", [FAR, Report()], "Report while open"),
    ("an arena before the lane", [NEAR, ArenaOffer(0, 1)], "ArenaOffer while opening"),
    ("parts before any item", [NEAR, More(0, ())], "More while opening"),
    ("a lane that nobody asked for", [FAR, lane()], "no session asked for"),
    ("a lane with a wrong key", [NEAR, lane("guess")], "no session asked for"),
    ("a second lane", [NEAR, lane(), lane()], "no session asked for"),
    ("LaneOpened on the control lane", [NEAR, LaneOpened("5e55", "key")], "LaneOpened while"),
    ("items of a control session", [CONTROL, Items(())], "control session sent Items"),
    ("layers of a control session", [CONTROL, LAYER], "control session sent LayerDeclared"),
    ("arenas of a control session", [CONTROL, ArenaOffer(0, 1)], "control session sent ArenaOffer"),
    ("an undeclared layer", [FAR, Items((WHOLE,))], "layer 0, never declared"),
    ("a number again", [*OPEN, Items((WHOLE,)), Items((WHOLE,))], "item 0 came after item 0"),
    ("a number that counts down", [*OPEN, Items((item(5, part(10)), item(4, part(10))))],
     "item 4 came after item 5"),
    ("a place of another length", [*OPEN, Items((item(0, part(10), place=()),))],
     "0 values for the 1 components"),
    ("too many bytes at once", [*OPEN, Items((item(0, part(11)),))], "more than its 10 bytes"),
    ("too many bytes", [*OPEN, Items((HALF,)), More(0, (part(7),))], "more than its 10 bytes"),
    ("a part of no bytes", [*OPEN, Items((item(0, part(0)),))], "no bytes"),
    ("a part of no bytes after the last", [*OPEN, Items((item(0, part(10), part(0)),))],
     "no bytes"),
    ("a part after the last", [*OPEN, Items((item(0, part(10), part(1)),))],
     "more than its 10 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "text"), [v[1:] for v in VIOLATIONS],
                         ids=[v[0] for v in VIOLATIONS])  # fmt: skip
def test_what_a_sender_may_not_say(steps: list[Step], text: str) -> None:
    receiver = session()
    run(receiver, steps[:-1])
    with pytest.raises(ProtocolViolation, match=text):
        run(receiver, steps[-1:])


def test_a_sender_can_declare_only_so_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_receiver, "MAX_LAYERS", 3)
    receiver = session()
    run(receiver, [FAR, *(LayerDeclared(number, SPEC) for number in range(3))])
    with pytest.raises(ProtocolViolation, match="more than 3 layers"):
        receiver.receive(LayerDeclared(3, SPEC), 0.0)


def test_a_sender_can_begin_only_so_many_items_in_parts() -> None:
    receiver = session()
    most = _receiver.MAX_PARTIAL
    run(receiver, [*OPEN, Items(tuple(item(seq, part(1)) for seq in range(most)))])
    with pytest.raises(ProtocolViolation, match=f"more than {most} items"):
        receiver.receive(Items((item(most, part(1)),)), 0.0)


# --- breaking the rules is answered -------------------------------------------------------------

VIOLATION = ProtocolViolation("it sent nonsense.", cure="Mend it.")


def test_who_breaks_the_rules_is_told_why_the_session_ends() -> None:
    told = run(session(), [FAR, lost(VIOLATION)])
    assert told == [SendControl(Bye("it sent nonsense.", "refused")), Ended(VIOLATION)]


@pytest.mark.parametrize("error", [VIOLATION, ProtocolMismatch("2.0 and 1.0.", cure="Mend it.")])
def test_a_greeting_that_can_not_be_taken_is_refused(error: StreamError) -> None:
    """Else the sender would wait for its whole deadline and not know why."""
    told = run(session(), [lost(error)])
    assert told == [SendControl(Refusal(error.what, "Mend it.")), Ended(error)]


def test_who_can_not_be_served_any_more_is_told_why() -> None:
    full = OutOfSpace("no memory.")
    assert run(session(), [FAR, lost(full)]) == [SendControl(Bye("no memory.")), Ended(full)]


def test_who_is_gone_is_told_nothing() -> None:
    assert run(session(), [FAR, lost(GONE)]) == [Ended(GONE)]


# --- reports ------------------------------------------------------------------------------------


def test_everything_that_waits_is_told_in_one_report() -> None:
    receiver = session()
    assert receiver.report() is None
    receiver.received(1)
    receiver.received(2)
    receiver.displayed(1)
    receiver.failed(2, "x" * 5000)
    receiver.released(90)
    assert receiver.report() == Report((1, 2), (1,), (Failure(2, "x" * 1000),), (90,))
    assert receiver.report() is None


def test_a_report_fits_into_a_packet_however_much_waits() -> None:
    receiver = session()
    for seq in range(10_000):
        receiver.received(2**52 + seq)
    for seq in range(40):
        receiver.failed(seq, "\N{WORRIED FACE}" * 5000)
    received: list[int] = []
    failed: list[Failure] = []
    while (report := receiver.report()) is not None:
        assert len(encode(report)) < 128 << 10
        received += report.received
        failed += report.failed
    assert received == [2**52 + seq for seq in range(10_000)]
    assert [failure.seq for failure in failed] == list(range(40))


@pytest.mark.parametrize("fact", ["received", "displayed", "released"])
def test_one_fact_is_a_report(fact: str) -> None:
    receiver = session()
    getattr(receiver, fact)(5)
    expected = msgspec.structs.replace(Report(), **{fact: (5,)})
    assert receiver.report() == expected


def test_late_parts_of_a_failed_item_are_released() -> None:
    receiver = session()
    run(receiver, [*OPEN, Items((HALF,)), failed(0)])
    receiver.report()
    run(receiver, [More(0, (part(3, 91), part(3, 92)))])
    assert receiver.report() == Report(released=(91, 92))


def test_each_message_counts_as_a_sign_of_life() -> None:
    receiver = session()
    receiver.receive(NEAR, 1.0)
    assert receiver.heard_at == 1.0
    receiver.lane_opened(LaneOpened("5e55", "key"), 2.0)
    assert receiver.heard_at == 2.0
    receiver.receive(Pong(1), 3.0)
    assert receiver.heard_at == 3.0
