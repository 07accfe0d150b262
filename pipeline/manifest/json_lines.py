"""Lines of a JSON manifest: each read within a limit, parsed strictly, and every mistake told once."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from .row import shorten
from .settings import ManifestSettings
from .text import check_surrogates

_ARRAY_FIX = "write one object a line, for example with jq -c '.[]'"
_SEVERAL_LINES_FIX = "write each object on one line, for example with jq -c ."
_NOT_JSON_FIX = "write one JSON object per line, without commas or brackets around the lines"
_LINE_END = re.compile(rb"\r\n?|\n")
_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class BadLine:
    """A line that holds no row, or several of one kind on end.

    Attributes:
        number: of the first, from 1; `lines` in all.
        is_last: what follows was not read.
    """

    number: int
    reason: str
    fix: str
    text: str
    lines: int = 1
    is_last: bool = False

    def __str__(self) -> str:
        if self.lines == 1:
            return f"line {self.number} {self.reason}"
        return f"lines {self.number} to {self.number + self.lines - 1} are no JSON objects; the first {self.reason}"


def json_lines(file: BinaryIO, settings: ManifestSettings) -> Iterator[dict[str, Any] | BadLine]:
    """The object of each line that is not blank, or what is wrong with it; ends early where the rest makes no sense.

    Bad lines on end are one.
    """
    pending: BadLine | None = None
    is_first = True
    for number, line in enumerate(_bounded_lines(file, settings.max_line_bytes), start=1):
        found = _parse(line, number, is_first=is_first) if isinstance(line, bytes) else _too_long(number, settings)
        if found is None:
            continue
        is_first = False
        if isinstance(found, BadLine) and pending is not None and found.fix == pending.fix == _NOT_JSON_FIX:
            pending.lines = number - pending.number + 1
            continue
        if pending is not None:
            yield pending
            pending = None
        if isinstance(found, BadLine) and not found.is_last:
            pending = found
            continue
        yield found
        if isinstance(found, BadLine):
            return
    if pending is not None:
        yield pending


def _bounded_lines(file: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Lines as bytes; None and the end for one of more than `limit` bytes."""
    rest = b""
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.endswith(b"\r"):  # the other half of a line's end may follow
            chunk += file.read(1)
        *lines, rest = _LINE_END.split(rest + chunk)
        for line in lines:
            yield line if len(line) <= limit else None
            if len(line) > limit:
                return
        if len(rest) > limit:
            yield None
            return
    if rest:
        yield rest


def _too_long(number: int, settings: ManifestSettings) -> BadLine:
    reason = f"is longer than {settings.max_line_bytes} bytes"
    fix = "write one object a line, or raise manifest.max_line_bytes in the run spec"
    return BadLine(number, reason, fix, "", is_last=True)


def _parse(line: bytes, number: int, *, is_first: bool) -> dict[str, Any] | BadLine | None:
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    # Bytes that are not UTF-8 become lone surrogates, so that their line can be shown.
    text = line.decode("utf-8", errors="surrogateescape").strip()
    if check_surrogates(text):
        return BadLine(number, "is not UTF-8", "save the manifest as UTF-8", text, is_last=True)
    if not text:
        return None
    if is_first and text.startswith("["):
        return BadLine(number, "begins a JSON array", _ARRAY_FIX, text, is_last=True)
    try:
        values = _JSON.decode(text)
    except _DuplicateKey as error:
        return BadLine(number, f"gives {shorten(str(error))} twice", "keep one of them", text)
    except (ValueError, RecursionError) as error:
        if is_first and text.startswith("{") and getattr(error, "pos", 0) >= len(text):
            reason = "begins a JSON object that does not end on it"
            return BadLine(number, reason, _SEVERAL_LINES_FIX, text, is_last=True)
        return BadLine(number, f"is not JSON: {shorten(str(error))}", _NOT_JSON_FIX, text)
    return values if isinstance(values, dict) else BadLine(number, "is not a JSON object", _NOT_JSON_FIX, text)


class _DuplicateKey(ValueError):
    """A JSON object has a key twice; Python would silently take the last."""


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _DuplicateKey(next(repr(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return values


_JSON = json.JSONDecoder(object_pairs_hook=_reject_duplicate_keys)
