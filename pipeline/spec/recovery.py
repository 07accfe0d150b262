"""How much a run puts up with before it gives up: the settings that no result depends on."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class RecoverySettings(Settings):
    """What a run puts up with before it gives up. No result depends on any of it."""

    max_losses: int = Field(
        default=3, ge=1, le=100, description="workers that a concept may lose by itself before it is quarantined"
    )
    stall_seconds: float = Field(
        default=1800,
        ge=1,
        description="a shard that has not moved for so long is taken from its worker, which is killed",
    )
    grace_seconds: float = Field(
        default=120, ge=0, description="how long after a termination signal shards in flight may go on, to be committed"
    )
    idle_seconds: float = Field(
        default=60,
        ge=0,
        description="a worker is let go once no shard has been waiting for so long, and its machine with it",
    )
    store_patience_seconds: float = Field(
        default=600, ge=0, description="how long a store that does not answer is asked again"
    )
    lease_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="a run that has not been heard of for so long no longer holds its catalog",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset(cls.model_fields)
