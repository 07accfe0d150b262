"""Settings of training. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..settings import Settings
from .convergence import EarlyStopping


class WarmStart(Settings):
    """Start the training of a concept whose inputs have changed from its committed residual."""

    iterations: int = Field(default=75, ge=1, le=100_000, description="optimizer steps after a warm start")


def _check_rank(rank: Any) -> int | float:
    if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1:
        return rank
    if isinstance(rank, float) and 0 < rank <= 1:
        return rank
    shown = repr(rank)[:40] if isinstance(rank, int | float | str) else f"a {type(rank).__name__}"
    raise ValueError(f"{shown} is neither a share of the layer's width, such as 0.05, nor a number, such as 8")


Rank = Annotated[int | float, BeforeValidator(_check_rank)]
"""The rank of a residual: a whole number, or a fraction of each layer's width."""


class TrainingSettings(Settings):
    """Settings of training. Defaults are the paper's where it states a value; docs/method.md has the others."""

    iterations: int = Field(default=150, ge=1, le=100_000, description="optimizer steps per concept")
    batch_size: int = Field(default=4, ge=1, le=256, description="noised references of one concept per step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's learning rate for A and B")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="course of the learning rates after the warm-up: all but constant fall to zero"
    )
    warmup_iterations: int = Field(default=0, ge=0, description="first iterations, in which the learning rates rise")
    decay_iterations: int | None = Field(
        default=None,
        ge=1,
        description="last iterations, in which the learning rates fall; null: all after the warm-up, or with "
        "early_stopping a third of `iterations`, which then begin when the loss has become constant",
    )
    rank: Rank = Field(
        default=0.05,
        description="rank of a residual: a fraction of each layer's width (0.05; at least 1), or a number (8; at most "
        "the width)",
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
    timesteps: Literal["uniform", "stratified"] = Field(
        default="uniform",
        description="timesteps of a batch; uniform: independent of each other; stratified: one in each of batch_size "
        "equal parts of the range",
    )
    timestep_range: tuple[float, float] = Field(
        default=(0.0, 1.0),
        description="part of the noise schedule to train on, from 0 (no noise) to 1 (noise alone)",
    )
    reference_order: Literal["random", "shuffled"] = Field(
        default="random",
        description="random: any reference at any time; shuffled: all references once, in random order, before any "
        "comes again",
    )
    antithetic_noise: bool = Field(
        default=False,
        description="train in pairs: each noised reference also with the negative of its noise; needs an even "
        "batch_size",
    )
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        description="weigh timesteps by Min-SNR (arXiv 2303.09556) with this gamma, such as 5; null: all alike",
    )
    max_gradient_norm: float | None = Field(
        default=None, gt=0, description="scale a concept's gradient down to this norm; null: never"
    )
    averaging: Literal["none", "ema", "tail"] = Field(
        default="none",
        description="the result is the last iterate (none), an exponential moving average of all (ema) or the mean of "
        "the last ones (tail)",
    )
    averaging_iterations: int = Field(
        default=20, ge=1, le=100_000, description="iterates in the mean (tail), or the time constant (ema)"
    )
    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="end a concept's training when it has converged, or with a schedule that decays, start the decay "
        "then; null: always train `iterations`",
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

    @classmethod
    def added_later(cls) -> frozenset[str]:
        return frozenset(
            {
                "schedule",
                "warmup_iterations",
                "decay_iterations",
                "timesteps",
                "timestep_range",
                "reference_order",
                "antithetic_noise",
                "min_snr_gamma",
                "max_gradient_norm",
                "averaging",
                "averaging_iterations",
            }
        )

    def digest_fields(self) -> dict[str, Any]:
        fields = super().digest_fields()
        if isinstance(self.rank, float):
            fields["rank_fraction"] = fields.pop("rank")  # its name while it could be nothing else
        if self.averaging == "none":
            fields.pop("averaging_iterations", None)
        return fields

    @property
    def rank_fraction(self) -> int | float:
        """The former name of `rank`."""
        return self.rank

    @property
    def longest_decay(self) -> int | None:
        """The iterations of the decay, None for all after the warm-up."""
        if self.decay_iterations is None and self.early_stopping is not None:
            return max(1, self.iterations // 3)
        return self.decay_iterations

    @model_validator(mode="before")
    @classmethod
    def _read_former_name_of_rank(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "rank_fraction" not in values:
            return values
        if "rank" in values:
            raise ValueError("rank and rank_fraction, its former name, are both given; leave rank_fraction out")
        others = {name: value for name, value in values.items() if name != "rank_fraction"}
        fraction = values["rank_fraction"]
        if isinstance(fraction, int):
            fraction = float(fraction)
        if isinstance(fraction, float) and not 0 < fraction <= 1:
            raise ValueError(f"rank_fraction {fraction:g} is not in 0 to 1; write a number as rank")
        return {**others, "rank": fraction}

    @model_validator(mode="after")
    def _check_schedule(self) -> TrainingSettings:
        warmup, decay, iterations = self.warmup_iterations, self.decay_iterations, self.iterations
        if decay is not None and self.schedule == "constant":
            raise ValueError("decay_iterations has no effect with schedule: constant; choose linear or cosine")
        if warmup + (decay or 0) > iterations:
            given = f"warmup_iterations ({warmup})" + (f" and decay_iterations ({decay})" if decay else "")
            raise ValueError(f"{given} exceed iterations ({iterations})")
        if self.averaging == "tail" and self.early_stopping and self.schedule == "constant":
            raise ValueError(
                "averaging: tail with early_stopping needs schedule: linear or cosine, because with a constant rate "
                "no one knows which iterates will be the last; or choose averaging: ema"
            )
        return self

    @model_validator(mode="after")
    def _check_draws(self) -> TrainingSettings:
        low, high = self.timestep_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"timestep_range [{low:g}, {high:g}] is not a range within 0 to 1")
        if self.antithetic_noise and self.batch_size % 2:
            raise ValueError(f"antithetic_noise needs an even batch_size, not {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _last_iteration_is_checked(self) -> TrainingSettings:
        stopping = self.early_stopping
        if stopping and self.iterations % stopping.check_every:
            raise ValueError(
                f"iterations ({self.iterations}) is not a multiple of early_stopping.check_every "
                f"({stopping.check_every})"
            )
        return self
