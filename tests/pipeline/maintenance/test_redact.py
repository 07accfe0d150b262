from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.maintenance.redact import find_documents, redact_document

from ...support.catalog_factories import memory_store
from ...support.catalog_history import RUNS, write_documents


def without(path: str, document: object, *concept_ids: str):
    left = redact_document(path, json.dumps(document).encode(), concept_ids)
    return None if left is None else json.loads(left)


def test_redacted_plan_lists_the_others():
    plan = {"train": ["a", "b"], "render_only": [], "removed": ["c", "a"], "current": 3, "manifest": "s3://x/a.parquet"}
    assert without("plan.json", plan, "a") == {**plan, "train": ["b"], "removed": ["c"]}


def test_redacted_failures_and_incidents_do_not_name_the_concept():
    document = {
        "failures": [{"concept_id": "a", "reason": "gone"}, {"concept_id": "b", "reason": "not a mug"}],
        "incidents": ["worker was lost with a, b", "pack size reduced", "shard of b lost."],
    }
    left = without("failures.json", document, "a", "mug")
    assert left == {"failures": document["failures"][1:], "incidents": ["pack size reduced", "shard of b lost."]}
    assert without("failures.json", left, "b")["incidents"] == ["pack size reduced"]


def test_redacted_summary_still_adds_up():
    failed = [{"concept_id": name} for name in "abc"]
    summary = {"rows": 9, "committed": 4, "current": 2, "failed": failed}
    assert without("summary.json", summary, "a", "c", "x") == {**summary, "rows": 7, "failed": failed[1:2]}


def test_redacted_objects_lose_the_concepts_key():
    assert without("x.json", {"seconds": {"a": 1, "b": {"c": [["a"]]}}}, "a") == {"seconds": {"b": {"c": [[]]}}}


def test_redacted_log_loses_lines_about_the_concept_and_its_id_in_lists():
    events = [
        {"event": "shard_ended", "text": "shard s1: 2 concepts committed", "concepts": ["a", "b"]},
        {"event": "concept_failed", "concept_id": "a", "text": "concept a failed (load): gone"},
        {"event": "incident", "text": "concept a. is quarantined"},
        {"event": "a", "text": "about nobody", "a": 1},
    ]
    log = "".join(json.dumps(event) + "\n" for event in events) + '{"event": "cut o'
    store = memory_store()
    store.write(RunPaths("r").log, log.encode())
    assert dict(find_documents(store, {"a", "b", "c"})) == {"runs/r/log.jsonl": {"a", "b"}}
    left = redact_document("log.jsonl", log.encode(), ["a"])
    assert left is not None
    kept = [json.loads(line) for line in left.decode().splitlines()]
    assert kept == [{**events[0], "concepts": ["b"]}, events[3]]
    store.write(RunPaths("r").log, left)
    assert not dict(find_documents(store, {"a"}))


def test_document_that_is_no_json_is_removed():
    assert redact_document("report.html", b"<h3>a</h3>", ["a"]) is None
    assert redact_document("plan.json", b'{"train": ["a"', ["a"]) is None


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("<h3>mug-1</h3>", {"mug-1"}),
        ("done: mug-1, mug-2.", {"mug-1", "mug-2"}),
        ('<img alt="mug-1/lag-0-0.png">', {"mug-1"}),
        ("<h3>mug-12</h3> <h3>my.mug-1</h3>", set()),
        ('<img src="data:image/webp;base64,AAAA/mug1+mug1/x==">', set()),
    ],
)
def test_report_names_whole_ids_only_and_images_name_none(page, named):
    store = memory_store()
    store.write(RunPaths("r").report, page.encode())
    found = dict(find_documents(store, {"mug-1", "mug-2", "mug1"}))
    assert found == ({"runs/r/report.html": named} if named else {})


def test_find_documents_yields_reports_before_plans_and_no_specs():
    store = memory_store()
    for run in range(3):
        write_documents(store, run, names=("a", "b"), failed=("c",))
        store.write(RunPaths(RUNS[run]).spec, b"base_model: a\n")
    names = [path.rsplit("/", 1)[-1] for path, _ in find_documents(store, {"a"})]
    assert names == ["report.html"] * 3 + ["failures.json", "plan.json"] * 3
    assert {path.rsplit("/", 1)[-1] for path, found in find_documents(store, {"c"}) if found == {"c"}} == {
        "plan.json", "failures.json", "summary.json"
    }  # fmt: skip


ids = st.sampled_from(["a", "b", "mug", "mug-1", "x.y"])
values = st.recursive(
    st.one_of(st.integers(), st.none(), ids, st.lists(ids, max_size=3).map(", ".join)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(ids, st.just("k")), inner, max_size=3),
        st.fixed_dictionaries({"concept_id": ids, "reason": st.just("why")}),
    ),
    max_leaves=12,
)


@given(st.lists(values, max_size=5), st.sets(ids, min_size=1))
def test_redaction_is_complete_and_idempotent(items, unwanted):
    store = memory_store()
    path = RunPaths("r").plan
    store.write(path, json.dumps({"items": items}).encode())
    once = redact_document(path, store.read(path), unwanted)
    assert once is not None
    store.write(path, once)
    assert list(find_documents(store, unwanted)) == []
    assert redact_document(path, once, unwanted) == once
    store.delete(path)
