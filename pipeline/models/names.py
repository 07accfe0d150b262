"""What a model's name can be: the embedded model's, a folder, a Hub id or a URI. Nothing is looked up here."""

from __future__ import annotations

from ...core.errors import InvalidInput
from ..storage.uri import has_credentials, without_credentials

SPRITEWORLD = "spriteworld"
"""The name of the model that is installed with this package."""


def is_uri(name: str) -> bool:
    """Whether a model's name is the address of a folder in some store."""
    return "://" in name and not name.startswith("file://")


def check_model_uri(uri: str, what: str) -> None:
    """Refuse an address that nothing could be fetched from, or that has a secret in it. Messages hold none.

    Raises:
        InvalidInput: naming `what`.
    """
    scheme = uri.partition("://")[0].lower()
    if has_credentials(uri) or any(sign in uri for sign in "?#"):
        raise InvalidInput(
            f"the {what}'s address {without_credentials(uri)} was given with credentials or a query inside",
            fix="give it without them: credentials come from the environment or a profile (AWS_PROFILE)",
        )
    if "::" in uri or scheme in _WITHOUT_LISTING:
        kind = "is a chain of addresses" if "::" in uri else "cannot be listed"
        raise InvalidInput(f"{what} {uri!r} {kind}", fix="give a folder in an object store, such as s3://bucket/model")
    if scheme == "hf":
        raise InvalidInput(f"{what} {uri!r} is a Hub address", fix="give the Hub id alone, 'owner/name'")


_WITHOUT_LISTING = frozenset({"http", "https"})
