"""Profile a training step of a pack and denoising steps, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from ...core.base_model import BaseModel
from ...core.latents import encode_references
from ...core.training.device import synchronize
from ...core.training.training_pack import TrainingRequest
from .bench_plan import BenchPlan
from .device_peak import cpu_threads
from .workloads import MACRO_CLASS, QUICK_STEPS, OurTraining, TrainingJob, rendering_workloads

OPERATORS_SHOWN = 40
MAX_PROFILED_PACK = 8


def profile_steps(base: BaseModel, plan: BenchPlan) -> str:
    """Return two tables of torch's profiler: the second step of a pack, and LAG batches of two denoising steps."""
    with cpu_threads(plan.threads):
        return _profile(base, plan, min(plan.max_pack, MAX_PROFILED_PACK))


def _profile(base: BaseModel, plan: BenchPlan, pack_size: int) -> str:
    step = _SecondStep(base.device, pack_size)
    job = TrainingJob(base, plan.training)
    latents = encode_references(base, job.references)
    requests = [TrainingRequest(f"profile-{slot}", MACRO_CLASS, slot, latents) for slot in range(pack_size)]
    OurTraining(job, pack_size).train(requests, job.shortened(2), step.step_done)
    rendering = _profiler(base.device)
    with rendering_workloads(base, plan.sampling, plan.training.identifier_token) as images, rendering:
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
    """A profiler that records from the end of the first step to the end of the second."""

    device: torch.device
    pack_size: int
    profiler: profile = field(init=False)

    def __post_init__(self) -> None:
        self.profiler = _profiler(self.device)

    def step_done(self, done: int) -> None:
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
