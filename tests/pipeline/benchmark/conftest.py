"""Tiny base models of all shapes, the spriteworld, and one whole run, for all tests of the benchmark."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.benchmark import device_peak
from persres.pipeline.benchmark.bench import run_bench
from persres.pipeline.benchmark.bench_plan import BenchPlan, load_bench_model
from persres.pipeline.benchmark.bench_result import BenchResult

from ...support.tiny_models import load_tiny, write_tiny_pipeline


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def little_to_collect() -> Iterator[None]:
    """Every measurement begins by collecting garbage; here the libraries' own objects would be most of that work."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def a_quick_look_at_the_peak() -> Iterator[None]:
    """Two seconds of matrix products a run would be most of a test."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_peak, "_SECONDS_A_SHAPE", 0.02)
        patched.setattr(device_peak, "_SIDES", {"cpu": (256,)})
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("sd1"), "sd1")


@pytest.fixture(scope="session")
def sd1(tiny_folder: Path) -> BaseModel:
    return load_tiny(tiny_folder)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_tiny(write_tiny_pipeline(tmp_path_factory.mktemp("sd2"), "sd2"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("sdxl"), "sdxl")


@pytest.fixture(scope="session")
def sdxl(sdxl_folder: Path) -> BaseModel:
    return load_tiny(sdxl_folder)


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def spriteworld() -> BaseModel:
    return load_bench_model("spriteworld", "cpu")


@pytest.fixture(scope="session")
def small_plan() -> BenchPlan:
    """A run of seconds on a tiny model: packs of 2, one round."""
    return BenchPlan(
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
    """All rows of the small plan on the tiny XL model, and what was told meanwhile."""

    result: BenchResult
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    def flops(self) -> dict[str, float]:
        peak = self.result.machine["matmul_flops_per_second"]
        return {row.name: row.peak_share * row.seconds * peak for row in self.result.rows}


@pytest.fixture(scope="session")
def whole_run(sdxl: BaseModel, small_plan: BenchPlan, a_quick_look_at_the_peak: None) -> WholeRun:
    progress: list[tuple[str, int, int]] = []
    result = run_bench(sdxl, small_plan, lambda *told: progress.append(told))
    return WholeRun(result, progress)
