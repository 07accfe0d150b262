"""A whole run with the real thing throughout: manifest, Ray, a real (tiny, untrained) diffusion pipeline, Parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from persres.core.errors import CatalogHeld, ManifestInvalid, StoreRefused
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.jobs.submit import FinishedRun, WhereToRun, submit_local
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.references.images import ReferenceSettings
from persres.pipeline.run.status import catalog_status
from persres.pipeline.run.summary import RunSummary
from persres.pipeline.spec.run_spec import RunSpec

from ..support.tiny_models import write_tiny_pipeline

pytestmark = pytest.mark.timeout(900)  # every worker imports torch and diffusers, on whatever cores are free

PROMPTS = ["a photo of a {concept} on grass"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd2")
    return RunSpec(
        base_model=str(folder),
        prompts=("a photo of a {concept} on sand",),
        shard_size=2,
        training=TrainingSettings(iterations=2, batch_size=1, pack_size=2),
        sampling=SamplingSettings(steps=2, batch_size=2),
        references=ReferenceSettings(min_side=8),
    )


def write_manifest(folder: Path, names: list[str], prompts: list[str] | None = None, broken: str | None = None) -> str:
    """One reference a concept; the picture follows from the name, `broken`'s is no picture."""
    rows = []
    for name in names:
        path = folder / f"{name}.png"
        rng = np.random.default_rng(sum(name.encode()))
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        if name == broken:
            path.write_bytes(b"\x89PNG and then nothing")
        row_prompts = prompts if prompts is not None else PROMPTS
        rows.append({"concept_id": name, "macro_class": "mug", "reference_images": [path.name], "prompts": row_prompts})
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return str(folder / "manifest.parquet")


@pytest.fixture
def submit(tmp_path, spec, local_ray):
    shown = io.StringIO()

    def run(manifest: str, workers: int = 1, **options) -> FinishedRun:
        console, where = Console(file=shown, width=200), WhereToRun(workers)
        return submit_local(manifest, spec, str(tmp_path / "catalog"), where=where, console=console, **options)

    run.shown = shown  # type: ignore[attr-defined]
    run.store = CatalogStore(str(tmp_path / "catalog"))  # type: ignore[attr-defined]
    return run


def test_a_run_and_its_refreshes(submit, tmp_path):
    """First everything, with a broken row; then nothing; then edited prompts, a concept more and one less."""
    first = submit(write_manifest(tmp_path, ["a", "b", "c", "bad"], broken="bad"), workers=2)
    assert (first.summary.rows, first.summary.committed, first.summary.current) == (4, 3, 0)
    (failure,) = first.summary.failed
    assert failure.concept_id == "bad" and failure.stage == "load" and failure.fix
    assert sorted(read_committed(submit.store)) == ["a", "b", "c"]
    stored = submit.store.read(submit.store.run_file(first.summary.run_id, "summary.json"))
    assert RunSummary.from_json(stored) == first.summary
    assert first.report and "bad" in Path(first.report).read_text()
    folder = f"runs/{first.summary.run_id}"
    documents = [path.removeprefix(f"{folder}/") for path in submit.store.list(folder)]
    assert documents == ["failures.json", "log.jsonl", "plan.json", "report.html", "spec.yaml", "summary.json"]
    plan = json.loads(submit.store.read(f"{folder}/plan.json"))
    assert plan["train"] == ["a", "b", "c", "bad"] and plan["failed"] == []

    write_manifest(tmp_path, ["a", "b", "c"])
    before = submit.store.list("")
    second = submit(str(tmp_path / "manifest.parquet"))
    assert (second.summary.committed, second.summary.current, second.report) == (0, 3, None)
    assert submit.store.list("") == before, "a run with nothing to do writes nothing"

    residual_files = {name: held.residual_file for name, held in read_committed(submit.store).items()}
    third = submit(write_manifest(tmp_path, ["a", "b", "d"], prompts=["a {concept} in the snow"]))
    assert (third.summary.committed, third.summary.current, third.summary.removed) == (3, 0, 1)
    now = {name: held.residual_file for name, held in read_committed(submit.store).items()}
    assert now == residual_files | {"d": now["d"]}, "an edited prompt trains nothing again"

    status = catalog_status(submit.store)
    assert (status.concepts, status.runs, status.holder) == (4, 2, None)
    assert status.latest and status.latest.ended and status.latest.left == 0 and status.latest.done == 3


