"""Real workers with several shards in flight: neither overlaps nor a lost worker change the catalog."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from persres.core.errors import InvalidInput
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.jobs.driver import gpu_worker
from persres.jobs.driver.gpu_worker import worker_factory
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.run_shards import run_shards
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.personalize_shard import personalize_shard
from persres.pipeline.planning.fingerprint import fingerprint
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.planning.run_models import resolve_base_model, resolve_scorer
from persres.pipeline.run.summary import device_busy_share
from persres.pipeline.shard.personalizer import load_personalizer
from persres.pipeline.shard.stages import ShardStages
from persres.pipeline.spec.run_spec import RunSpec

from ..support.catalog_digest import catalog_digest
from ..support.catalog_factories import drawing, png
from ..support.recording_observer import RecordingObserver
from ..support.tiny_models import write_tiny_models

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(900)]

RUN = "20260101T000000Z-aaaaaa"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return RunSpec(
        **write_tiny_models(tmp_path_factory.mktemp("models")),
        training=TrainingSettings(iterations=30, batch_size=2, pack_size=2, train_identifier=True),
        sampling=SamplingSettings(steps=4, batch_size=3, variants=("base", "lag")),
    )


def shards(spec: RunSpec, count: int) -> list[Shard]:
    """Shards of three concepts, one of them with a concept that cannot be loaded."""

    def planned(name: str) -> PlannedConcept:
        data = b"no image" if name == "4-b" else png(drawing(name, 40))
        prompts = ("a {concept} on grass", "a {concept} in the snow")
        row = ManifestRow(0, name, "mug", (ReferenceSource(data=data),), prompts)
        return PlannedConcept(row, fingerprint(row, (str(data),), spec, "tiny", "tiny"))

    return [Shard.of("train", [planned(f"{number}-{letter}") for letter in "abc"]) for number in range(count)]


def test_worker_killed_with_shards_in_flight_does_not_change_the_catalog(spec, tmp_path: Path):
    base, scorer, work = resolve_base_model(spec), resolve_scorer(spec), shards(spec, 8)
    chaos, quiet = CatalogStore(str(tmp_path / "chaos")), CatalogStore(str(tmp_path / "quiet"))
    make = worker_factory(spec, base, scorer, catalog_uri=str(tmp_path / "chaos"), run_id=RUN, device="cpu")
    made, killed = [], []

    def make_worker():
        made.append(make())
        return made[-1]

    def kill_the_first(progress: RunProgress) -> None:
        if progress.committed and not killed:
            killed.append(made[0])
            ray.kill(made[0])

    observer = RecordingObserver(kill_the_first)
    outcome = run_shards(work, make_worker=make_worker, workers=2, observer=observer)
    assert killed and len(made) == 3 and outcome.incidents
    assert [failure.concept_id for failure in outcome.failures] == ["4-b"] and len(outcome.committed) == 23
    share = device_busy_share(outcome.seconds, outcome.ready_seconds)
    assert share is not None and 0 < share <= 1

    torch.set_num_threads(1)
    personalizer = load_personalizer(spec, base, scorer, "cpu", quiet)
    for shard in work:
        personalize_shard(personalizer, shard, spec, quiet, run_id=RUN, attempt="001", stages=ShardStages())
    assert catalog_digest(chaos) == catalog_digest(quiet)


def test_worker_of_another_version_is_rejected(spec, monkeypatch):
    make = partial(worker_factory, spec, resolve_base_model(spec), None, catalog_uri="memory://x", run_id=RUN)
    monkeypatch.setattr(gpu_worker, "METHOD_VERSION", -1)  # here, and not in the worker's process
    worker = make(device="cpu")()
    with pytest.raises(InvalidInput, match="is not the version that planned the run"):
        ray.get(worker.ready.remote())
    ray.kill(worker)
