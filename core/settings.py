"""The base of every settings model: frozen, and strict about names."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings that lives beside the code it steers.

    `not_fingerprinted` names the fields that change speed but not the result; everything else belongs to the
    fingerprint of what the settings produced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset()

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that determine a result, as plain JSON values."""
        return self.model_dump(mode="json", exclude=set(self.not_fingerprinted()))
