"""JSON objects of a catalog with odd content: every command ends in a message with the object and a fix, or goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.log import RunEvent

RUN, IMPOSSIBLE = "20261122T190501Z-3fa9c1", "20261399T250000Z-aaaaaa"

ODD = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "list": b"[]",
    "number": b"7",
    "string": b'"run"',
    "null": b"null",
    "empty": b"",
    "empty object": b"{}",
    "not UTF-8": b'{"run_id": "\xff\xfe"}',
    "surrogate": b'{"run_id": "\\ud800", "train": ["\\ud800"]}',
    "NaN": b'{"rows": NaN, "wall_seconds": NaN, "renewed_at": NaN}',
    "infinite": b'{"rows": 1e999, "wall_seconds": 1e999, "train": [], "render_only": [], "failed": [], "ttl_s": 1e999}',
    "huge": b'{"rows": ' + b"9" * 5000 + b"}",
    "wrong types": b'{"train": 1, "render_only": {}, "failed": "x", "run_id": [], "ended_by": 7, "owner": {}}',
    "wrong items": b'{"train": [[1]], "render_only": [], "failed": [{}], "failures": [7], "concepts": [1]}',
    "cut": b'{"train": ["a", "b',
}
ALWAYS_TRIED = {"nested", "list", "not UTF-8", "infinite", "wrong types"}
DOCUMENTS = {
    "plan": RunPaths(RUN).plan,
    "summary": RunPaths(RUN).summary,
    "failures": RunPaths(RUN).failures,
    "stop": RunPaths(RUN).stop_request,
    "log": RunPaths(RUN).log,
    "lease": "lease/00000009.json",
    "record": f"commits/{RUN}_train-1_001.json",
    "pack size": "pack_sizes/abc.json",
}
COMMANDS = [
    ["status", "CATALOG"],
    ["status", "CATALOG", "--json"],
    ["status", RUN, "--catalog", "CATALOG"],
    ["list", "--catalog", "CATALOG"],
    ["logs", RUN, "--catalog", "CATALOG"],
    ["stop", RUN, "--catalog", "CATALOG", "--no-wait"],
    ["report", "CATALOG", "--out", "PAGE"],
    ["plan", "MANIFEST", "--spec", "SPEC", "--catalog", "CATALOG"],
    ["gc", "CATALOG"],
    ["gc", "CATALOG", "--delete"],
    ["verify", "CATALOG"],
    ["forget", "CATALOG", "a"],
]
ENDS_WITH_THE_DOCUMENT = {"lease", "record"}
"""What says who holds a catalog and what it holds: a command that needs it ends. All else is about one run alone."""


@pytest.fixture
def catalog(demo_folder: Path) -> Path:
    store = CatalogStore(str(demo_folder / "manifest-catalog"))
    plan = {"manifest": "m.parquet", "train": ["a"], "render_only": [], "failed": ["b"]}
    store.write(RunPaths(RUN).plan, json.dumps(plan).encode())
    store.write(RunPaths(RUN).failures, json.dumps({"failures": [], "ended_by": "stopped run"}).encode())
    store.write(RunPaths(RUN).log, RunEvent("t", "info", "notice", RUN, "hello").to_json().encode())
    with hold_lease(store, "run-9", "ana@here"):
        pass
    return demo_folder / "manifest-catalog"


@pytest.mark.parametrize(
    "odd", [pytest.param(odd, marks=() if odd in ALWAYS_TRIED else pytest.mark.slow) for odd in ODD]
)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_odd_document_ends_in_a_message_or_is_passed_over(command, catalog, document, odd):
    path = DOCUMENTS[document]
    CatalogStore(str(catalog)).write(path, ODD[odd])
    places = {
        "CATALOG": str(catalog), "PAGE": str(catalog.parent / "page.html"), "SPEC": str(catalog.parent / "run.yaml"),
        "MANIFEST": str(catalog.parent / "manifest.parquet"),
    }  # fmt: skip
    for arguments in COMMANDS:
        code, out, err = command(*(places.get(one, one) for one in arguments))
        assert "--debug" not in err, f"{arguments}: an unexpected error: {err}"
        if code == 1 and "faults" not in out and "1 fault" not in out:
            assert "Fix: " in err and path in err, (arguments, err)
            assert document in ENDS_WITH_THE_DOCUMENT or arguments[0] == "forget", (arguments, err)
        else:
            assert code in (0, 1, 2), (arguments, code, err)
        if arguments[-1] == "--json" and code == 0:
            json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("odd", ["nested", "list", "cut", "wrong types"])
@pytest.mark.parametrize("document", ["plan", "summary", "failures"])
def test_damaged_document_of_a_run_is_a_warning_and_other_runs_are_listed(command, catalog, document, odd):
    store, other = CatalogStore(str(catalog)), "20261121T190501Z-000000"
    store.write(RunPaths(other).plan, b'{"train": [], "render_only": [], "failed": []}')
    store.write(DOCUMENTS[document], ODD[odd])
    code, out, err = command("list", "--catalog", catalog)
    assert code == 0 and RUN in out and other in out
    assert f"warning: {catalog}/{DOCUMENTS[document]} is damaged" in err and "Fix: " in err
    code, out, err = command("status", catalog)
    assert code == 0 and "2 concepts committed" in out and "is damaged" in err


@pytest.mark.parametrize("run_id", [IMPOSSIBLE, "99991231T235959Z-aaaaaa", "zzz"])
def test_impossible_run_id_ends_a_submit_with_its_name(command, demo_folder, run_id):
    store = CatalogStore(str(demo_folder / "other"))
    store.write(RunPaths(run_id).plan, b'{"train": [], "render_only": [], "failed": []}')
    for arguments in (["status", store.uri], ["list", "--catalog", store.uri], ["gc", store.uri, "--delete"]):
        code, _, err = command(*arguments)
        assert code == 0, err
    code, _, err = command("submit", demo_folder / "manifest.parquet", "--catalog", store.uri)
    assert code == 2 and f"runs/{run_id}/plan.json is of run {run_id}" in err and "Fix: remove it" in err


def test_run_id_that_is_no_time_is_refused(command, demo_folder):
    code, _, err = command("submit", demo_folder / "manifest.parquet", "--run-id", IMPOSSIBLE)
    assert code == 2 and "is not a run id" in err


@pytest.mark.parametrize("run_id", ["../../x", "a/b", "", "a b", "x" * 300])
def test_run_id_that_is_no_name_is_unknown(command, catalog, run_id):
    for arguments in (["status"], ["logs"], ["stop"]):
        code, _, err = command(*arguments, run_id, "--catalog", catalog)
        assert code == 2 and "is known here" in err
