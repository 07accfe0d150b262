"""Text from outside, made safe for a terminal.

A concept's id, a log line or a file name may hold what a terminal obeys: escape sequences that move the cursor, change
the title or hide a link's target, a carriage return that overwrites a line, characters that reverse the reading
direction. They are shown as JSON escapes, so that a line of JSON stays the same JSON.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0a-\x1f\x7f-\x9f"  # C0 but the tab, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f"  # reading direction, invisible operators
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff"  # surrogates, which UTF-8 cannot encode
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags, which nobody sees
    "]"
)
_NAMED = {"\n": r"\n", "\r": r"\r"}
_LINE_BREAK = re.compile(r"\n(?!  |\Z)")


def terminal_line(text: str) -> str:
    """`text` as one line that a terminal shows and does not obey; printable text is unchanged."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_escape, text)


def terminal_lines(text: str) -> str:
    """As `terminal_line`, for a text of several lines: all but the first are indented, so that none passes for another
    message."""
    return "\n".join(map(terminal_line, _LINE_BREAK.sub("\n  ", text).split("\n")))


def utc_text(seconds: float) -> str:
    """A time by a clock that may be wrong, in seconds since 1970, as a date and a time of day."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)  # as JSON writes what does not fit in four digits
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
