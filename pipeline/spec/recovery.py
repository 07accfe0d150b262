"""Retries, timeouts and limits of a run. No result depends on them."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class RecoverySettings(Settings):
    """Retries, timeouts and limits of a run, in seconds. They do not affect results."""

    max_losses: int = Field(
        default=3,
        ge=1,
        le=100,
        description="a concept that has lost this many workers by itself is quarantined (fails)",
    )
    stall_seconds: float = Field(
        default=1800,
        ge=1,
        description="a worker without progress for this long is killed, and its shard retried",
    )
    grace_seconds: float = Field(
        default=120, ge=0, description="how long after a stop signal the running shards may take to finish and commit"
    )
    idle_seconds: float = Field(
        default=60,
        ge=0,
        description="a worker is stopped when no shard has waited for this long; a cluster can then release its node",
    )
    store_patience_seconds: float = Field(
        default=600, ge=0, description="how long a store operation that fails with a transient error is retried"
    )
    lease_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="a run's lease on its catalog expires if it is not renewed for this long",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset(cls.model_fields)
