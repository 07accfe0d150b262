"""The run of a benchmark: every row in turn, round after round, in one process with one number of threads.

Rounds are interleaved so that whatever else the machine does hits all rows alike, and a row's figure is the best of its
rounds. A first, short round warms everything up and finds how many concepts fit into memory together.
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
from ...core.training.device_memory import available_bytes, peak_memory, release_memory
from ...core.training.residual_training import is_out_of_memory
from .bench_plan import BenchPlan
from .bench_result import REFERENCE, BenchResult, Measured, compare
from .contestants import QUICK_STEPS, Contestant, MemoryEnded, OurTraining, rendering_contestants, training_contestants
from .device_peak import matmul_peak, threads

OnProgress = Callable[[str, int, int], None]


def run_bench(
    base: BaseModel, plan: BenchPlan, on_progress: OnProgress = lambda text, done, total: None
) -> BenchResult:
    """Measure all rows of a plan.

    Args:
        on_progress: called before every measurement with what it is, how many are done, and how many there will be.

    Raises:
        InvalidInput: a row of the plan does not exist, or peft is missing.
    """
    with threads(plan.threads), rendering_contestants(base, plan.sampling, plan.training.identifier_token) as images:
        training = training_contestants(base, plan.training, plan.pack_sizes)
        book = _Book(base, plan, _chosen([*training, *images], plan.rows), on_progress)
        book.warm_up()
        for _ in range(plan.rounds):
            book.measure_all()
        return book.result()


def _chosen(contestants: Sequence[Contestant], names: tuple[str, ...]) -> list[Contestant]:
    known = [one.name for one in contestants]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(f"there is no row {unknown[0]!r}", fix=f"choose from {', '.join(known)}")
    if not names:
        return list(contestants)
    references = {REFERENCE[one.unit] for one in contestants if one.name in names}
    return [one for one in contestants if one.name in references.union(names)]


@dataclass(eq=False)
class _Book:
    """The measurements of one run; rows that do not fit are struck off."""

    base: BaseModel
    plan: BenchPlan
    contestants: list[Contestant]
    on_progress: OnProgress
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    peak: float = 0.0
    notes: list[str] = field(default_factory=list)
    done: int = 0

    def warm_up(self) -> None:
        for contestant in list(self.contestants):
            if contestant not in self.contestants:
                continue
            if isinstance(contestant, OurTraining) and self._foreseeably_too_large(contestant):
                self._end_of_memory(contestant)
            else:
                self._run(contestant, QUICK_STEPS, "warming up")

    def measure_all(self) -> None:
        self.peak = max(self.peak, matmul_peak(self.base.device, self.base.dtype))
        for contestant in list(self.contestants):
            if contestant not in self.contestants:
                continue
            steps = self.plan.iterations if contestant.unit == "concept" else self.plan.sampling.steps
            seconds = self._run(contestant, steps, "measuring")
            if seconds is not None:
                self.seconds.setdefault(contestant.name, []).append(seconds)

    def _run(self, contestant: Contestant, steps: int, doing: str) -> float | None:
        self.on_progress(f"{doing} {contestant.name}", self.done, len(self.contestants) * (1 + self.plan.rounds))
        self.done += 1
        try:
            with peak_memory(self.base.device) as peak:
                seconds = contestant.seconds(steps)
        except MemoryEnded:
            assert isinstance(contestant, OurTraining)
            self._end_of_memory(contestant)
            return None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fix = "give a run spec with a smaller training.batch_size or sampling.batch_size (--spec)"
            raise PersresError(f"the device has too little memory for {contestant.name}", fix=fix) from error
        if peak.bytes is not None:
            self.bytes[contestant.name] = max(peak.bytes, self.bytes.get(contestant.name, 0))
        return seconds

    def _foreseeably_too_large(self, contestant: OurTraining) -> bool:
        """On a CPU, running out of memory would end the process. Twice the concepts take at most twice the memory."""
        half = self.bytes.get(OurTraining(contestant.job, contestant.pack_size // 2).name)
        free = available_bytes(self.base.device) if self.base.device.type == "cpu" else None
        return half is not None and free is not None and 2 * half > free

    def _end_of_memory(self, contestant: OurTraining) -> None:
        self.contestants = [
            one for one in self.contestants if not isinstance(one, OurTraining) or one.pack_size < contestant.pack_size
        ]
        self.notes.append(f"memory ends at {contestant.name}: it and larger packs were left out")
        release_memory(self.base.device)

    def result(self) -> BenchResult:
        measured = []
        for contestant in self.contestants:
            self.on_progress(f"counting the FLOPs of {contestant.name}", self.done, self.done)
            name = contestant.name
            best = min(self.seconds[name])
            measured.append(Measured(name, contestant.unit, best, contestant.flops(), self.bytes.get(name)))
        return BenchResult(self._machine(), compare(measured, self.peak), (*self.notes, *self._how()))

    def _how(self) -> Iterator[str]:
        plan = self.plan
        yield (
            f"training: {plan.iterations} steps measured, scaled to {plan.training.iterations} iterations of batch "
            f"{plan.training.batch_size}; set-up and encoding counted once a concept"
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
    """Such as "NVIDIA H100 80GB HBM3", or the CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
