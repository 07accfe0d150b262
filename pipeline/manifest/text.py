"""Text from outside that no file, table, terminal or text encoder should be given: found where it comes in."""

from __future__ import annotations

import re

MAX_PROMPT_CHARACTERS = 10_000
"""Far more than any text encoder reads, and little enough to count its tokens in a moment: 10 MB take half a minute."""

MAX_CLASS_CHARACTERS = 200

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LINE_BREAK = re.compile(r"[\t\n\r]")
_HALF = re.compile(r"[\ud800-\udfff]")


def text_fault(text: str, *, max_characters: int | None = None, lines: bool = False) -> tuple[str, str] | None:
    """What is wrong with a text and what to do about it, or None; the reason begins with what the text has or is.

    Args:
        max_characters: it may not be longer.
        lines: whether tabs and line breaks are welcome.
    """
    if max_characters is not None and len(text) > max_characters:
        return f"is {len(text)} characters long", f"keep it within {max_characters}"
    if text.isprintable():
        return None
    half = half_character_fault(text)
    if half:
        return half
    found = _CONTROL.search(text) or (None if lines else _LINE_BREAK.search(text))
    if found:
        return f"has a control character ({found.group()!r})", "write it without"
    return None


def half_character_fault(text: str) -> tuple[str, str] | None:
    """As `text_fault`, for text that may hold whatever can be stored: a lone surrogate cannot."""
    found = None if text.isascii() else _HALF.search(text)
    if found is None:
        return None
    return f"has half a character ({found.group()!r})", "write it again as UTF-8; JSON escapes such letters in pairs"
