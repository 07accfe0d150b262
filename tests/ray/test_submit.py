"""Whole runs with a real manifest, Ray, diffusion pipeline (tiny and untrained) and Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persres.core.errors import CatalogHeld, ManifestInvalid, StoreRefused
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.run.catalog_status import catalog_status
from persres.pipeline.run.summary import RunSummary

from ..support.tiny_runs import write_manifest

pytestmark = pytest.mark.timeout(900)  # every worker imports torch and diffusers, on whatever cores are free


def test_submit_does_what_is_missing_or_has_changed(submit, tmp_path):
    """First all rows, one of them broken; then none; then edited prompts, one concept more and one less."""
    first = submit(write_manifest(tmp_path, ["a", "b", "c", "bad"], broken="bad"), workers=2)
    assert (first.summary.rows, first.summary.committed, first.summary.current) == (4, 3, 0)
    (failure,) = first.summary.failed
    assert failure.concept_id == "bad" and failure.stage == "load" and failure.fix
    assert sorted(read_committed(submit.store)) == ["a", "b", "c"]
    stored = submit.store.read(RunPaths(first.summary.run_id).summary)
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


def test_invalid_manifest_starts_nothing(submit, tmp_path):
    pq.write_table(pa.table({"concept_id": ["a"]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestInvalid) as refused:
        submit(str(tmp_path / "manifest.parquet"))
    assert {problem.column for problem in refused.value.problems} == {"macro_class", "reference_images"}
    assert submit.store.list("") == []


def test_prompt_too_long_for_the_tokenizer_fails_its_concept(submit, tmp_path):
    manifest = write_manifest(tmp_path, ["a"], prompts=["a photo of a {concept} " + "on grass " * 20])
    finished = submit(manifest)
    (failure,) = finished.summary.failed
    assert "tokens" in failure.reason and finished.report, (
        "a run whose concepts all fail before training has a report too"
    )


def test_held_catalog_is_not_changed(submit, tmp_path):
    manifest = write_manifest(tmp_path, ["a"])
    with hold_lease(submit.store, "20200101T000000Z-000000", "somebody@elsewhere"), pytest.raises(CatalogHeld) as held:
        submit(manifest)
    assert "somebody@elsewhere" in str(held.value)
    assert read_committed(submit.store) == {}


def test_prune_forgets_what_the_manifest_no_longer_lists(submit, tmp_path):
    submit(write_manifest(tmp_path, ["a", "b", "c"]))
    manifest = write_manifest(tmp_path, ["a"])
    assert submit(manifest).report is None, "nothing is pruned by default"
    finished = submit(manifest, prune=True)
    assert (finished.pruned, finished.summary.current, finished.summary.removed) == (2, 1, 2)
    assert sorted(read_committed(submit.store)) == ["a"] and finished.report
    kept = [path for path in submit.store.list("") if path.endswith((".json", ".jsonl", ".html"))]
    assert not [path for path in kept if b'"b"' in submit.store.read(path)], "no document names it"
    assert submit(manifest, prune=True).report is None, "there is nothing left to prune"


def test_failed_run_records_incidents_and_error(submit, tmp_path, monkeypatch):
    from persres.jobs.driver import run_shards as driver

    def refuse(self, *arguments):
        self._observer.on_incident("something happened")
        raise StoreRefused("no space left on device", fix="make room")

    monkeypatch.setattr(driver._Driver, "_handle_returned", refuse)
    with pytest.raises(StoreRefused):
        submit(write_manifest(tmp_path, ["a", "b"]))
    monkeypatch.undo()
    (path,) = [path for path in submit.store.list("runs/") if path.endswith("failures.json")]
    failures = json.loads(submit.store.read(path))
    assert failures["incidents"] == ["something happened"] and "no space left" in failures["ended_by"]
    assert catalog_status(submit.store).holder is None


def test_interrupted_run_is_continued_by_the_next(submit, tmp_path, monkeypatch):
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
    assert catalog_status(submit.store).holder is None, "the lease is released"
    again = submit(manifest)
    assert (again.summary.committed, again.summary.current) == (5 - done, done)
