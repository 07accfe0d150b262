"""Stores of every kind, and what the tests of the benchmark share."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import s3fs

from persres.pipeline.catalog.store import CatalogStore

from ..support.catalog_factories import memory_store
from ..support.s3_server import BUCKET, S3Server, s3_server

if TYPE_CHECKING:
    from persres.core.base_model import BaseModel
    from persres.pipeline.benchmark.bench_plan import BenchPlan

    from ..support.bench_runs import WholeRun


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server without faults; its address and credentials are in the environment."""
    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield _s3_server
    _s3_server.faults.rule = lambda request: None
    _s3_server.faults.ignore_conditions = False
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_store(s3: S3Server) -> CatalogStore:
    """An empty catalog on the server."""
    return CatalogStore(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CatalogStore:
    """An empty catalog on a store of each kind."""
    match request.param:
        case "disk":
            return CatalogStore(str(tmp_path / "catalog"))
        case "s3":
            return request.getfixturevalue("s3_store")
        case _:
            return memory_store()


# -- the benchmark, which is imported only where it is used ------------------------------------------------------------


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    """A tiny base model of each shape."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def spriteworld() -> BaseModel:
    from persres.pipeline.benchmark.bench_plan import load_bench_model

    return load_bench_model("spriteworld", "cpu")


@pytest.fixture(scope="session")
def short_measurements() -> Iterator[None]:
    """Shorten what every measurement begins with: the device's peak, and the collection of garbage."""
    from persres.pipeline.benchmark import device_peak

    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_peak, "_SECONDS_PER_SHAPE", 0.02)
        patched.setattr(device_peak, "_SIDES", {"cpu": (256,)})
        yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def small_plan(short_measurements: None) -> BenchPlan:
    """A run of seconds on a tiny model: packs of 2, one round."""
    from ..support.bench_runs import SMALL_PLAN

    return SMALL_PLAN


@pytest.fixture(scope="session")
def whole_run(sdxl: BaseModel, small_plan: BenchPlan) -> WholeRun:
    """All rows of the small plan on the tiny XL model."""
    from ..support.bench_runs import run_whole_bench

    return run_whole_bench(sdxl, small_plan)
