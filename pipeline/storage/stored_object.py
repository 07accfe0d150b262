"""What a listing says about an object, in one form for every kind of store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

_CONTENT_TAGS = ("md5Hash", "ETag", "etag", "crc32c")


_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a listing says about an object.

    Attributes:
        size: in bytes; None where the store does not say, as some web servers.
        modified: seconds since 1970 by the store's clock; infinite where it does not say.
        content_tag: changes when the content does, such as an ETag; None if the store has none worth trusting.
        time_tag: `modified` as the store writes it; None where it does not say.
        kind: "other" is a pipe or a device.
    """

    size: int | None
    modified: float
    content_tag: str | None = None
    time_tag: str | None = None
    kind: Literal["file", "directory", "other"] = "file"


def stored_object(state: Mapping[str, Any]) -> StoredObject:
    """From what a file system's `info` or a web server's headers say."""
    size = state.get("size")
    tag = next((str(state[name]) for name in _CONTENT_TAGS if state.get(name)), None)
    is_weak = tag is not None and tag.startswith("W/")  # a weak ETag may stay while bytes change
    return StoredObject(
        size=None if size is None else int(size),
        modified=_modified(state),
        content_tag=None if tag is None or is_weak else tag.strip('"'),
        time_tag=next((str(state[name]) for name in _TIMES if state.get(name)), None),
        kind=state["type"] if state.get("type") in ("directory", "other") else "file",
    )


def _modified(state: Mapping[str, Any]) -> float:
    for name in _TIMES:
        match state.get(name):
            case float() | int() as seconds:
                return float(seconds)
            case datetime() as when:
                return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
            case str() as text if text:
                return _timestamp(text)
    return math.inf


def _timestamp(text: str) -> float:
    """Of a date as stores (ISO 8601) or web servers (RFC 9110) write it; infinite if it is neither."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            return parse(text).timestamp()
    return math.inf
