"""Settings of scoring and of the quality gate. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from ..settings import Settings


class ScoringSettings(Settings):
    """Settings of scoring. A rendering passes the gate if both scores reach their minimum; null: no minimum."""

    min_prompt_score: float | None = Field(
        default=None, ge=-1, le=1, description="minimum cosine between an image and its prompt"
    )
    min_identity_score: float | None = Field(
        default=None, ge=-1, le=1, description="minimum mean cosine between an image and the references"
    )
    batch_size: int = Field(default=32, ge=1, le=4096, description="images per scoring batch; short batches are padded")

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"batch_size"})
