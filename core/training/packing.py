"""How many concepts are trained together on one device: arithmetic over what was measured there, and the measuring.

A GPU's name says little about what fits it (other processes, other drivers, another batch size), so nothing is looked
up: packs of 1, 2, 4 … concepts are really trained for a few steps, until memory ends or throughput has flattened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..base_model import BaseModel
from ..latents import ReferenceLatents
from .device_memory import available_bytes, peak_memory, release_memory
from .residual_training import is_out_of_memory
from .settings import TrainingSettings
from .training_pack import TrainingPack, TrainingRequest

WORTH_DOUBLING = 1.03
"""A pack twice as large has to train at least this many times as many concepts a second."""

MEMORY_SHARE = 0.9
"""The share of a device's free memory that a pack may take by the forecast; the allocator needs the rest."""

LARGEST = 256
STEPS = 2


@dataclass(frozen=True, slots=True)
class PackTrial:
    """What a pack of `pack_size` concepts took: seconds a step, and the most memory it held, in bytes."""

    pack_size: int
    seconds_per_step: float
    peak_bytes: int

    @property
    def concepts_per_second(self) -> float:
        """Concept-steps a second."""
        return self.pack_size / self.seconds_per_step


def choose_pack_size(trials: Sequence[PackTrial]) -> int:
    """The smallest pack whose throughput no larger pack beats by more than `WORTH_DOUBLING`.

    Raises:
        ValueError: nothing was tried.
    """
    best = max(trial.concepts_per_second for trial in trials)
    return min(trial.pack_size for trial in trials if trial.concepts_per_second * WORTH_DOUBLING >= best)


def is_worth_doubling(trials: Sequence[PackTrial], free_bytes: int | None) -> bool:
    """Whether a pack twice the last one's size should be tried: throughput still grows, and by forecast it fits.

    Memory grows by the same amount for every concept, so two trials tell what the next one takes. Where the machine
    does not say what is free (None), throughput alone decides.
    """
    last = trials[-1]
    if last.pack_size >= LARGEST:
        return False
    if len(trials) == 1:
        return free_bytes is None or 2 * last.peak_bytes <= MEMORY_SHARE * free_bytes
    before = trials[-2]
    if last.concepts_per_second < WORTH_DOUBLING * before.concepts_per_second:
        return False
    forecast = last.peak_bytes + 2 * (last.peak_bytes - before.peak_bytes)
    return free_bytes is None or forecast <= MEMORY_SHARE * free_bytes


def measure_packs(
    base: BaseModel,
    settings: TrainingSettings,
    *,
    budget_seconds: float = 60.0,
    on_trial: Callable[[PackTrial], None] = lambda trial: None,
) -> list[PackTrial]:
    """Train packs of 1, 2, 4 … made-up concepts for a few steps each.

    Ends where memory does, where throughput flattens, or when the next trial would pass `budget_seconds`.

    Raises:
        RuntimeError: not even one concept fits; torch's own out-of-memory error.
    """
    trials: list[PackTrial] = []
    # What the model holds already is part of every trial on CUDA, and of what is free for one.
    free = available_bytes(base.device)
    if free is not None and base.device.type == "cuda":
        free += torch.cuda.memory_allocated(base.device)
    started, size = time.perf_counter(), 1
    while True:
        try:
            trial = _try(base, settings, size)
        except RuntimeError as error:
            if not trials or not is_out_of_memory(error):
                raise
            break
        trials.append(trial)
        on_trial(trial)
        next_seconds = 2 * (STEPS + 1) * trial.seconds_per_step
        if time.perf_counter() - started + next_seconds > budget_seconds or not is_worth_doubling(trials, free):
            break
        size *= 2
    release_memory(base.device)
    return trials


def _try(base: BaseModel, settings: TrainingSettings, size: int) -> PackTrial:
    side = base.resolution // base.pixels_per_latent
    latents = torch.zeros(1, base.latent_channels, side, side)
    seconds = []
    with peak_memory(base.device) as peak:
        pack = TrainingPack(base, settings, size)
        for slot in range(size):
            pack.load(slot, TrainingRequest(f"trial-{slot}", "thing", 0, ReferenceLatents(latents, latents + 1)))
        with pack.at_work():
            for _ in range(1 + STEPS):  # the first step also warms up
                started = time.perf_counter()
                pack.step()
                if base.device.type == "cuda":
                    torch.cuda.synchronize(base.device)
                seconds.append(time.perf_counter() - started)
    return PackTrial(size, min(seconds[1:]), peak.bytes or 0)
