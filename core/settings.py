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

    @classmethod
    def added_later(cls) -> frozenset[str]:
        """Names of the fields that digests leave out while they have their default values.

        A setting that is added with the earlier behaviour as its default is named here, so that the digests of specs
        that do not use it stay what they were. Its default can then never change again, except with METHOD_VERSION.
        """
        return frozenset()

    def digest_fields(self) -> dict[str, Any]:
        """All fields for a digest, as JSON values, without those that were `added_later` and have their defaults."""
        unused = {name for name in self.added_later() if getattr(self, name) == self._default_of(name)}
        return self.model_dump(mode="json", exclude=unused)

    @classmethod
    def _default_of(cls, name: str) -> Any:
        return cls.model_fields[name].get_default(call_default_factory=True)

    def fingerprint_fields(self) -> dict[str, Any]:
        """The fields that determine a result, and so belong to its fingerprint, as JSON values."""
        excluded = self.not_fingerprinted()
        return {name: value for name, value in self.digest_fields().items() if name not in excluded}
