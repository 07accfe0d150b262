"""Settings of training. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..settings import Settings
from .convergence import EarlyStopping


class WarmStart(Settings):
    """Start the training of a concept whose inputs have changed from its committed residual."""

    iterations: int = Field(default=75, ge=1, le=100_000, description="optimizer steps after a warm start")


class TrainingSettings(Settings):
    """Settings of training. Defaults are the paper's where it states a value; docs/method.md has the others."""

    iterations: int = Field(default=150, ge=1, le=100_000, description="optimizer steps per concept")
    batch_size: int = Field(default=4, ge=1, le=256, description="noised references of one concept per step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's learning rate for A and B")
    rank_fraction: float = Field(
        default=0.05, gt=0, le=1, description="rank of a residual = max(1, round(rank_fraction x layer width))"
    )
    initialization: Literal["zero", "random"] = Field(
        default="random",
        description="initial A; random: as in the paper; zero: training starts exactly at the base model",
    )
    random_std: float = Field(default=0.01, gt=0, le=1, description="standard deviation of a random initial A")
    prompt: str = Field(
        default="a photo of a {concept}", description="the training prompt; {concept} becomes 'V* <macro class>'"
    )
    identifier_token: str = Field(default="sks", description="the word used as V*: a rare word that is one token")
    train_identifier: bool = Field(
        default=False, description="also train the embedding of V*; the text encoder then runs in every step"
    )
    identifier_learning_rate: float = Field(default=5e-3, gt=0, le=1, description="Adam's learning rate for V*")
    mirror: bool = Field(default=False, description="also train on mirrored references")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="end a concept's training when it has converged; null: always train `iterations`"
    )
    warm_start: WarmStart | None = Field(
        default=None, description="start a changed concept from its committed residual; null: always from its seed"
    )
    pack_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        default="auto",
        description="concepts trained together; auto: measured by the first worker and stored in the catalog",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice, so that more concepts fit into the device's memory"
    )
    max_residual_norm: float = Field(
        default=50.0,
        gt=0,
        description="a residual whose |A B| exceeds this many times |W| (Frobenius) in a layer has diverged; its "
        "training is retried once at a quarter of the learning rate",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        # A warm start changes the result and is recorded with it, but turning it on must not retrain a catalog.
        # Nor must another bound on the norm, which affects only trainings that diverged.
        return frozenset({"pack_size", "gradient_checkpointing", "warm_start", "max_residual_norm"})

    @model_validator(mode="after")
    def _last_iteration_is_checked(self) -> TrainingSettings:
        stopping = self.early_stopping
        if stopping and self.iterations % stopping.check_every:
            raise ValueError(
                f"iterations ({self.iterations}) is not a multiple of early_stopping.check_every "
                f"({stopping.check_every})"
            )
        return self
