"""Preparing a run: every row of the manifest ends up planned or failed, once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persres.core.errors import InvalidInput, ManifestInvalid
from persres.pipeline.catalog.committed import CommittedConcepts
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.planning import prepare as module
from persres.pipeline.planning.plan import PlannedConcept
from persres.pipeline.planning.prepare import PreparedRun, prepare_run
from persres.pipeline.references.images import ReferenceSettings
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_samples import commit, memory_store, planned, shard_of
from ...support.tiny_models import write_tiny_pipeline

FAULTS = {
    "none": {},
    "missing": {"reference_images": ["gone.png"]},
    "empty": {"reference_images": []},
    "no placeholder": {"prompts": ["a photo"]},
    "too long": {"prompts": ["a photo of a {concept} " + "on sand " * 30]},
    "no class": {"macro_class": ""},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd1")
    return RunSpec(base_model=str(folder), references=ReferenceSettings(min_side=8))


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Six rows with images of their own."""
    return write_manifest(tmp_path, [row(number) for number in range(6)])


def row(number: int, **changes: Any) -> dict[str, Any]:
    good = {"macro_class": "mug", "reference_images": [f"{number}.png"], "prompts": ["a {concept}"]}
    return {"concept_id": f"c{number}", **good, **changes}


def write_manifest(folder: Path, rows: list[dict[str, Any]], name: str = "manifest.jsonl") -> Path:
    for number in range(len(rows)):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(folder / f"{number}.png")
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(one) for one in rows))
    return path


def held(prepared: PreparedRun, **changes: str) -> CommittedConcepts:
    """A catalog that holds all planned concepts, some of them under another training or rendering fingerprint."""
    store = memory_store()
    for one in prepared.planned:
        prints = replace(one.fingerprints, **{changes[one.concept_id]: "0" * 32} if one.concept_id in changes else {})
        commit(store, shard_of(planned(one.concept_id, training=prints.training, rendering=prints.rendering)))
    return read_committed(store)


def ids(concepts: Iterable[PlannedConcept]) -> list[str]:
    return [one.concept_id for one in concepts]


@settings(max_examples=25)
@given(faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6))
def test_every_row_is_planned_or_failed_once(faults, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    rows = [row(number, **FAULTS[fault]) for number, fault in enumerate(faults)]
    counted = []
    prepared = prepare_run(
        str(write_manifest(folder, rows)), spec, on_digest=lambda done, total: counted.append((done, total))
    )
    sound = {one.concept_id for one in prepared.planned}
    failed = [failure.concept_id for failure in prepared.failures]
    assert sound == {f"c{number}" for number, fault in enumerate(faults) if fault == "none"}
    assert sorted([*sound, *failed]) == sorted(one["concept_id"] for one in rows)
    assert all(failure.stage == "load" and failure.fix for failure in prepared.failures)
    assert [done for done, _ in counted] == list(range(1, len(counted) + 1))
    assert all(total == len(rows) for _, total in counted)
    assert prepared.plan(CommittedConcepts()).rows == len(rows)


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_rows_that_are_current_need_not_be_kept_and_are_planned_all_the_same(manifest, spec, monkeypatch, kept):
    whole = prepare_run(str(manifest), spec)
    committed = held(whole, c1="training", c4="rendering")
    monkeypatch.setattr(module, "CURRENT_ROWS_KEPT", kept)

    prepared = prepare_run(str(manifest), spec, committed)

    assert len(prepared.planned) == min(6, 2 + kept)
    assert sorted([*ids(prepared.planned), *prepared.current.ids]) == ids(whole.planned)
    plan = prepared.plan(committed)
    assert (ids(plan.train), ids(plan.render_only), sorted(plan.current)) == (["c1"], ["c4"], ["c0", "c2", "c3", "c5"])
    assert plan.train[0].committed == replace(committed["c1"], scores={}), "a warm start reads it"


def test_a_catalog_that_changed_after_preparing_is_planned_as_it_is_now(manifest, spec, monkeypatch):
    """Another run may have rendered current concepts anew, or done some of the work, until this one got the lease."""
    monkeypatch.setattr(module, "CURRENT_ROWS_KEPT", 0)
    whole = prepare_run(str(manifest), spec)
    prepared = prepare_run(str(manifest), spec, held(whole, c1="training"))
    assert len(prepared.planned) == 1

    now = held(whole, c3="rendering", c5="training")
    plan = prepared.plan(now)

    assert (ids(plan.train), ids(plan.render_only), sorted(plan.current)) == (["c5"], ["c3"], ["c0", "c1", "c2", "c4"])
    assert plan.train[0].row.reference_images[0].uri == str(manifest.parent / "5.png")
    assert ids(prepared.plan(CommittedConcepts()).train) == ids(whole.planned)
    (manifest.parent / "5.png").unlink()
    assert [failure.concept_id for failure in prepared.plan(now).failures] == ["c5"]


def test_a_manifest_that_changed_meanwhile_is_not_mixed_with_what_it_was(manifest, spec, monkeypatch):
    monkeypatch.setattr(module, "CURRENT_ROWS_KEPT", 0)
    prepared = prepare_run(str(manifest), spec, held(prepare_run(str(manifest), spec)))
    write_manifest(manifest.parent, [row(number) for number in range(3)])
    with pytest.raises(InvalidInput, match=r"manifest has changed.*Fix: submit again"):
        prepared.plan(CommittedConcepts())


def test_images_inside_the_manifest_are_kept_within_bounds(spec, tmp_path, monkeypatch):
    images = [{"bytes": (write_manifest(tmp_path, [row(0)]).parent / "0.png").read_bytes(), "path": None}]
    manifest = write_manifest(tmp_path, [row(n, reference_images=images) for n in range(4)], "manifest.parquet")
    committed = held(prepare_run(str(manifest), spec))
    monkeypatch.setattr(module, "CURRENT_BYTES_KEPT", 2 * len(images[0]["bytes"]))
    assert len(prepare_run(str(manifest), spec, committed).planned) == 2


@pytest.mark.parametrize("name", ["manifest.parquet", "manifest.jsonl"])
def test_a_manifest_that_cannot_be_used_is_refused_before_anything_is_fetched(spec, tmp_path, name):
    counted = []
    manifest = write_manifest(tmp_path, [row(0), row(1, macro_class=""), row(0)], name)
    with pytest.raises(ManifestInvalid) as caught:
        prepare_run(str(manifest), spec, on_digest=lambda *count: counted.append(count))
    assert [(one.row, one.level) for one in caught.value.problems] == [(1, "concept"), (2, "manifest")]
    assert not counted
