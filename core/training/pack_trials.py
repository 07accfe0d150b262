"""Trial packs, which measure how many concepts to train together on a device.

A GPU's name does not tell which pack fits its memory: other processes, the driver and the settings matter too. So packs
of 1, 2, 4 … concepts are trained for a few steps each, until memory ends or throughput stops growing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..base_model import BaseModel
from ..latents import ReferenceLatents
from .device import available_bytes, peak_memory, release_memory, synchronize
from .residual_training import is_out_of_memory
from .settings import TrainingSettings
from .training_pack import TrainingPack, TrainingRequest

MIN_SPEEDUP = 1.03
"""A pack twice as large is worth it if its throughput is at least this many times as high."""

MAX_MEMORY_SHARE = 0.9
"""The share of the free memory that a pack may need by the forecast; the allocator needs the rest."""

MAX_PACK_SIZE = 256
STEPS_PER_TRIAL = 2


@dataclass(frozen=True, slots=True)
class PackTrial:
    """The seconds per step and the peak memory, in bytes, of a pack of `pack_size` concepts."""

    pack_size: int
    seconds_per_step: float
    peak_bytes: int

    @property
    def concepts_per_second(self) -> float:
        """Throughput in concept-steps per second."""
        return self.pack_size / self.seconds_per_step


def choose_pack_size(trials: Sequence[PackTrial], concepts: int | None = None) -> int:
    """Return the smallest pack size whose throughput is within a factor of `MIN_SPEEDUP` of the best.

    Args:
        concepts: how many are trained in one go: the last pack of them is padded, which costs as much as a full one.
            None: any number of them.

    Raises:
        ValueError: `trials` is empty.
    """

    def useful_throughput(trial: PackTrial) -> float:
        if concepts is None:
            return trial.concepts_per_second
        return concepts / (math.ceil(concepts / trial.pack_size) * trial.seconds_per_step)

    best = max(map(useful_throughput, trials))
    return min(trial.pack_size for trial in trials if useful_throughput(trial) * MIN_SPEEDUP >= best)


def is_worth_doubling(trials: Sequence[PackTrial], free_bytes: int | None) -> bool:
    """Whether to try a pack twice as large as the last: throughput still grows, and by forecast it fits into memory.

    Memory is linear in the pack size, so the last two trials give the forecast. If `free_bytes` is None (unknown),
    throughput alone decides.
    """
    last = trials[-1]
    if last.pack_size >= MAX_PACK_SIZE:
        return False
    if len(trials) == 1:
        return free_bytes is None or 2 * last.peak_bytes <= MAX_MEMORY_SHARE * free_bytes
    before = trials[-2]
    if last.concepts_per_second < MIN_SPEEDUP * before.concepts_per_second:
        return False
    forecast = last.peak_bytes + 2 * (last.peak_bytes - before.peak_bytes)
    return free_bytes is None or forecast <= MAX_MEMORY_SHARE * free_bytes


def measure_packs(
    base: BaseModel,
    settings: TrainingSettings,
    *,
    most: int = MAX_PACK_SIZE,
    budget_seconds: float = 60.0,
    on_trial: Callable[[PackTrial], None] = lambda trial: None,
) -> list[PackTrial]:
    """Train packs of 1, 2, 4 … up to `most` synthetic concepts for `STEPS_PER_TRIAL` steps each.

    Ends when memory ends, when throughput stops growing, or when the next trial would exceed `budget_seconds`.

    Raises:
        RuntimeError: torch's out-of-memory error, if not even one concept fits.
    """
    trials: list[PackTrial] = []
    # On CUDA a trial's peak includes the frozen model, so its memory counts as free.
    free = available_bytes(base.device)
    if free is not None and base.device.type == "cuda":
        free += torch.cuda.memory_allocated(base.device)
    started, size = time.perf_counter(), 1
    while True:
        try:
            trial = _run_trial(base, settings, size)
        except RuntimeError as error:
            if not trials or not is_out_of_memory(error):
                raise
            break
        trials.append(trial)
        on_trial(trial)
        next_seconds = 2 * (STEPS_PER_TRIAL + 1) * trial.seconds_per_step
        if size >= most or not is_worth_doubling(trials, free):
            break
        if time.perf_counter() - started + next_seconds > budget_seconds:
            break
        size = min(2 * size, most)
    release_memory(base.device)
    return trials


def _run_trial(base: BaseModel, settings: TrainingSettings, size: int) -> PackTrial:
    side = base.resolution // base.pixels_per_latent
    latents = torch.zeros(1, base.latent_channels, side, side)
    seconds = []
    with peak_memory(base.device) as peak:
        pack = TrainingPack(base, settings, size)
        for slot in range(size):
            pack.load(slot, TrainingRequest(f"trial-{slot}", "thing", 0, ReferenceLatents(latents, latents + 1)))
        with pack.attached():
            for _ in range(1 + STEPS_PER_TRIAL):  # the first step is the warm-up
                started = time.perf_counter()
                pack.step()
                synchronize(base.device)
                seconds.append(time.perf_counter() - started)
    return PackTrial(size, min(seconds[1:]), peak.bytes or 0)
