"""From an address to a file system: no credentials in the address, no retries inside our retries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import fsspec
from fsspec.config import conf
from fsspec.utils import get_protocol

from ...core.errors import InvalidInput

_S3 = frozenset({"s3", "s3a"})
_BUCKETS = _S3 | {"gs", "gcs"}  # nothing but a key can stand before an @ there
_S3FS_TRIES = 3  # quick ones for each request, so that an operation of many requests does not restart for one
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://|(?P<file>file):(?=/)", re.IGNORECASE)
_USER_PART = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<name>[^/:@]*)(?P<password>:[^@]*)?@", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(r"(?i)(^|[&;_-])(sig|signature|token|secret|password|credential|key)=")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS")


def open_file_system(uri: str, *, what: str = "catalog") -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path in it, without a slash at its end.

    Args:
        what: the thing that lies there, for messages.

    Raises:
        InvalidInput: the address holds credentials, or no file system is installed for its scheme.
    """
    redacted = _without_user_part(uri)
    if redacted != uri:
        raise InvalidInput(
            f"the {what}'s address {redacted} was given with credentials inside",
            fix="give it without them: credentials come from the environment or a profile (AWS_PROFILE)",
        )
    try:
        fs, root = file_system(uri)
    except (ImportError, ValueError) as error:
        raise InvalidInput(
            f"cannot open the {what} {uri}: {redact(str(error), known_secrets())}",
            fix="give a local path or a URI whose fsspec package is installed, such as s3fs for s3://",
        ) from None
    return fs, root.rstrip("/")


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
    is_s3 = get_protocol(uri) in _S3
    fs, path = fsspec.url_to_fs(uri, **(_s3_options() if is_s3 else {}))
    if is_s3:
        fs.retries = _S3FS_TRIES
    return fs, str(path)


def without_credentials(uri: str) -> str:
    """`uri` without user name, password, query and fragment, which may be secrets; plain paths are unchanged."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all; what follows the scheme may still hold a password
        return uri.split("://")[0] + "://…"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def has_credentials(uri: str) -> bool:
    """Whether an address holds a password, a key or a signature.

    A name alone before the @ is no secret on stores that put a container's name there, such as
    abfs://container@account.
    """
    if _without_user_part(uri) != uri:
        return True
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all
        return False
    is_web = parts.scheme in ("http", "https", "ftp")
    return bool(parts.password or (is_web and parts.username) or _SECRET_PARAMETER.search(parts.query))


def _without_user_part(uri: str) -> str:
    """`uri` with *** for a password, or for a key before a bucket's name; unchanged where there is none."""

    def hidden(found: re.Match[str]) -> str:
        scheme, password = found["scheme"], found["password"]
        port_and_path = password and "/" in password and password[1:].split("/")[0].isdigit()
        if port_and_path or not (password or scheme.lower() in _BUCKETS):
            return found[0]
        return f"{scheme}://***@"

    return _USER_PART.sub(hidden, uri)


def known_secrets() -> tuple[str, ...]:
    """The credentials in the environment and in fsspec's configuration, longest first."""
    found = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8]
    found.extend(text for text in _texts(conf) if len(text) >= 4)
    return tuple(sorted(set(found), key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with *** in place of each of `secrets`."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _texts(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, str) and "url" not in name:
            yield value


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
