"""From an address to a file system: no credentials in the address, no retries inside our retries."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.config import conf
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from ...core.errors import InvalidInput
from ...core.terminal_text import terminal_line
from .credentials import has_credentials, known_secrets, redact, with_user_part_hidden, without_credentials

__all__ = [
    "check_address",
    "file_system",
    "has_credentials",
    "known_secrets",
    "normalized",
    "open_file_system",
    "redact",
    "without_credentials",
]

_S3 = frozenset({"s3", "s3a"})
_LITERAL_KEYS = _S3 | {"memory"}  # ? and # are characters of a name there
_ONE_SLASH = re.compile(r"(?:s3a?|gs|gcs|az|abfss?|adl|hdfs|https?|hf|memory):/(?!/)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_S3FS_TRIES = 3  # quick ones for each request, so that an operation of many requests does not restart for one
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://|(?P<file>file):(?=/)", re.IGNORECASE)


def open_file_system(uri: str, *, what: str = "catalog") -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it, without a slash at its end.

    Args:
        what: the thing that lies there, for messages.

    Raises:
        InvalidInput: the address cannot be used (see `check_address`), or no file system is installed for its scheme.
    """
    check_address(uri, what=what)
    try:
        fs, root = file_system(uri)
    except (ImportError, ValueError) as error:
        raise InvalidInput(
            f"cannot open the {what} {without_credentials(uri)}: {redact(str(error), known_secrets())}",
            fix="give a local path or a URI whose fsspec package is installed, such as s3fs for s3://",
        ) from None
    return fs, root.rstrip("/")


def check_address(uri: str, *, what: str) -> None:
    """Check that an address names one place, by its very characters, and holds no credentials.

    Blanks, brackets, *, ?, % and letters of any script are characters like others; what a store or fsspec would take
    for something else is refused.

    Args:
        what: the thing that lies there, for messages.

    Raises:
        InvalidInput: it is empty, a chain, incomplete, or holds credentials, control characters or a query.
    """
    if not uri.strip():
        raise InvalidInput(f"the {what}'s address is empty", fix="give a folder or a URI such as s3://bucket/mugs")
    if has_credentials(uri):
        raise InvalidInput(
            f"the {what}'s address {_shown(uri)} was given with credentials inside",
            fix="give it without them: credentials come from the environment or a profile (AWS_PROFILE)",
        )
    if reason := _reason_to_refuse(uri):
        raise InvalidInput(f"the {what}'s address {terminal_line(without_credentials(uri))} {reason[0]}", fix=reason[1])


def _shown(uri: str) -> str:
    hidden = with_user_part_hidden(uri)
    return terminal_line(without_credentials(uri) if has_credentials(hidden) else hidden)


def _reason_to_refuse(uri: str) -> tuple[str, str] | None:
    """Why an address without credentials cannot be used, as a predicate, and the fix; None if it can."""
    if "::" in uri:
        return "has '::' in it, which chains file systems", "give one address, or rename the folder"
    if _CONTROL.search(uri):
        return "has a control character or a character that is not UTF-8", "rename it"
    if _ONE_SLASH.match(uri):
        return "has one slash after its scheme", "write two, as in s3://bucket/mugs"
    match = _SCHEME.match(uri)
    if match is None or match["file"] or match["scheme"].lower() in ("file", "local"):
        return None
    scheme, rest = match["scheme"].lower(), uri[match.end() :]
    if not rest.strip("/"):
        return "names no bucket or host", f"write it as in {scheme}://bucket/mugs"
    if scheme in _S3 and "?versionId=" in rest:
        return "names a version of an object", "leave the version out"
    if scheme not in _LITERAL_KEYS and re.search("[?#]", rest):
        return "has a query or a fragment", "give it without what follows the ? or #"
    if {".", ".."} & set(rest.split("/")):
        return "has a . or .. in its path, which stores take for a name", "write it without them"
    return None


def normalized(uri: str) -> str:
    """`uri` as file systems take it: its scheme in lower case, `~` expanded, and a plain path for a file: URI.

    The path of a file: URI is percent-decoded, unless a file has the very name that is written: `Path.as_uri()` and
    Spark encode, people do not.
    """
    if "::" in uri:  # a chain of addresses is fsspec's own notation
        return uri
    match = _SCHEME.match(uri)
    if match is None:
        return os.path.expanduser(uri)
    scheme, rest = (match["scheme"] or match["file"]).lower(), uri[match.end() :]
    if scheme != "file":
        return f"{scheme}://{rest}"
    path = rest.removeprefix("localhost")
    return path if os.path.exists(path) else unquote(path)


def file_system(uri: str) -> tuple[Any, str]:
    """As `open_file_system`, for an address that may hold credentials, such as a signed URL.

    Raises:
        ImportError: the file system of its scheme is not installed.
        ValueError: no file system has this scheme.
    """
    uri = normalized(uri)
    if "://" not in uri and "::" not in uri:  # a path, of which nothing is to be taken for a scheme or a pattern
        return LocalFileSystem(), os.path.abspath(uri)
    is_s3 = get_protocol(uri) in _S3
    fs, path = fsspec.url_to_fs(uri, **(_s3_options() if is_s3 else {}))
    if is_s3:
        fs.retries = _S3FS_TRIES
    return fs, str(path)


def _s3_options() -> dict[str, Any]:
    """Options for a client that caches no listings and leaves retries to us.

    botocore tries five times, s3fs calls botocore five times, and a store that resets connections is noticed after
    39 s. What the user has configured stays: in FSSPEC_S3, in the AWS configuration or AWS_MAX_ATTEMPTS.
    """
    config = dict(conf.get("s3", {}).get("config_kwargs", {}))
    if "retries" not in config and not _retries_configured():
        config["retries"] = {"total_max_attempts": 1}
    return {"use_listings_cache": False, "config_kwargs": config}


def _retries_configured() -> bool:
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:  # then there is no s3fs either, and opening says so
        return False
    try:
        profile = Session().get_scoped_config()
        return any(name in profile or f"AWS_{name.upper()}" in os.environ for name in ("max_attempts", "retry_mode"))
    except BotoCoreError:  # such as a profile that is not there: the first request says so
        return False
