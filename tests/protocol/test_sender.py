"""The sender's half: messages and times go in, effects come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest

from openhcs_stream.errors import ProtocolViolation, Refused, ViewerLost
from openhcs_stream.messages import (
    MAJOR,
    MINOR,
    ArenaRetired,
    Bye,
    Failure,
    Hello,
    Items,
    LaneOpened,
    LayerDeclared,
    LayerSpec,
    Message,
    Ping,
    Pong,
    Refusal,
    Reply,
    Report,
    Welcome,
)
from openhcs_stream.protocol import (
    HEARTBEAT_S,
    SILENCE_S,
    Effect,
    Ended,
    Moved,
    Opened,
    OpenLane,
    Replied,
    SendControl,
    SendData,
    SenderPhase,
    SenderSession,
)

HELLO = Hello(MAJOR, MINOR, "5e55", "stream", "worker", "ada", "host", 1, lanes=("unix",))
WELCOME = Welcome(MAJOR, MINOR, "napari", "napari", 2)
LINKING = Welcome(MAJOR, MINOR, "napari", "napari", 2, "unix:side", "key")
SPEC = LayerSpec("image", "raw", "YX")
LOST = ViewerLost("it is gone.")

#: A message to take in, or something else to do with the session.
Step: TypeAlias = Message | Callable[[SenderSession], list[Effect] | None]


def opened(session: SenderSession) -> list[Effect]:
    return session.lane_opened(0.0)


def failed_to_open(session: SenderSession) -> list[Effect]:
    return session.lane_failed(0.0)


def lost(session: SenderSession) -> list[Effect]:
    return session.lost(LOST)


def sent(seq: int, *leases: int) -> Callable[[SenderSession], None]:
    return lambda session: session.sent([(seq, leases)])


def sent_more(seq: int, *leases: int) -> Callable[[SenderSession], None]:
    return lambda session: session.sent_more(seq, leases)


@dataclass(frozen=True)
class Case:
    name: str
    given: list[Step]
    effects: list[Effect]  #: of the last step
    phase: SenderPhase = SenderPhase.OPEN
    outstanding: set[int] = field(default_factory=set)


CASES = [
    Case("welcome without a lane opens", [WELCOME], [Opened(WELCOME)]),
    Case(
        "welcome with a lane asks for it",
        [LINKING],
        [OpenLane("unix:side", LaneOpened("5e55", "key"))],
        SenderPhase.LINKING,
    ),
    Case("the lane stands", [LINKING, opened], [Opened(LINKING)]),
    Case("the lane can't be opened", [LINKING, failed_to_open], [Opened(LINKING)]),
    Case("a ping while linking is answered", [LINKING, Ping(3)], [SendControl(Pong(3))],
         SenderPhase.LINKING),
    Case("a ping is answered", [WELCOME, Ping(4)], [SendControl(Pong(4))]),
    Case("a pong needs nothing", [WELCOME, Pong(4)], []),
    Case("a reply", [WELCOME, Reply(5, True, 3)], [Replied(5, True, 3, "", "")]),
    Case("a reply that says no", [WELCOME, Reply(5, False, None, "what", "cure")],
         [Replied(5, False, None, "what", "cure")]),
    # --- items ---
    Case("received frees the memory", [WELCOME, sent(0, 10, 11), Report(received=(0,))],
         [Moved([0], [], [], [10, 11])], outstanding={0}),
    Case("displayed after received", [WELCOME, sent(0, 10), Report(received=(0,)),
         Report(displayed=(0,))], [Moved([], [0], [], [])]),
    Case("received and displayed in one report",
         [WELCOME, sent(0, 10), Report(received=(0,), displayed=(0,))],
         [Moved([0], [0], [], [10])]),
    Case("displayed without received is both", [WELCOME, sent(0, 10), Report(displayed=(0,))],
         [Moved([0], [0], [], [10])]),
    Case("failed frees the memory", [WELCOME, sent(0, 10), Report(failed=(Failure(0, "why"),))],
         [Moved([], [], [(0, "why")], [10])]),
    Case("failed after received has no memory to free",
         [WELCOME, sent(0, 10), Report(received=(0,)), Report(failed=(Failure(0, "why"),))],
         [Moved([], [], [(0, "why")], [])]),
    Case("an item without memory", [WELCOME, sent(0), Report(displayed=(0,))],
         [Moved([0], [0], [], [])]),
    Case("parts are freed one by one", [WELCOME, sent(0, 10), Report(released=(10,))],
         [Moved([], [], [], [10])], outstanding={0}),
    Case("more parts are freed with the item",
         [WELCOME, sent(0, 10), sent_more(0, 11), Report(received=(0,))],
         [Moved([0], [], [], [10, 11])], outstanding={0}),
    Case("more parts of an item that was received",
         [WELCOME, sent(0, 10), Report(received=(0,)), sent_more(0, 11), Report(displayed=(0,))],
         [Moved([0], [0], [], [11])]),
    Case("received twice", [WELCOME, sent(0, 10), Report(received=(0,)), Report(received=(0,))],
         [Moved([], [], [], [])], outstanding={0}),
    Case("displayed twice", [WELCOME, sent(0, 10), Report(displayed=(0,)), Report(displayed=(0,))],
         [Moved([], [], [], [])]),
    Case("failed twice", [WELCOME, sent(0), Report(failed=(Failure(0, "a"), Failure(0, "b")))],
         [Moved([], [], [(0, "a")], [])]),
    Case("failed after displayed", [WELCOME, sent(0), Report((), (0,), (Failure(0, "late"),))],
         [Moved([0], [0], [], [])]),
    Case("a report of what was never sent",
         [WELCOME, Report((1,), (2,), (Failure(3, "why"),))], [Moved([], [], [], [])]),
    # --- the end ---
    Case("refused", [Refusal("no token.", "Pass it.")], [], SenderPhase.CLOSED),
    Case("a goodbye", [WELCOME, Bye("stopped")], [], SenderPhase.CLOSED),
    Case("lost with nothing under way", [WELCOME, lost], [Ended(LOST)], SenderPhase.CLOSED),
    Case("lost in mid-stream",
         [WELCOME, sent(0, 10), sent(1, 11), Report(received=(0,)), lost],
         [Moved([], [], [(0, "it is gone."), (1, "it is gone.")], [11]), Ended(LOST)],
         SenderPhase.CLOSED),
    Case("lost twice", [WELCOME, lost, lost], [], SenderPhase.CLOSED),
    Case("lost before the greeting", [lost], [Ended(LOST)], SenderPhase.CLOSED),
    Case("nothing counts after the end", [WELCOME, lost, Report((1,))], [], SenderPhase.CLOSED),
    Case("not even what is forbidden", [WELCOME, lost, HELLO], [], SenderPhase.CLOSED),
]  # fmt: skip


def run(session: SenderSession, steps: list[Step]) -> list[Effect]:
    effects: list[Effect] = []
    for step in steps:
        effects = (step(session) if callable(step) else session.receive(step, 0.0)) or []
    return effects


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sender(case: Case) -> None:
    session = SenderSession(HELLO)
    effects = run(session, case.given)
    # Errors have no equality: these two ends are looked at below.
    if not isinstance(case.given[-1], (Refusal, Bye)):
        assert effects == case.effects
    assert session.phase is case.phase
    assert {seq for seq in range(10) if session.is_outstanding(seq)} == case.outstanding
    assert session.outstanding == len(case.outstanding)


def test_it_begins_with_the_greeting() -> None:
    session = SenderSession(HELLO)
    assert session.start(3.0) == [SendControl(HELLO)]
    assert session.phase is SenderPhase.GREETING


def test_a_refusal_is_told_with_its_cure() -> None:
    [ended] = run(SenderSession(HELLO), [Refusal("no token.", "Pass it.")])
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, Refused)
    assert "no token." in str(ended.error)
    assert ended.error.cure == "Pass it."


@pytest.mark.parametrize("reason", ["stopped by a person", ""])
def test_a_goodbye_is_the_loss_of_the_viewer(reason: str) -> None:
    moved, ended = run(SenderSession(HELLO), [WELCOME, sent(0, 10), Bye(reason)])
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, ViewerLost)
    assert (reason or "closed") in str(ended.error)
    assert moved == Moved([], [], [(0, ended.error.what)], [10])


def test_welcome_is_kept_and_the_lane_is_remembered() -> None:
    session = SenderSession(HELLO)
    run(session, [LINKING])
    assert session.welcome is LINKING
    assert not session.linked
    run(session, [opened])
    assert session.linked


@pytest.mark.parametrize(
    ("steps", "phase"),
    [
        ([HELLO], "greeting"),
        ([Report((0,))], "greeting"),
        ([Reply(1, True)], "greeting"),
        ([LINKING, WELCOME], "linking"),
        ([LINKING, Report((0,))], "linking"),
        ([WELCOME, WELCOME], "open"),
        ([WELCOME, Items(())], "open"),
        ([WELCOME, LayerDeclared(0, SPEC)], "open"),
    ],
)
def test_what_a_viewer_may_not_say(steps: list[Step], phase: str) -> None:
    session = SenderSession(HELLO)
    run(session, steps[:-1])
    with pytest.raises(ProtocolViolation, match=rf"{type(steps[-1]).__name__} while {phase}"):
        run(session, steps[-1:])


# --- declaring and offering ---------------------------------------------------------------------


def test_a_layer_is_declared_once() -> None:
    session = SenderSession(HELLO)
    assert session.declare(4, SPEC) == [SendData(LayerDeclared(4, SPEC))]
    assert session.declare(4, SPEC) == []


def test_an_arena_is_offered_once_and_retired_once() -> None:
    session = SenderSession(HELLO)
    assert session.retire(2) == []
    assert session.offer(2, 4096)
    assert not session.offer(2, 4096)
    assert session.retire(2) == [SendData(ArenaRetired(2))]
    assert session.retire(2) == []


def test_more_parts_of_an_item_that_is_over_are_refused() -> None:
    session = SenderSession(HELLO)
    run(session, [WELCOME, sent(0, 10), Report(failed=(Failure(0, "why"),))])
    with pytest.raises(KeyError):
        session.sent_more(0, [11])


# --- time ---------------------------------------------------------------------------------------


def test_a_silent_viewer_is_asked_and_then_given_up() -> None:
    session = SenderSession(HELLO)
    session.start(0.0)
    session.receive(WELCOME, 0.0)
    assert session.tick(HEARTBEAT_S) == []
    asked = HEARTBEAT_S + 0.1
    assert session.tick(asked) == [SendControl(Ping(1))]
    assert session.tick(asked + 0.1) == []  # asked already
    assert session.tick(2 * asked + 0.1) == [SendControl(Ping(2))]
    session.sent([(0, (10,))])
    moved, ended = session.tick(SILENCE_S + 1)
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, ViewerLost)
    assert "21 s" in str(ended.error)
    assert moved == Moved([], [], [(0, ended.error.what)], [10])
    assert session.tick(10 * SILENCE_S) == []


def test_any_word_of_the_viewer_counts_as_an_answer() -> None:
    session = SenderSession(HELLO)
    session.receive(WELCOME, 0.0)
    session.receive(Report(), SILENCE_S - 1)
    assert session.tick(SILENCE_S + HEARTBEAT_S - 2) == []
    assert session.phase is SenderPhase.OPEN


def test_a_viewer_with_a_side_lane_is_waited_for() -> None:
    """Its death would be the lane's end of file; silence means that it is busy or stopped."""
    session = SenderSession(HELLO)
    session.receive(LINKING, 0.0)
    session.lane_opened(0.0)
    assert session.tick(100 * SILENCE_S) == [SendControl(Ping(1))]
    assert session.phase is SenderPhase.OPEN


@pytest.mark.parametrize("steps", [[], [LINKING], [WELCOME, lost]])
def test_time_means_nothing_outside_of_an_open_session(steps: list[Step]) -> None:
    session = SenderSession(HELLO)
    run(session, steps)
    assert session.tick(1000.0) == []


@pytest.mark.parametrize(
    ("bye", "what"),
    [
        (Bye(), "napari-2 ended the session: it was closed."),
        (Bye("it was closed."), "napari-2 ended the session: it was closed."),
        (Bye("it is full", "refused"), "napari-2 ended the session: it is full."),
        (Bye("no memory.", "lost"), "napari-2 gave the connection up: no memory."),
    ],
)
def test_of_several_viewers_the_error_names_the_one_that_ended(bye: Bye, what: str) -> None:
    welcome = Welcome(MAJOR, MINOR, "napari", "napari-2", 2)
    ended = run(SenderSession(HELLO), [welcome, bye])[-1]
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert ended.error.what == what
