"""The plan of a benchmark: device, settings, rows, and how often each is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...core.base_model import BaseModel, load_base_model
from ...core.errors import InvalidInput
from ...core.sampling.settings import SamplingSettings
from ...core.training.settings import TrainingSettings
from ..models.resolve import resolve_model
from ..spec.run_spec import RunSpec
from .published_shapes import PUBLISHED_SHAPES, build_published

MAX_PACK = {"cpu": 16, "cuda": 1024}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """All parameters of a benchmark but the model.

    Attributes:
        threads: CPU threads of the process.
        max_pack: the largest pack, unless memory ends before.
        iterations: optimizer steps that are measured; seconds are extrapolated to `training.iterations`.
        rounds: how often every row is measured.
        rows: names of the rows to measure; the peers they are compared with are added. Empty: all.
    """

    device: Literal["cpu", "cuda"]
    threads: int
    max_pack: int
    training: TrainingSettings
    sampling: SamplingSettings
    iterations: int = 10
    rounds: int = 3
    rows: tuple[str, ...] = ()

    @property
    def pack_sizes(self) -> list[int]:
        """2, 4, 8, … up to `max_pack`."""
        return [2**power for power in range(1, self.max_pack.bit_length())]


def make_bench_plan(
    spec: RunSpec | None = None,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    max_pack: int | None = None,
    iterations: int = 10,
    rounds: int = 3,
    rows: Sequence[str] = (),
) -> BenchPlan:
    """Fill in what is not given, with the settings of a run spec or the defaults.

    V* is frozen and there is neither early stopping nor warm start, since the peer has none of them.

    Raises:
        InvalidInput: `device` is "cuda" and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("--device 'cuda': torch sees no CUDA device here", fix="give --device cpu")
    found = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
    settings = spec or RunSpec()
    return BenchPlan(
        device=found,
        threads=threads or usable_threads(),
        max_pack=max_pack or MAX_PACK[found],
        training=settings.training.model_copy(
            update={"train_identifier": False, "early_stopping": None, "warm_start": None}
        ),
        sampling=settings.sampling,
        iterations=iterations,
        rounds=rounds,
        rows=tuple(rows),
    )


def usable_threads() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_bench_model(model: str, device: str) -> BaseModel:
    """Load a model, or build a published architecture with random weights: bfloat16 on CUDA, float32 on a CPU.

    Raises:
        InvalidInput: there is no such model, or it cannot be loaded.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for shape in PUBLISHED_SHAPES:
        if model == shape:
            return build_published(shape, device=device, dtype=dtype)
    found = resolve_model(model)
    return load_base_model(found.path, name=model, revision=found.revision, device=device, dtype=dtype)
