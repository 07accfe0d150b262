"""How residuals are trained: every setting, its default and what it does. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..settings import Settings
from .convergence import EarlyStopping


class WarmStart(Settings):
    """Train a concept that the catalog holds already, and whose inputs have changed, on from its committed residual."""

    iterations: int = Field(default=75, ge=1, le=100_000, description="optimizer steps of a concept that starts warm")


class TrainingSettings(Settings):
    """How a residual is trained. The paper's values where it states them; docs/method.md says what it leaves open."""

    iterations: int = Field(default=150, ge=1, le=100_000, description="optimizer steps for every concept")
    batch_size: int = Field(default=4, ge=1, le=256, description="noised references of one concept in every step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's learning rate for A and B")
    rank_fraction: float = Field(
        default=0.05, gt=0, le=1, description="rank of a residual = max(1, round(rank_fraction x layer width))"
    )
    initialization: Literal["zero", "random"] = Field(
        default="random",
        description="A at the start; random: as in the paper; zero: training starts exactly at the base model",
    )
    random_std: float = Field(default=0.01, gt=0, le=1, description="standard deviation of a random A")
    prompt: str = Field(
        default="a photo of a {concept}", description="the training prompt; {concept} becomes 'V* <macro class>'"
    )
    identifier_token: str = Field(
        default="sks", description="a rare word of the tokenizer, one token long, that stands for V*"
    )
    train_identifier: bool = Field(
        default=False, description="also learn V*'s embedding; the text encoder then runs in every step"
    )
    identifier_learning_rate: float = Field(default=5e-3, gt=0, le=1, description="Adam's learning rate for V*")
    mirror: bool = Field(default=False, description="also learn from mirrored references")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="end a concept's training when it has converged; null: never before `iterations`"
    )
    warm_start: WarmStart | None = Field(
        default=None, description="start a changed concept from its committed residual; null: always from its seed"
    )
    pack_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        default="auto",
        description="concepts trained together; auto: what the first worker measures, remembered in the catalog",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice to fit more concepts into the device's memory"
    )
    max_residual_norm: float = Field(
        default=50.0,
        gt=0,
        description="a residual with |A B| above this many times a layer's |W| (Frobenius) has diverged; it is trained "
        "once more at a quarter of the learning rate, then given up",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        # A warm start changes the result, and is recorded with it; but turning it on must not train a catalog again.
        # Neither must another bound on the norm, which decides what becomes of trainings that went wrong alone.
        return frozenset({"pack_size", "gradient_checkpointing", "warm_start", "max_residual_norm"})

    @model_validator(mode="after")
    def _checks_meet_the_end(self) -> TrainingSettings:
        stopping = self.early_stopping
        if stopping and self.iterations % stopping.check_every:
            raise ValueError(
                f"iterations ({self.iterations}) is not a multiple of early_stopping.check_every "
                f"({stopping.check_every})"
            )
        return self
