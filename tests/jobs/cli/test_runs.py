"""The commands `list`, `status RUN`, `logs` and `stop` with a catalog alone. With a cluster: tests/ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.run_status import STOPPED_PREFIX
from persres.pipeline.run.stop_file import watch_stop_file
from persres.pipeline.run.summary import RunSummary

from ...support.catalog_factories import commit, planned, shard_of

FIRST, SECOND, THIRD = "20261121T030000Z-aaaaaa", "20261122T030000Z-bbbbbb", "20261123T030000Z-cccccc"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    """Three runs: one ended, one was stopped, and one has written only its plan."""
    store = CatalogStore(str(tmp_path / "catalog"))
    for run_id in (FIRST, SECOND, THIRD):
        plan = {"manifest": "s3://b/m.parquet", "train": ["a", "b"], "render_only": [], "failed": []}
        store.write(RunPaths(run_id).plan, json.dumps(plan).encode())
    summary = RunSummary(
        FIRST, rows=2, committed=1, failed=(ConceptFailure("b", "train", "NaN"),), current=0, removed=0
    )
    store.write(RunPaths(FIRST).summary, summary.to_json())
    commit(store, shard_of(planned("a")), run_id=FIRST)
    ended_by = {"ended_by": f"{STOPPED_PREFIX} {SECOND} with 0 of 2 concepts done and committed"}
    store.write(RunPaths(SECOND).failures, json.dumps(ended_by).encode())
    return store


def test_list_shows_the_newest_run_first_with_its_state(command, store):
    code, out, err = command("list", "--catalog", store.uri)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [THIRD, SECOND, FIRST]
    assert "lost" in lines[0] and "stopped" in lines[1] and "1 done, 1 failed of 2" in lines[2]
    code, out, _ = command("list", "--catalog", store.uri, "--json", "--limit", 1)
    assert [(run["run_id"], run["state"], run["done"]) for run in json.loads(out)] == [(THIRD, "lost", 0)]


def test_status_of_one_run(command, store):
    code, out, _ = command("status", FIRST, "--catalog", store.uri)
    assert code == 0 and f"run {FIRST}: ended" in out and "failed: b (train): NaN" in out
    code, out, _ = command("status", SECOND, "--catalog", store.uri, "--json")
    result = json.loads(out)
    assert (result["state"], result["left"], result["on_cluster"]) == ("stopped", 2, None)


def test_status_of_the_catalog_shows_the_latest_run(command, store):
    code, out, _ = command("status", store.uri)
    assert code == 0 and f"latest run {THIRD}" in out and "(lost: submit again to continue)" in out


def test_list_falls_back_to_the_catalog_without_the_cluster(command, store):
    code, out, err = command("list", "--catalog", store.uri, "--address", NOBODY)
    assert code == 0 and FIRST in out and "asking the catalog alone" in err
    code, _, err = command("list", "--address", NOBODY)
    assert code == 2 and "no Ray cluster answers" in err


def test_ray_address_is_used_if_it_is_a_job_servers(command, store, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    code, _, err = command("status", FIRST)
    assert code == 2 and f"no Ray cluster answers at {NOBODY}" in err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    code, _, err = command("status", FIRST)
    assert code == 2 and "neither is named" in err
    code, _, err = command("status", FIRST, "--address", "127.0.0.1:6379")
    assert code == 2 and "not the address of a Ray job server" in err


@pytest.mark.parametrize("arguments", [("status",), ("logs",), ("stop",), ("stop", "--no-wait")])
def test_unknown_run_is_refused_with_the_nearest_ids(command, store, arguments):
    code, out, err = command(arguments[0], SECOND[:-1] + "0", *arguments[1:], "--catalog", store.uri)
    assert (code, out) == (2, "") and "is known here" in err and SECOND in err
    assert not store.exists(f"runs/{SECOND[:-1]}0/stop.json")
    code, _, err = command(arguments[0], "cccc", "--catalog", store.uri)
    assert code == 2 and THIRD in err and FIRST not in err, "a part of an id is near it"


def test_stop_of_a_run_that_is_over_does_nothing(command, store):
    code, out, _ = command("stop", FIRST, "--catalog", store.uri)
    assert code == 0 and f"run {FIRST} is over already: ended" in out
    assert not store.exists(RunPaths(FIRST).stop_request)


def test_stop_writes_a_request_and_waits_until_the_run_has_stopped(command, store):
    def stop(_: object) -> None:
        document = {"ended_by": f"{STOPPED_PREFIX} {THIRD} with 1 of 2 concepts done and committed"}
        store.write(RunPaths(THIRD).failures, json.dumps(document).encode())

    with hold_lease(store, THIRD, "ana@gpu-7"), watch_stop_file(store, THIRD, stop, poll_s=0.05):
        code, out, err = command("stop", THIRD, "--catalog", store.uri)
    assert code == 0 and f"run {THIRD}: stopped" in out and "was asked to stop" in err
    with hold_lease(store, THIRD, "ana@gpu-7"):
        store.delete(RunPaths(THIRD).failures)
        code, out, _ = command("stop", THIRD, "--catalog", store.uri, "--no-wait")
    assert code == 0 and out == f"run {THIRD} was asked to stop\n"


def test_stop_reports_a_run_that_does_not_stop(command, store, monkeypatch):
    from persres.jobs.cli.app import runs as run_commands

    monkeypatch.setattr(run_commands, "STOP_TIMEOUT_S", 0.5)
    with hold_lease(store, THIRD, "ana@gpu-7"):
        code, _, err = command("stop", THIRD, "--catalog", store.uri)
    assert code == 1 and "has not within" in err


def test_logs_refuses_a_missing_log_and_one_that_cannot_be_followed(command, store):
    code, _, err = command("logs", FIRST, "--catalog", store.uri)
    assert code == 2 and "has no log in its catalog" in err
    code, _, err = command("logs", FIRST, "--catalog", store.uri, "--follow")
    assert code == 2 and "cannot be followed" in err
