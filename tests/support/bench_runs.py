"""A benchmark run of seconds, on a tiny model."""

from __future__ import annotations

from dataclasses import dataclass, field

from persres.core.base_model import BaseModel
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.benchmark.bench import run_bench
from persres.pipeline.benchmark.bench_plan import BenchPlan
from persres.pipeline.benchmark.bench_result import BenchResult

SMALL_PLAN = BenchPlan(
    device="cpu",
    threads=1,
    max_pack=2,
    training=TrainingSettings(iterations=5, batch_size=2),
    sampling=SamplingSettings(steps=2, batch_size=4),
    iterations=2,
    rounds=1,
)


@dataclass(frozen=True)
class WholeRun:
    """All rows of a plan on a model, and the progress reported meanwhile."""

    result: BenchResult
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def flops(self) -> dict[str, float]:
        """The FLOPs of each row."""
        peak = self.result.machine["matmul_flops_per_second"]
        return {row.name: row.peak_share * row.seconds * peak for row in self.result.rows}


def run_whole_bench(base: BaseModel, plan: BenchPlan) -> WholeRun:
    progress: list[tuple[str, int, int]] = []
    result = run_bench(base, plan, lambda *update: progress.append(update))
    return WholeRun(result, progress)
