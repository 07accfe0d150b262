"""From a catalog's address to a file system: without credentials in the address, and without retries inside retries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from fsspec.config import conf
from fsspec.utils import get_protocol

from ...core.errors import InvalidInput

_S3 = frozenset({"s3", "s3a"})
_BUCKETS = _S3 | {"gs", "gcs"}  # nothing but a key can stand before an @ there
_TRIES_OF_S3FS = 3  # quick ones for each request, so that an operation made of many is not begun anew for one of them
_USER_PART = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<name>[^/:@]*)(?P<password>:[^@]*)?@", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS")


def open_file_system(uri: str, storage_options: Mapping[str, Any], *, what: str = "catalog") -> tuple[Any, str]:
    """The fsspec file system of a catalog, and the catalog's path in it, without a slash at its end.

    Args:
        what: what messages call it, where it is no catalog.

    Raises:
        InvalidInput: the address has credentials in it, or no file system is installed for its scheme.
    """
    shown = without_user_part(uri)
    if shown != uri:
        raise InvalidInput(
            f"the {what}'s address {shown} was given with credentials inside",
            fix="give it without them: credentials come from the environment or a profile (AWS_PROFILE)",
        )
    try:
        options = _for_s3(storage_options) if get_protocol(uri) in _S3 else dict(storage_options)
        fs, root = fsspec.url_to_fs(os.path.expanduser(uri), **options)
    except (ImportError, ValueError) as error:
        raise InvalidInput(
            f"cannot open the {what} {uri}: {struck(str(error), secrets_in(storage_options))}",
            fix="give a local path or a URI whose fsspec package is installed, such as s3fs for s3://",
        ) from None
    if get_protocol(uri) in _S3:
        fs.retries = _TRIES_OF_S3FS
    return fs, str(root).rstrip("/")


def without_user_part(uri: str) -> str:
    """`uri` with *** for a password, or for a key before a bucket's name; unchanged where there is none.

    A name alone is none elsewhere: abfs://container@account, sftp://user@host.
    """

    def hidden(found: re.Match[str]) -> str:
        scheme, password = found["scheme"], found["password"]
        port_and_path = password and "/" in password and password[1:].split("/")[0].isdigit()
        if port_and_path or not (password or scheme.lower() in _BUCKETS):
            return found[0]
        return f"{scheme}://***@"

    return _USER_PART.sub(hidden, uri)


def secrets_in(storage_options: Mapping[str, Any]) -> tuple[str, ...]:
    """Every text of the options and of fsspec's own, and the credentials in the environment, longest first."""
    found = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= 8]
    for options in (storage_options, conf):
        found.extend(text for text in _texts(options) if len(text) >= 4)
    return tuple(sorted(set(found), key=len, reverse=True))


def struck(text: str, secrets: tuple[str, ...]) -> str:
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


def _for_s3(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a client of our own: it remembers no listings, and leaves asking again to us.

    botocore asks five times, s3fs asks botocore five times, and a store that resets connections is noticed after 39 s.
    What the user has configured stays: in the options, in FSSPEC_S3, in the AWS configuration or AWS_MAX_ATTEMPTS.
    """
    given = {**conf.get("s3", {}).get("config_kwargs", {}), **storage_options.get("config_kwargs", {})}
    if "retries" not in given and not _retries_configured():
        given["retries"] = {"total_max_attempts": 1}
    return {"use_listings_cache": False, **storage_options, "config_kwargs": given}


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
