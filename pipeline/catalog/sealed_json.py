"""JSON objects of a catalog that carry a digest of their content, so that a reader notices every change of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_DIGEST = "sha256"
_END = b"\n}"  # in indented JSON only the last brace begins a line


class TruncatedJson(ValueError):
    """The text ends too early, as that of a writer that was killed on a store whose writes are not atomic."""


def seal(content: Mapping[str, Any]) -> bytes:
    """One indented JSON object with sorted keys, and the digest of its content under "sha256"."""
    return (json.dumps({**content, _DIGEST: _digest(content)}, indent=1, sort_keys=True) + "\n").encode()


def unseal(data: bytes, *, sealed_since: int) -> dict[str, Any]:
    """The content of a JSON object with a "version".

    Args:
        sealed_since: the first version with a digest; objects of earlier ones have none to check.

    Raises:
        TruncatedJson: the text ends too early.
        ValueError: the text is no JSON object with a version, or its content is not the one that was written.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        if not data.rstrip(b"\0").rstrip().endswith(_END):
            raise TruncatedJson("it ends too early") from error
        raise ValueError(str(error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object is expected, not {type(content).__name__}")
    digest, version = content.pop(_DIGEST, None), content.get("version")
    if not isinstance(version, int):
        raise ValueError(f"its version is {version!r}")
    if (digest is not None or version >= sealed_since) and digest != _digest(content):
        raise ValueError("its content is not the one that was written: the digest differs")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return hashlib.sha256(canonical.encode()).hexdigest()
