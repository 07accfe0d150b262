"""What stays of an image's address when it is signed again, and the other spellings of a name in Unicode."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator
from urllib.parse import unquote_plus, urlsplit

_SIGNATURES = frozenset({
    "sig", "signature", "x-amz-signature", "x-goog-signature", "x-oss-signature", "q-signature", "policy", "token",
    "access_token", "auth", "auth_key", "authorization", "jwt", "hmac", "hdnts", "hdnea", "__token__", "verify",
    "md5", "secret", "password", "key", "apikey", "api_key",
})  # fmt: skip
_BESIDE_SIGNATURES = frozenset({
    "expires", "expiry", "expire", "exp", "e", "ttl", "timestamp", "ts", "nonce", "key-pair-id", "awsaccesskeyid",
    "ossaccesskeyid", "googleaccessid", "hash-algorithm",
    "sv", "se", "st", "sr", "sp", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv", "ss", "srt", "saoid",
    "suoid", "scid", "sdd", "ses",
})  # fmt: skip
_SIGNATURE_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "q-sign", "q-ak", "q-key-time", "q-header-list", "q-url-param")


def address_digest(uri: str) -> str:
    """16 hexadecimal digits for where an image lies, the same after it has been signed again with another expiry."""
    return hashlib.sha256(_without_signature(uri).encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def _without_signature(uri: str) -> str:
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # not a URI after all
        return uri
    pairs = [(unquote_plus(pair.partition("=")[0]).lower(), pair) for pair in parts.query.split("&") if pair]
    if any(name in _SIGNATURES for name, _ in pairs):
        volatile = _SIGNATURES | _BESIDE_SIGNATURES
        pairs = [one for one in pairs if one[0] not in volatile and not one[0].startswith(_SIGNATURE_PREFIXES)]
    host = parts.netloc.rpartition("@")[2].lower()
    return f"{parts.scheme}://{host}{parts.path}?{'&'.join(pair for _, pair in pairs)}"


def other_spellings(path: str, names_in: Callable[[str], list[str]] | None) -> Iterator[str]:
    """The names that are equal to a path but for their Unicode form: ä may be one character or two.

    Args:
        names_in: lists a folder, whose names may have any form; None: where folders are not listed, the two usual
            forms are tried.
    """
    if path.isascii():
        return
    if names_in is None:
        yield from (form for kind in ("NFC", "NFD") if (form := unicodedata.normalize(kind, path)) != path)
        return
    found = os.sep if path.startswith(os.sep) else ""
    for name in path.split(os.sep):
        if not name or name in (".", ".."):
            found = os.path.join(found, name)
            continue
        wanted = unicodedata.normalize("NFC", name)
        names = names_in(found or ".")
        same = [name] if name in names else sorted(one for one in names if unicodedata.normalize("NFC", one) == wanted)
        if not same:
            return
        found = os.path.join(found, same[0])
    if found != path:
        yield found