def test_a_manifest_that_cannot_be_trusted_starts_nothing(submit, tmp_path):
    pq.write_table(pa.table({"concept_id": ["a"]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestInvalid) as refused:
        submit(str(tmp_path / "manifest.parquet"))
    assert {problem.column for problem in refused.value.problems} == {"macro_class", "reference_images"}
    assert submit.store.list("") == []


def test_a_prompt_too_long_for_the_tokenizer_fails_its_concept_alone(submit, tmp_path):
    manifest = write_manifest(tmp_path, ["a"], prompts=["a photo of a {concept} " + "on grass " * 20])
    finished = submit(manifest)
    (failure,) = finished.summary.failed
    assert "tokens" in failure.reason and finished.report, "a run in which all concepts fail early has a report too"


def test_a_catalog_in_use_is_left_alone(submit, tmp_path):
    manifest = write_manifest(tmp_path, ["a"])
    with hold_lease(submit.store, "20200101T000000Z-000000", "somebody@elsewhere"), pytest.raises(CatalogHeld) as held:
        submit(manifest)
    assert "somebody@elsewhere" in str(held.value)
    assert read_committed(submit.store) == {}


def test_prune_forgets_what_the_manifest_no_longer_lists(submit, tmp_path):
    submit(write_manifest(tmp_path, ["a", "b", "c"]))
    manifest = write_manifest(tmp_path, ["a"])
    assert submit(manifest).report is None, "without being asked it does nothing"
    finished = submit(manifest, prune=True)
    assert (finished.pruned, finished.summary.current, finished.summary.removed) == (2, 1, 2)
    assert sorted(read_committed(submit.store)) == ["a"] and finished.report
    kept = [path for path in submit.store.list("") if path.endswith((".json", ".jsonl", ".html"))]
    assert not [path for path in kept if b'"b"' in submit.store.read(path)], "no document names it"
    assert submit(manifest, prune=True).report is None, "there is nothing left to prune"


def test_a_run_that_cannot_go_on_leaves_word_of_it(submit, tmp_path, monkeypatch):
    from persres.jobs.driver import run_shards as driver

    def refuse(self, *arguments):
        self.tell("something happened")
        raise StoreRefused("no space left on device", fix="make room")

    monkeypatch.setattr(driver._Driver, "_succeeded", refuse)
    with pytest.raises(StoreRefused):
        submit(write_manifest(tmp_path, ["a", "b"]))
    monkeypatch.undo()
    (path,) = [path for path in submit.store.list("runs/") if path.endswith("failures.json")]
    told = json.loads(submit.store.read(path))
    assert told["incidents"] == ["something happened"] and "no space left" in told["ended_by"]
    assert catalog_status(submit.store).holder is None


def test_an_interrupted_run_says_how_to_go_on_and_does(submit, tmp_path, monkeypatch):
    from persres.jobs.driver import run_shards as driver
    from persres.jobs.submit import RunStopped

    manifest = write_manifest(tmp_path, ["a", "b", "c", "d", "e"])
    original = driver.ShardQueue.finished

    def finished_then_stop(self, *arguments):
        original(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.ShardQueue, "finished", finished_then_stop)
    with pytest.raises(RunStopped, match="of 5 concepts done") as stopped:
        submit(manifest)
    assert stopped.value.exit_code == 130 and "submit again" in str(stopped.value)
    monkeypatch.undo()
    done = len(read_committed(submit.store))
    assert done >= 1
    assert catalog_status(submit.store).holder is None, "the lease is given back"
    again = submit(manifest)
    assert (again.summary.committed, again.summary.current) == (5 - done, done)
