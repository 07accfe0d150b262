"""The kinds of model names: the embedded model, a folder, a Hub id or a URI. Accesses no file and no network."""

from __future__ import annotations

import re

from ...core.errors import InvalidInput
from ..storage.uri import has_credentials, without_credentials

_BEFORE_QUERY = re.compile(r"[?#]")
_WITHOUT_LISTING = frozenset({"http", "https"})

SPRITEWORLD = "spriteworld"
"""The name of the model that is part of this package."""


def is_uri(name: str) -> bool:
    """Whether a model's name is the URI of a folder in an object store."""
    return "://" in name and not name.lower().startswith("file:")


def check_model_uri(uri: str, what: str) -> None:
    """Check that models can be fetched from an address, and that it holds no secret; messages never show one.

    Args:
        what: the model's role, for messages.

    Raises:
        InvalidInput: the address holds credentials or a query, or cannot be listed.
    """
    scheme = uri.partition("://")[0].lower()
    if has_credentials(uri) or "?" in uri or "#" in uri:
        shown = _BEFORE_QUERY.split(without_credentials(uri))[0]
        raise InvalidInput(
            f"the {what}'s address {shown} was given with credentials or a query inside",
            fix="give it without them: credentials come from the environment or a profile (AWS_PROFILE)",
        )
    if "::" in uri or scheme in _WITHOUT_LISTING:
        kind = "is a chain of addresses" if "::" in uri else "cannot be listed"
        raise InvalidInput(f"{what} {uri!r} {kind}", fix="give a folder in an object store, such as s3://bucket/model")
    if scheme == "hf":
        raise InvalidInput(f"{what} {uri!r} is a Hub address", fix="give the Hub id alone, 'owner/name'")
