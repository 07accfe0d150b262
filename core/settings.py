"""The base class of every settings model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen group of settings that rejects unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        """Names of the fields that are left out of fingerprints, such as those that change only the speed."""
        return frozenset()

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that determine a result, and so belong to its fingerprint, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.not_fingerprinted()))
