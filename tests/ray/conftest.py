"""Fixtures of the tests that start Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.jobs.cluster.local_ray import embedded_ray
from persres.jobs.driver.progress import RunOutcome
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.spec.run_spec import RunSpec

from ..support.processes import command_line
from ..support.scripted_worker import run_scripted
from ..support.tiny_models import write_tiny_pipeline
from ..support.tiny_runs import LocalSubmit, write_manifest, write_run_spec


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray with four CPUs on the loopback interface, shared by all tests of a process."""
    with embedded_ray(4):
        yield


@pytest.fixture
def run(tmp_path: Path, local_ray: None) -> Callable[..., RunOutcome]:
    """Run the driver over shards with workers that do what the names of their concepts say."""
    return partial(run_scripted, tmp_path)


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A run of two training iterations, in shards of two concepts."""
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd2")
    return RunSpec(
        base_model=str(folder),
        prompts=("a photo of a {concept} on sand",),
        shard_size=2,
        training=TrainingSettings(iterations=2, batch_size=1, pack_size=2),
        sampling=SamplingSettings(steps=2, batch_size=2),
        references=ReferenceSettings(min_side=8),
    )


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    """The catalog of `submit` and `submit_command`."""
    return CatalogStore(str(tmp_path / "catalog"))


@pytest.fixture
def submit(store: CatalogStore, spec: RunSpec, local_ray: None) -> LocalSubmit:
    """Submit a manifest in this process."""
    return LocalSubmit(spec, store)


@pytest.fixture
def submit_command(tmp_path: Path, store: CatalogStore) -> list[str]:
    """The command line of a run of ten concepts c0 to c9, a second each, on one worker."""
    spec = write_run_spec(tmp_path, workers=1, recovery={"lease_seconds": 5, "grace_seconds": 60})
    manifest = write_manifest(tmp_path, [f"c{number}" for number in range(10)])
    return command_line("submit", manifest, "--spec", spec, "--catalog", store.uri, "--json")
