"""What the released viewers answer is understood: who they are, what they took, what they show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openhcs_stream.dialects import (
    control_request,
    load_plain,
    read_acknowledgement,
    read_batch_reply,
    read_control_answer,
    read_settlement,
    read_viewer,
)
from openhcs_stream.errors import ProtocolViolation
from tests.dialects.recordings import ANSWERS, answers, decoded, message

GENERATION = {"gen1": 1, "gen2": 2, "gen3": 3}


def controls(name: str, verb: str) -> list[dict[str, Any]]:
    """Answers to a verb."""
    return [
        read_control_answer(decoded(each["reply"]))
        for each in answers(name)["controls"]
        if each["asked"]["type"] == verb
    ]


def reply(name: str, batch: str) -> bytes:
    text: str = answers(name)["messages"][batch]["reply"]
    return text.encode()


def acks(name: str, batch: str) -> list[bytes]:
    return [each.encode() for each in answers(name)["messages"][batch]["acks"]]


def test_there_are_answers_of_each_generation_and_viewer() -> None:
    assert ANSWERS == [
        f"{generation}/{viewer}_answers"
        for generation in ("gen1", "gen2", "gen3")
        for viewer in ("fiji", "napari")
    ]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_pong_tells_the_viewer_and_its_generation(name: str) -> None:
    recorded = answers(name)
    (pong,) = controls(name, "ping")
    viewer = read_viewer(pong)
    assert viewer is not None
    assert (viewer.kind, viewer.generation) == (
        recorded["viewer"],
        GENERATION[recorded["generation"]],
    )
    if viewer.generation == 2:
        assert viewer.version == "0.8.6"
        assert viewer.title == f"OpenHCS's {'Fiji' if viewer.kind == 'fiji' else 'napari'} 0.8.6"
    if viewer.generation > 1:
        assert viewer.pid == pong["process_identity"]["pid"]


@pytest.mark.parametrize(
    ("application", "version"),
    [
        ({"application_id": "openhcs", "application_version": "0.8.6"}, "0.8.6"),
        ({"identifier": "openhcs", "version": "0.9.0"}, "0.9.0"),
        (None, ""),
    ],
)
def test_both_words_for_a_version_are_known(application: Any, version: str) -> None:
    (pong,) = controls("gen3/napari_answers", "ping")
    viewer = read_viewer({**pong, "application": application})
    assert viewer is not None
    assert viewer.version == version


def test_a_receiver_of_ours_is_none_of_theirs() -> None:
    (pong,) = controls("gen2/napari_answers", "ping")
    assert read_viewer({**pong, "openhcs_stream": "0.1.0"}) is None


@pytest.mark.parametrize(
    "pong",
    [
        {},
        {"type": "pong"},
        {"type": "pong", "server": "Jupyter"},
        {"type": "status", "viewer": "napari"},
        {"type": "pong", "server": "ExecutionServer for napari", "server_role": "execution"},
    ],
)
def test_others_that_answer_a_ping_are_no_viewers(pong: dict[str, Any]) -> None:
    assert read_viewer(pong) is None


@pytest.mark.parametrize("name", ANSWERS)
def test_our_requests_are_those_that_were_recorded(name: str) -> None:
    recorded = answers(name)
    for each in recorded["controls"]:
        assert load_plain(decoded(each["request"])) == each["asked"]
        assert load_plain(control_request(each["asked"]["type"])) == each["asked"]
    assert load_plain(decoded(recorded["client_ping"])) == {"type": "ping"}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_reply_to_a_good_batch_is_a_success(name: str) -> None:
    for batch, recorded in answers(name)["messages"].items():
        is_good = batch not in ("lost_block", "nonsense")
        if recorded["reply"] is None:
            assert name == "gen1/napari_answers", "nobody else subscribes"
        elif is_good:
            assert read_batch_reply(recorded["reply"].encode()).ok


@pytest.mark.parametrize(
    "name", ["gen2/napari_answers", "gen3/napari_answers", "gen3/fiji_answers"]
)
def test_a_reply_tells_that_a_block_was_not_there(name: str) -> None:
    lost = read_batch_reply(reply(name, "lost_block"))
    generation, _, _ = name.partition("/")
    viewer = answers(name)["viewer"]
    (block,) = message(f"{generation}/{viewer}_image_2d").blocks
    assert not lost.ok
    assert block in lost.reason


def test_fijis_first_generation_says_success_and_then_acknowledges_the_failure() -> None:
    assert read_batch_reply(reply("gen1/fiji_answers", "lost_block")).ok
    (ack,) = map(read_acknowledgement, acks("gen1/fiji_answers", "lost_block"))
    (block,) = message("gen1/fiji_image_2d").blocks
    assert not ack.ok
    assert block in ack.reason


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "gen1/napari_answers"])
def test_what_is_no_json_is_refused_with_a_reason(name: str) -> None:
    refused = read_batch_reply(reply(name, "nonsense"))
    assert not refused.ok
    assert "double quotes" in refused.reason


@pytest.mark.parametrize("name", ANSWERS)
def test_acknowledgements_name_items_that_were_sent(name: str) -> None:
    generation, _, _ = name.partition("/")
    viewer = answers(name)["viewer"]
    sent = {
        item["image_id"]
        for batch in answers(name)["messages"]
        if batch not in ("lost_block", "nonsense", "wrong_domain")
        for item in message(f"{generation}/{viewer}_{batch}").images
    }
    told = {
        read_acknowledgement(ack.encode()).image_id
        for recorded in answers(name)["messages"].values()
        for ack in recorded["acks"]
    }
    assert told
    assert told <= sent
    if name != "gen2/fiji_answers":  # which says nothing of planes that it puts into a window
        assert told == sent


def test_a_settlement_is_running_complete_or_failed_with_its_reason() -> None:
    told = [read_settlement(each) for each in controls("gen2/napari_answers", "settle")]
    assert {each.phase for each in told if each} == {"running", "failed"}
    reasons = {each.reason for each in told if each and each.phase == "failed"}
    assert reasons
    for reason in reasons:
        assert reason.startswith("origin_pipeline_kind_main_projection_image")
        assert "declared component domain for 'z_index'" in reason
    for answer in controls("gen2/fiji_answers", "settle"):
        settlement = read_settlement(answer)
        assert settlement is not None
        assert settlement.phase == "complete"


@pytest.mark.parametrize("name", ["gen1/napari_answers", "gen1/fiji_answers"])
def test_generation_1_knows_of_no_settlement(name: str) -> None:
    (answer,) = controls(name, "nonsense")  # it says "ok" to everything
    assert read_settlement(answer) is None


@pytest.mark.parametrize(
    "frame",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"type": "image_ack"}', b'{"image_id": "a"}',
     json.dumps({"type": "image_ack", "image_id": "x" * 129}).encode(),
     json.dumps({"type": "image_ack", "image_id": 5}).encode()],
)  # fmt: skip
def test_what_is_no_acknowledgement_is_said_so(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="acknowledgements"):
        read_acknowledgement(frame)


@pytest.mark.parametrize(
    "frame", [b"", b"{", b"[]", b"\xff\xfe", b'{"status": "maybe"}', b'{"status": 1}', b"{}"]
)
def test_what_is_no_reply_is_said_so(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="answered a batch"):
        read_batch_reply(frame)


def test_reasons_are_one_line_and_bounded() -> None:
    said = {"status": "error", "message": "first\nsecond" + "x" * 5000}
    reason = read_batch_reply(json.dumps(said).encode()).reason
    assert reason.startswith("first second")
    assert len(reason) == 1000
    assert read_batch_reply(b'{"status": "error"}').reason == "the viewer gave no reason"
    ack = {"type": "image_ack", "image_id": "a", "status": "lost"}
    assert read_acknowledgement(json.dumps(ack).encode()).reason == "the viewer says 'lost'"


def test_an_answer_that_is_no_dictionary_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="not a dictionary"):
        read_control_answer(b"\x80\x04]\x94.")
