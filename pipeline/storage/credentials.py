"""Credentials in an address: whether it holds any, and the address without them. The one place that knows.

A credential is found by where it stands (before an @), by the name of its parameter (`?apikey=`, also as `%61pikey=`),
and by its value: one from this process's environment, one in a form that a service gives out, or text that looks
random.
A false alarm costs a fix of an address; a miss puts a key into a log that many read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from fsspec.config import conf

_WEB = frozenset({"http", "https", "ftp", "ftps", "webdav", "webdavs", "webhdfs"})
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs"})  # nothing but a key can stand before an @ there
_CONTAINERS = frozenset({"abfs", "abfss", "az", "adl", "wasb", "wasbs"})  # whose name stands before the account's

_LINK = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_USER_PART = re.compile(r"(?P<name>[^/:@]*)(?P<password>:[^@]*)?@")
_PARAMETERS = re.compile(r"[?#;&]")
_SECRET_WORDS = frozenset({
    "auth", "authorization", "bearer", "cred", "credential", "credentials", "hmac", "jwt", "key", "keys", "pass",
    "passphrase", "passwd", "password", "pwd", "sas", "secret", "secrets", "session", "sig", "signature", "token",
    "tokens",
})  # fmt: skip
_SECRET_ENDING = re.compile(r"(apikey|key|keyid|token|secret|signature|password|passwd|credential|sessionid|sas)$")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NOT_SECRET = frozenset({"monkey", "donkey", "turkey", "hockey", "jockey", "whiskey", "tokenkind"})
_GIVEN_OUT = re.compile(
    r"\b(?:(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}"  # AWS
    r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}"  # Google
    r"|(?:gh[pousr]|github_pat|glpat|hf|xox[abprs]|sk|pk|rk)[_-][0-9A-Za-z_-]{16,}"  # GitHub, GitLab, Hub, Slack, ...
    r"|eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]*)?)"  # JSON web tokens
)
_TIMESTAMP = re.compile(
    r"(?<![0-9A-Za-z])(?:19|20)\d\d-?[01]\d-?[0-3]\d(?:T\d\d:?\d\d(?::?\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?)?"
    r"(?![0-9A-Za-z])"
)
_HEXADECIMAL = re.compile(r"(?=[0-9]*[a-fA-F])(?=[a-fA-F]*[0-9])[0-9a-fA-F]{16,}")
_RANDOM = re.compile(r"[A-Za-z0-9+/=_~-]{16,}")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS")
_MAX_DECODINGS = 4


def has_credentials(uri: str) -> bool:
    """Whether an address, or one of a chain of addresses, holds a password, a key, a token or a signature.

    Plain paths hold none. A name alone before the @ is none on stores that put a container's name there, such as
    abfs://container@account.
    """
    return any(_parts_with_credentials(link) for link in uri.split("::"))


def without_credentials(uri: str) -> str:
    """`uri` without user name, password, and whatever else may be secret; plain paths are unchanged.

    From addresses of the web the query and the fragment are left out in any case.
    """
    return "::".join(map(_link_without_credentials, uri.split("::")))


def with_user_part_hidden(uri: str) -> str:
    """`uri` with *** for a password, or for a key before a bucket's name; unchanged where there is none."""
    return "::".join(map(_link_with_user_part_hidden, uri.split("::")))


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


def _parts_with_credentials(link: str) -> list[str]:
    """What makes one address of a chain secret: "user", "parameters" or "value"; empty where nothing does."""
    match = _LINK.match(link)
    if match is None:
        return []
    found = []
    if _link_with_user_part_hidden(link) != link or _names_a_user(match["scheme"], match["rest"]):
        found.append("user")
    _, *parameters = _PARAMETERS.split(match["rest"])
    if any(map(_is_secret_parameter, parameters)):
        found.append("parameters")
    decoded = _decoded(link)
    if _GIVEN_OUT.search(decoded) or any(secret in decoded for secret in known_secrets() if len(secret) >= 8):
        found.append("value")
    return found


def _link_without_credentials(link: str) -> str:
    match = _LINK.match(link)
    if match is None:
        return link
    scheme, rest = match["scheme"], match["rest"]
    is_secret = _parts_with_credentials(link)
    user = _USER_PART.match(rest)
    if user and not _is_port_and_path(user["password"]):
        keeps_name = scheme.lower() in _CONTAINERS and not user["password"]
        rest = rest if keeps_name else rest[user.end() :]
    elif "@" in (authority := re.split(r"[/?#]", rest, maxsplit=1)[0]):
        rest = rest[authority.rindex("@") + 1 :]
    if scheme.lower() in _WEB:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    if "parameters" in is_secret:
        rest = _PARAMETERS.split(rest, maxsplit=1)[0]
    left = f"{scheme}://{rest}"
    return f"{scheme}://…" if "value" in _parts_with_credentials(left) else left


def _link_with_user_part_hidden(link: str) -> str:
    match = _LINK.match(link)
    user = _USER_PART.match(match["rest"]) if match else None
    if match is None or user is None or _is_port_and_path(user["password"]):
        return link
    if not (user["password"] or match["scheme"].lower() in _BUCKETS):
        return link
    return f"{match['scheme']}://***@{match['rest'][user.end() :]}"


def _names_a_user(scheme: str, rest: str) -> bool:
    """Whether a user, or an encoded user with a password, stands before the @ of a host."""
    user, at, _ = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")
    return bool(at) and (scheme.lower() in _WEB or ":" in _decoded(user))


def _is_port_and_path(password: str | None) -> bool:
    """Whether what looks like a password is a port and a path with an @, as in hdfs://host:8020/a@b."""
    return bool(password) and "/" in password and password[1:].split("/")[0].isdigit()  # pyright: ignore


def _is_secret_parameter(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    name, value = _decoded(name), _decoded(value)
    if value and _is_secret_name(name):
        return True
    return _looks_random(value or name) or ("://" in value and has_credentials(value))


def _is_secret_name(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)} | set(re.split(r"[^a-z]+", name.lower()))
    plain = re.sub(r"[^a-z]", "", name.lower())
    return bool(words & _SECRET_WORDS) or (plain not in _NOT_SECRET and bool(_SECRET_ENDING.search(plain)))


def _looks_random(text: str) -> bool:
    """Whether a part of `text` of 16 characters or more changes between letters, digits and cases as random text does.

    Words, numbers, dates and names made of these do so seldom.
    """
    for found in _RANDOM.findall(_TIMESTAMP.sub(" ", text)):
        pieces = re.findall(r"[A-Za-z0-9]+", found)
        kinds = ["".join("0" if one.isdigit() else "a" if one.islower() else "A" for one in piece) for piece in pieces]
        letters = sum(len(re.findall(r"(?=0[aA]|[aA]0)", kind)) for kind in kinds)
        changes = letters + sum(len(re.findall(r"(?=aA|Aa)", kind)) for kind in kinds)
        if letters >= 4 or any(map(_HEXADECIMAL.fullmatch, pieces)) or changes >= 0.4 * sum(map(len, pieces)):
            return True
    return False


def _decoded(text: str) -> str:
    """`text` with its percent-escapes decoded, those of escapes too."""
    for _ in range(_MAX_DECODINGS):
        decoded = unquote(text)
        if decoded == text:
            break
        text = decoded
    return text
