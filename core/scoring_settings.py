"""How renderings are scored and gated: every setting, its default and what it does. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from .settings import Settings


class ScoringSettings(Settings):
    """The gate: a rendering passes when both of its scores reach these cosines; null switches a bound off."""

    min_prompt_score: float | None = Field(
        default=None, ge=-1, le=1, description="smallest cosine between the image and its prompt"
    )
    min_identity_score: float | None = Field(
        default=None, ge=-1, le=1, description="smallest mean cosine between the image and the references"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="images scored together; short batches are padded")

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"batch_size"})
