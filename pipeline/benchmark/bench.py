"""The measurement of a benchmark: every row in turn, round after round, in one process.

Rounds are interleaved, so that other work on the machine affects all rows alike, and a row's seconds are the best of
its rounds. A first, short round is the warm-up, and finds the largest pack that fits into memory.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...core.base_model import BaseModel
from ...core.errors import InvalidInput, PersresError
from ...core.training.device import available_bytes, peak_memory, release_memory
from ...core.training.residual_training import is_out_of_memory
from .bench_plan import BenchPlan
from .bench_result import REFERENCE, BenchResult, Measurement, compare
from .device_peak import cpu_threads, matmul_peak
from .workloads import QUICK_STEPS, OurTraining, PackTooLarge, Workload, rendering_workloads, training_workloads

OnProgress = Callable[[str, int, int], None]


def run_bench(
    base: BaseModel, plan: BenchPlan, on_progress: OnProgress = lambda text, done, total: None
) -> BenchResult:
    """Measure all rows of a plan.

    Args:
        on_progress: called before every measurement with its description, the number of measurements done, and the
            number of all measurements.

    Raises:
        InvalidInput: a row of the plan does not exist, or peft is not installed.
        PersresError: the device has too little memory for a row other than a pack.
    """
    with cpu_threads(plan.threads), rendering_workloads(base, plan.sampling, plan.training.identifier_token) as images:
        training = training_workloads(base, plan.training, plan.pack_sizes)
        measurements = _Measurements(base, plan, _select([*training, *images], plan.rows), on_progress)
        measurements.warm_up()
        for _ in range(plan.rounds):
            measurements.measure_all()
        return measurements.result()


def _select(workloads: Sequence[Workload], names: tuple[str, ...]) -> list[Workload]:
    """Return the workloads with these names and the peers they are compared with; all, if there are no names."""
    known = [one.name for one in workloads]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(f"there is no row {unknown[0]!r}", fix=f"choose from {', '.join(known)}")
    if not names:
        return list(workloads)
    references = {REFERENCE[one.unit] for one in workloads if one.name in names}
    return [one for one in workloads if one.name in references.union(names)]


@dataclass(eq=False)
class _Measurements:
    """The measurements of one run. Packs that do not fit into memory are removed from `workloads`."""

    base: BaseModel
    plan: BenchPlan
    workloads: list[Workload]
    on_progress: OnProgress
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    peak: float = 0.0
    notes: list[str] = field(default_factory=list)
    done: int = 0

    def warm_up(self) -> None:
        for workload in list(self.workloads):
            if workload not in self.workloads:
                continue
            if isinstance(workload, OurTraining) and self._would_not_fit(workload):
                self._remove_packs_from(workload)
            else:
                self._measure(workload, QUICK_STEPS, "warming up")

    def measure_all(self) -> None:
        self.peak = max(self.peak, matmul_peak(self.base.device, self.base.dtype))
        for workload in list(self.workloads):
            if workload not in self.workloads:
                continue
            steps = self.plan.iterations if workload.unit == "concept" else self.plan.sampling.steps
            seconds = self._measure(workload, steps, "measuring")
            if seconds is not None:
                self.seconds.setdefault(workload.name, []).append(seconds)

    def _measure(self, workload: Workload, steps: int, activity: str) -> float | None:
        """Execute a workload. Returns its seconds, or None if it is a pack that does not fit."""
        self.on_progress(f"{activity} {workload.name}", self.done, len(self.workloads) * (1 + self.plan.rounds))
        self.done += 1
        try:
            with peak_memory(self.base.device) as peak:
                seconds = workload.seconds(steps)
        except PackTooLarge:
            assert isinstance(workload, OurTraining)
            self._remove_packs_from(workload)
            return None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fix = "give a run spec with a smaller training.batch_size or sampling.batch_size (--spec)"
            raise PersresError(f"the device has too little memory for {workload.name}", fix=fix) from error
        if peak.bytes is not None:
            self.bytes[workload.name] = max(peak.bytes, self.bytes.get(workload.name, 0))
        return seconds

    def _would_not_fit(self, workload: OurTraining) -> bool:
        """Whether a pack would not fit by forecast: twice the concepts need at most twice the memory.

        Only on a CPU, where running out of memory would end the process.
        """
        half = self.bytes.get(OurTraining(workload.job, workload.pack_size // 2).name)
        free = available_bytes(self.base.device) if self.base.device.type == "cpu" else None
        return half is not None and free is not None and 2 * half > free

    def _remove_packs_from(self, workload: OurTraining) -> None:
        """Remove this pack and the larger ones."""
        self.workloads = [
            one for one in self.workloads if not isinstance(one, OurTraining) or one.pack_size < workload.pack_size
        ]
        self.notes.append(f"memory ends at {workload.name}: it and larger packs were left out")
        release_memory(self.base.device)

    def result(self) -> BenchResult:
        measurements = []
        for workload in self.workloads:
            self.on_progress(f"counting the FLOPs of {workload.name}", self.done, self.done)
            name = workload.name
            best = min(self.seconds[name])
            measurements.append(Measurement(name, workload.unit, best, workload.flops(), self.bytes.get(name)))
        return BenchResult(self._machine(), compare(measurements, self.peak), (*self.notes, *self._method_notes()))

    def _method_notes(self) -> Iterator[str]:
        plan = self.plan
        yield (
            f"training: {plan.iterations} steps measured, scaled to {plan.training.iterations} iterations of batch "
            f"{plan.training.batch_size}; set-up and encoding counted once per concept"
        )
        sampling = plan.sampling
        yield (
            f"rendering: {sampling.steps} steps of {sampling.scheduler}, guidance {sampling.guidance_scale:g}, "
            f"batches of {sampling.batch_size}; the peer's batches are its prompt sets"
        )
        spread = max(max(rounds) / min(rounds) for rounds in self.seconds.values()) - 1
        yield (
            f"seconds are the best of {plan.rounds} interleaved rounds, in which a row varied by up to {spread:.0%}; "
            f"memory: {_MEMORY[self.base.device.type]}"
        )

    def _machine(self) -> dict[str, Any]:
        base, plan = self.base, self.plan
        return {
            "device": device_name(base.device),
            "threads": plan.threads,
            "torch": torch.__version__,
            "model": base.name,
            "dtype": str(base.dtype).removeprefix("torch."),
            "matmul_flops_per_second": self.peak,
            "peak_bytes_are": _MEMORY[base.device.type],
            "iterations_measured": plan.iterations,
            "rounds": plan.rounds,
            "training": plan.training.model_dump(mode="json"),
            "sampling": plan.sampling.model_dump(mode="json"),
            "notes": list(self.notes),
        }


_MEMORY = {
    "cpu": "growth of resident memory at its peak, without the model",
    "cuda": "torch.cuda.max_memory_allocated, with the model",
}


def device_name(device: torch.device) -> str:
    """Return the device's name, such as "NVIDIA H100 80GB HBM3", or the CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
