"""Texts that quote a peer stay one line, whatever the peer put into them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openhcs_stream import errors
from openhcs_stream.errors import ItemFailed, StreamError, printable

#: What a peer might send to forge a line, to overwrite one, to hide, or to break who prints it.
HOSTILE = {
    "line feed": "a\n2026-01-01 00:00:00 ERROR forged",
    "carriage return": "harmless\roverwritten",
    "other line ends": "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g",
    "escape": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "C1 escape": "\x9b31m",
    "backspaces": "abc\b\b\bxyz",
    "nul": "a\0b",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069",
    "invisible": "a\u200b\u200d\ufeffb",
    "half a character": "a\ud800b\udc80c",
    "tag letters": "a\U000e0041\U000e007f",
    "private": "\ue000",
}

TEXTS = st.text(max_size=300) | st.text(
    st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Zs", "Co", "Lu"]), max_size=50
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_hostile_is_left(text: str) -> None:
    made = printable(text)
    assert made.isprintable()
    made.encode("utf-8")
    assert made != text


@given(TEXTS, st.integers(3, 100))
def test_every_text_becomes_one_line_that_any_terminal_can_show(text: str, most: int) -> None:
    for made in (printable(text), printable(text, most)):
        assert made.isprintable()
        made.encode("utf-8")
        assert len(made.splitlines()) <= 1
    assert len(printable(text, most)) <= most


@pytest.mark.parametrize("text", ["", "worker 3", "DAPI µm", "Zürich 核 αβγ", "a\\n"])
def test_what_can_be_read_is_left_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_text_that_is_too_long_is_cut_and_says_so() -> None:
    assert printable("x" * 20, 10) == "xxxxxxx..."
    assert printable("\n" * 20, 10) == "\\n\\n\\n\\..."


@given(TEXTS, TEXTS)
def test_an_error_is_one_line(what: str, cure: str) -> None:
    error = StreamError(what, cure=cure)
    for text in (str(error), error.what, error.cure):
        assert text.isprintable()


def test_of_an_error_only_the_lines_of_another_program_are_lines() -> None:
    error = StreamError("It ended:\n", lines=["first\x1b[2J", "second\rline"], cure="Look.\n")
    assert str(error) == "It ended:\\n\nfirst\\x1b[2J\nsecond\\rline\nLook.\\n"


def test_the_failures_of_items_are_lines_too() -> None:
    error = ItemFailed("two failed", failures=(("image 'a\nb'", "no\x1b[0m"),))
    assert error.failures == (("image 'a\\nb'", "no\\x1b[0m"),)


def test_every_error_is_one() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, StreamError):
            assert str(kind("a\nb", cure="c\rd")) == "a\\nb c\\rd"
