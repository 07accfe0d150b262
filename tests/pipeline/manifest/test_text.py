from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.manifest.text import half_character_fault, text_fault


@pytest.mark.parametrize("text", ["mug", "a mug, blue", "café", "ブルー　マグ", "🫖", "\u200b", ""])
def test_words_of_any_language_are_fine(text):
    assert text_fault(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("mug\x00", "has a control character ('\\x00')"),
        ("\x1b[31mred", "has a control character ('\\x1b')"),
        ("a\nb", "has a control character ('\\n')"),
        ("\ud83e", "has half a character ('\\ud83e')"),
        ("m" * 6, "is 6 characters long"),
    ],
)
def test_what_is_wrong_is_said(text, fault):
    found = text_fault(text, max_characters=5 if "characters long" in fault else None)
    assert found and found[0] == fault and found[1]


def test_lines_may_be_welcome():
    assert text_fault("a\tb\r\nc", lines=True) is None
    assert text_fault("a\x07\n", lines=True)


@given(st.text(st.characters()) | st.text(st.characters(categories=["Cs", "L"])))
def test_what_has_no_fault_can_be_written_and_shown(text):
    if half_character_fault(text) is None:
        assert text.encode() is not None
    if text_fault(text) is None:
        assert text.encode().decode() == text and "\x1b" not in text
