"""Where the time of one packed training step and of one denoising step goes, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from ...core.base_model import BaseModel
from ...core.latents import encode_references
from ...core.training.training_pack import TrainingRequest
from .bench_plan import BenchPlan
from .contestants import MACRO_CLASS, QUICK_STEPS, OurTraining, TrainingJob, rendering_contestants
from .device_peak import synchronize, threads

OPERATORS_SHOWN = 40


LARGEST_PROFILED = 8


def profile_steps(base: BaseModel, plan: BenchPlan) -> str:
    """Two tables of torch's profiler: the second step of a pack, and LAG batches over two denoising steps."""
    with threads(plan.threads):
        return _profile(base, plan, min(plan.max_pack, LARGEST_PROFILED))


def _profile(base: BaseModel, plan: BenchPlan, pack_size: int) -> str:
    step = _SecondStep(base.device, pack_size)
    job = TrainingJob(base, plan.training)
    latents = encode_references(base, job.references)
    requests = [TrainingRequest(f"profile-{slot}", MACRO_CLASS, slot, latents) for slot in range(pack_size)]
    OurTraining(job, pack_size).train(requests, job.shortened(2), step.stepped)
    rendering = _profiler(base.device)
    with rendering_contestants(base, plan.sampling, plan.training.identifier_token) as images, rendering:
        next(one for one in images if one.name == "render_lag").seconds(QUICK_STEPS)
    return "\n".join(
        [
            f"one training step of {pack_size} concepts",
            _table(step.profiler, base.device),
            f"render_lag, {QUICK_STEPS} denoising steps of every batch",
            _table(rendering, base.device),
        ]
    )


@dataclass
class _SecondStep:
    """A profiler that is open from the end of the first step to the end of the second."""

    device: torch.device
    pack_size: int
    profiler: profile = field(init=False)

    def __post_init__(self) -> None:
        self.profiler = _profiler(self.device)

    def stepped(self, done: int) -> None:
        synchronize(self.device)
        if done == self.pack_size:
            self.profiler.start()
        elif done == 2 * self.pack_size:
            self.profiler.stop()


def _profiler(device: torch.device) -> profile:
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])])


def _table(profiler: profile, device: torch.device) -> str:
    sort_by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=sort_by, row_limit=OPERATORS_SHOWN, max_name_column_width=80)
