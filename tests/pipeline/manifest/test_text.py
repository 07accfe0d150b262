from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.manifest.text import check_surrogates, check_text


@pytest.mark.parametrize("text", ["mug", "a mug, blue", "café", "ブルー　マグ", "🫖", "\u200b", ""])
def test_printable_text_of_any_language_is_valid(text):
    assert check_text(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mug\x00", "has a control character ('\\x00')"),
        ("\x1b[31mred", "has a control character ('\\x1b')"),
        ("a\nb", "has a control character ('\\n')"),
        ("\ud83e", "has a lone surrogate ('\\ud83e')"),
        ("m" * 6, "is 6 characters long"),
    ],
)
def test_invalid_text_has_a_reason_and_a_fix(text, reason):
    found = check_text(text, max_characters=5 if "characters long" in reason else None)
    assert found and found[0] == reason and found[1]


def test_multiline_allows_tabs_and_line_breaks():
    assert check_text("a\tb\r\nc", multiline=True) is None
    assert check_text("a\x07\n", multiline=True)


@given(st.text(st.characters()) | st.text(st.characters(categories=["Cs", "L"])))
def test_valid_text_can_be_encoded_and_printed(text):
    if check_surrogates(text) is None:
        assert text.encode() is not None
    if check_text(text) is None:
        assert text.encode().decode() == text and "\x1b" not in text
