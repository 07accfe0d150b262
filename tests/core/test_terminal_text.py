"""Text from outside is shown by a terminal and not obeyed by it."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.terminal_text import terminal_line, terminal_lines

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates, too
BIDIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def obeyed(character: str) -> bool:
    """Whether a terminal does something else than show this character, tabs aside."""
    return character != "\t" and (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDIRECTIONAL
    )


@given(ANY_TEXT)
def test_line_is_one_line_that_can_be_encoded_and_is_not_obeyed(text):
    line = terminal_line(text)
    line.encode()
    assert not any(map(obeyed, line))
    assert terminal_line(line) == line


@given(st.text())
def test_text_of_printable_characters_is_unchanged(text):
    if not any(map(obeyed, text)) and not any("\u2060" <= one <= "\u206f" or ord(one) > 0xDFFFF for one in text):
        assert terminal_line(text) == text or any("\ufff9" <= one <= "\ufffb" for one in text)


@given(ANY_TEXT)
def test_line_of_json_stays_the_same_json(text):
    line = json.dumps({"text": text}, ensure_ascii=False)
    assert json.loads(terminal_line(line)) == json.loads(line)


@given(ANY_TEXT)
def test_lines_after_the_first_are_indented(text):
    first, *others = terminal_lines(text).split("\n")
    assert not any(map(obeyed, first)) and all(not line or line.startswith("  ") for line in others)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", r"\u001b]8;;http://evil\u001b\click\u001b]8;;\u001b" + "\\"),
        ("mug\rall is well", r"mug\rall is well"),
        ("a\nb", r"a\nb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b2J\x07", r"\u009b2J\u0007"),
        ("nö-中 [red]", "nö-中 [red]"),
    ],
)
def test_line_shows_what_a_terminal_would_obey(text, shown):
    assert terminal_line(text) == shown
