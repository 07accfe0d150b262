"""Checks of text from outside, so that every accepted text can be stored, shown in a terminal and encoded."""

from __future__ import annotations

import re

MAX_PROMPT_CHARACTERS = 10_000
"""Far more than any text encoder reads, and few enough to tokenize quickly: 10 MB take half a minute."""

MAX_CLASS_CHARACTERS = 200

MAX_URI_CHARACTERS = 16_384
"""More than any server or file system takes."""

MAX_METADATA_CHARACTERS = 100_000

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LINE_BREAK = re.compile(r"[\t\n\r]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def check_text(text: str, *, max_characters: int | None = None, multiline: bool = False) -> tuple[str, str] | None:
    """Return the reason why a text is invalid, as a predicate ("has …", "is …"), and the fix; None if it is valid.

    Args:
        max_characters: the greatest length.
        multiline: tabs and line breaks are allowed.
    """
    if max_characters is not None and len(text) > max_characters:
        return f"is {len(text)} characters long", f"shorten it to {max_characters} characters"
    if text.isprintable():
        return None
    surrogate = check_surrogates(text)
    if surrogate:
        return surrogate
    found = _CONTROL.search(text) or (None if multiline else _LINE_BREAK.search(text))
    if found:
        return f"has a control character ({found.group()!r})", "remove it"
    return None


def check_surrogates(text: str) -> tuple[str, str] | None:
    """As `check_text`, but only lone surrogates are invalid: UTF-8 cannot encode them."""
    found = None if text.isascii() else _SURROGATE.search(text)
    if found is None:
        return None
    return (
        f"has a lone surrogate ({found.group()!r})",
        "write it again as UTF-8; in JSON, escape such a character as a surrogate pair",
    )
