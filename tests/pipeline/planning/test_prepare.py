"""Preparing a run: every row of the manifest is planned or failed, exactly once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
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
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import commit, memory_store, planned, shard_of
from ...support.image_host import ImageHost, Request, image_host
from ...support.tiny_models import write_tiny_pipeline

CHANGES = {
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
    """Six rows, each with an image."""
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


def catalog_holding(prepared: PreparedRun, **changes: str) -> CommittedConcepts:
    """A catalog with all planned concepts; `changes`: concept id -> the fingerprint that differs there."""
    store = memory_store()
    for one in prepared.planned:
        prints = replace(one.fingerprints, **{changes[one.concept_id]: "0" * 32} if one.concept_id in changes else {})
        commit(store, shard_of(planned(one.concept_id, training=prints.training, rendering=prints.rendering)))
    return read_committed(store)


def committed_of(prepared: PreparedRun) -> CommittedConcepts:
    """A catalog in which a run has committed all planned concepts."""
    store = memory_store()
    for one in prepared.planned:
        commit(store, shard_of(one))
    return read_committed(store)


@pytest.fixture
def host() -> Iterator[ImageHost]:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    with image_host(buffer.getvalue()) as host:
        yield host


def web_manifest(folder: Path, host: ImageHost, rows: int = 3, **changes: Any) -> str:
    images = [{"reference_images": [f"{host.address}/{number}.png", f"{number}.png"]} for number in range(rows)]
    return str(write_manifest(folder, [row(number, **{**images[number], **changes}) for number in range(rows)]))


def down(request: Request) -> None:
    request.send_status(503)


def test_current_concepts_stay_current_while_their_image_host_is_down(spec, tmp_path, host):
    quick = spec.model_copy(update={"references": spec.references.model_copy(update={"retry_seconds": 0.0})})
    committed = committed_of(prepare_run(web_manifest(tmp_path, host), quick))
    host.answers |= {f"/{number}.png": down for number in range(5)}

    def planned_with(spec: RunSpec, **changes: Any) -> tuple[list[str], list[str], list[str], list[str]]:
        prepared = prepare_run(web_manifest(tmp_path, host, 4, **changes), spec, committed)
        plan = prepared.plan(committed)
        failed = [failure.concept_id for failure in plan.failures]
        assert all("HTTP 503" in one.reason and host.address in one.reason and one.fix for one in plan.failures)
        assert len(prepared.warnings) == (len(failed) < 4)
        return sorted(plan.current), ids(plan.render_only), ids(plan.train), failed

    assert planned_with(quick) == (["c0", "c1", "c2"], [], [], ["c3"])
    assert planned_with(quick, prompts=["one {concept}"]) == ([], ["c0", "c1", "c2"], [], ["c3"])
    everything = ([], [], [], ["c0", "c1", "c2", "c3"])
    assert planned_with(quick, macro_class="cup") == everything
    assert planned_with(quick, seed=9) == everything
    assert planned_with(quick, reference_images=[f"{host.address}/0.png"]) == everything
    training = quick.training.model_copy(update={"iterations": 7})
    assert planned_with(quick.model_copy(update={"training": training})) == everything
    [warning] = prepare_run(web_manifest(tmp_path, host), quick, committed).warnings
    assert warning.startswith("references of 3 committed concepts could not be checked")
    assert "c0, c1, c2" in warning and "HTTP 503" in warning and "Fix: " in warning


@pytest.mark.parametrize("number", [401, 403, 404, 410])
def test_image_that_is_gone_or_forbidden_fails_its_concept_though_it_is_committed(spec, tmp_path, host, number):
    committed = committed_of(prepare_run(web_manifest(tmp_path, host), spec))
    host.answers["/1.png"] = lambda request: request.send_status(number)

    plan = prepare_run(web_manifest(tmp_path, host), spec, committed).plan(committed)

    assert (sorted(plan.current), [one.concept_id for one in plan.failures]) == (["c0", "c2"], ["c1"])
    assert f"HTTP {number}" in plan.failures[0].reason


def test_concept_of_an_earlier_version_fails_while_its_image_host_is_down(spec, tmp_path, host):
    """Its record does not say what was asked for."""
    quick = spec.model_copy(update={"references": spec.references.model_copy(update={"retry_seconds": 0.0})})
    committed = catalog_holding(prepare_run(web_manifest(tmp_path, host), quick))
    host.answers["/1.png"] = down
    plan = prepare_run(web_manifest(tmp_path, host), quick, committed).plan(committed)
    assert (sorted(plan.current), [one.concept_id for one in plan.failures]) == (["c0", "c2"], ["c1"])


def test_tags_that_change_with_every_request_leave_nothing_to_do(spec, tmp_path, host):
    tags = count()
    host.answers["/0.png"] = lambda request: request.send_picture(ETag=f'"{next(tags)}"')
    host.answers["/1.png"] = lambda request: request.send_picture(ETag='"steady"')
    committed = committed_of(prepare_run(web_manifest(tmp_path, host), spec))
    for _ in range(2):
        host.requests.clear()
        plan = prepare_run(web_manifest(tmp_path, host), spec, committed).plan(committed)
        assert sorted(plan.current) == ["c0", "c1", "c2"] and not plan.has_work
        assert host.methods("/1.png") == ["HEAD"], "a tag that is known is asked for once"
    host.picture += b"changed"
    plan = prepare_run(web_manifest(tmp_path, host), spec, committed).plan(committed)
    assert ids(plan.train) == ["c0", "c1", "c2"]


def ids(concepts: Iterable[PlannedConcept]) -> list[str]:
    return [one.concept_id for one in concepts]


@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=6))
def test_every_row_is_planned_or_failed_once(kinds, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    rows = [row(number, **CHANGES[kind]) for number, kind in enumerate(kinds)]
    counted = []
    prepared = prepare_run(
        str(write_manifest(folder, rows)), spec, on_digest=lambda done, total: counted.append((done, total))
    )
    valid = {one.concept_id for one in prepared.planned}
    failed = [failure.concept_id for failure in prepared.failures]
    assert valid == {f"c{number}" for number, kind in enumerate(kinds) if kind == "none"}
    assert sorted([*valid, *failed]) == sorted(one["concept_id"] for one in rows)
    assert all(failure.stage == "load" and failure.fix for failure in prepared.failures)
    assert [done for done, _ in counted] == list(range(1, len(counted) + 1))
    assert all(total == len(rows) for _, total in counted)
    assert prepared.plan(CommittedConcepts()).rows == len(rows)


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_plan_is_the_same_however_many_current_rows_are_kept(manifest, spec, monkeypatch, kept):
    whole = prepare_run(str(manifest), spec)
    committed = catalog_holding(whole, c1="training", c4="rendering")
    monkeypatch.setattr(module, "MAX_CURRENT_ROWS", kept)

    prepared = prepare_run(str(manifest), spec, committed)

    assert len(prepared.planned) == min(6, 2 + kept)
    assert sorted([*ids(prepared.planned), *prepared.current.ids]) == ids(whole.planned)
    plan = prepared.plan(committed)
    assert (ids(plan.train), ids(plan.render_only), sorted(plan.current)) == (["c1"], ["c4"], ["c0", "c2", "c3", "c5"])
    assert plan.train[0].committed == replace(committed["c1"], scores={}), "a warm start reads it"


def test_plan_uses_the_catalog_as_it_is_now(manifest, spec, monkeypatch):
    """Another run may have changed the catalog before this one got the lease."""
    monkeypatch.setattr(module, "MAX_CURRENT_ROWS", 0)
    whole = prepare_run(str(manifest), spec)
    prepared = prepare_run(str(manifest), spec, catalog_holding(whole, c1="training"))
    assert len(prepared.planned) == 1

    now = catalog_holding(whole, c3="rendering", c5="training")
    plan = prepared.plan(now)

    assert (ids(plan.train), ids(plan.render_only), sorted(plan.current)) == (["c5"], ["c3"], ["c0", "c1", "c2", "c4"])
    assert plan.train[0].row.reference_images[0].uri == str(manifest.parent / "5.png")
    assert ids(prepared.plan(CommittedConcepts()).train) == ids(whole.planned)
    (manifest.parent / "5.png").unlink()
    assert [failure.concept_id for failure in prepared.plan(now).failures] == ["c5"]


def test_manifest_that_changed_after_preparing_raises(manifest, spec, monkeypatch):
    monkeypatch.setattr(module, "MAX_CURRENT_ROWS", 0)
    prepared = prepare_run(str(manifest), spec, catalog_holding(prepare_run(str(manifest), spec)))
    write_manifest(manifest.parent, [row(number) for number in range(3)])
    with pytest.raises(InvalidInput, match=r"manifest has changed.*Fix: submit again"):
        prepared.plan(CommittedConcepts())


def test_embedded_images_of_current_rows_are_kept_within_a_limit(spec, tmp_path, monkeypatch):
    images = [{"bytes": (write_manifest(tmp_path, [row(0)]).parent / "0.png").read_bytes(), "path": None}]
    manifest = write_manifest(tmp_path, [row(n, reference_images=images) for n in range(4)], "manifest.parquet")
    committed = catalog_holding(prepare_run(str(manifest), spec))
    monkeypatch.setattr(module, "MAX_CURRENT_BYTES", 2 * len(images[0]["bytes"]))
    assert len(prepare_run(str(manifest), spec, committed).planned) == 2


@pytest.mark.parametrize("name", ["manifest.parquet", "manifest.jsonl"])
def test_invalid_manifest_raises_before_images_are_fetched(spec, tmp_path, name):
    counted = []
    manifest = write_manifest(tmp_path, [row(0), row(1, macro_class=""), row(0)], name)
    with pytest.raises(ManifestInvalid) as caught:
        prepare_run(str(manifest), spec, on_digest=lambda *count: counted.append(count))
    assert [(one.row, one.level) for one in caught.value.problems] == [(1, "concept"), (2, "manifest")]
    assert not counted
