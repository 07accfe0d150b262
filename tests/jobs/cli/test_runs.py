"""list, status RUN, logs and stop from a catalog alone, as a person calls them. With a cluster: tests/ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.state import STOPPED
from persres.pipeline.run.stop_file import heeding_catalog
from persres.pipeline.run.summary import RunSummary

FIRST, SECOND, THIRD = "20261121T030000Z-aaaaaa", "20261122T030000Z-bbbbbb", "20261123T030000Z-cccccc"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    """Three runs: one ended, one was stopped, of the third nothing is known but its plan."""
    store = CatalogStore(str(tmp_path / "catalog"))
    for run_id in (FIRST, SECOND, THIRD):
        plan = {"manifest": "s3://b/m.parquet", "train": ["a", "b"], "render_only": [], "failed": []}
        store.write(store.run_file(run_id, "plan.json"), json.dumps(plan).encode())
    summary = RunSummary(
        FIRST, rows=2, committed=1, failed=(ConceptFailure("b", "train", "NaN"),), current=0, removed=0
    )
    store.write(store.run_file(FIRST, "summary.json"), summary.to_json())
    ended_by = {"ended_by": f"{STOPPED} {SECOND} with 0 of 2 concepts done and committed"}
    store.write(store.run_file(SECOND, "failures.json"), json.dumps(ended_by).encode())
    return store


def test_list_has_the_newest_first_and_the_state_of_each(command, store):
    code, out, err = command("list", "--catalog", store.uri)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [THIRD, SECOND, FIRST]
    assert "died" in lines[0] and "stopped" in lines[1] and "1 done, 1 failed of 2" in lines[2]
    code, out, _ = command("list", "--catalog", store.uri, "--json", "--limit", 1)
    assert [(run["run_id"], run["state"], run["done"]) for run in json.loads(out)] == [(THIRD, "died", 0)]


def test_status_of_one_run(command, store):
    code, out, _ = command("status", FIRST, "--catalog", store.uri)
    assert code == 0 and f"run {FIRST}: ended" in out and "failed: b (train): NaN" in out
    code, out, _ = command("status", SECOND, "--catalog", store.uri, "--json")
    told = json.loads(out)
    assert (told["state"], told["left"], told["on_cluster"]) == ("stopped", 2, None)


def test_status_of_the_catalog_is_what_it_was(command, store):
    code, out, _ = command("status", store.uri)
    assert code == 0 and f"latest run {THIRD}" in out and "did not end: submit again to go on" in out


def test_a_catalog_will_do_when_the_cluster_is_away(command, store):
    code, out, err = command("list", "--catalog", store.uri, "--address", NOBODY)
    assert code == 0 and FIRST in out and "asking the catalog alone" in err
    code, _, err = command("list", "--address", NOBODY)
    assert code == 2 and "no Ray cluster answers" in err


def test_ray_address_counts_as_an_address_if_it_is_a_job_servers(command, store, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    code, _, err = command("status", FIRST)
    assert code == 2 and f"no Ray cluster answers at {NOBODY}" in err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    code, _, err = command("status", FIRST)
    assert code == 2 and "neither is named" in err
    code, _, err = command("status", FIRST, "--address", "127.0.0.1:6379")
    assert code == 2 and "not the address of a Ray job server" in err


@pytest.mark.parametrize("words", [("status",), ("logs",), ("stop",), ("stop", "--no-wait")])
def test_an_unknown_run_is_refused_with_the_nearest_names(command, store, words):
    code, out, err = command(words[0], SECOND[:-1] + "0", *words[1:], "--catalog", store.uri)
    assert (code, out) == (2, "") and "is known here" in err and SECOND in err
    assert not store.exists(f"runs/{SECOND[:-1]}0/stop.json")
    code, _, err = command(words[0], "cccc", "--catalog", store.uri)
    assert code == 2 and THIRD in err and FIRST not in err, "a part of an id is near it"


def test_a_run_that_is_over_is_not_stopped_again(command, store):
    code, out, _ = command("stop", FIRST, "--catalog", store.uri)
    assert code == 0 and f"run {FIRST} is over already: ended" in out
    assert not store.exists(store.run_file(FIRST, "stop.json"))


def test_stop_leaves_word_and_waits_until_the_run_has_stopped(command, store):
    def stop(_: object) -> None:
        left = {"ended_by": f"{STOPPED} {THIRD} with 1 of 2 concepts done and committed"}
        store.write(store.run_file(THIRD, "failures.json"), json.dumps(left).encode())

    with hold_lease(store, THIRD, "ana@gpu-7"), heeding_catalog(store, THIRD, stop, every_s=0.05):
        code, out, err = command("stop", THIRD, "--catalog", store.uri)
    assert code == 0 and f"run {THIRD}: stopped" in out and "was asked to stop" in err
    with hold_lease(store, THIRD, "ana@gpu-7"):
        store.delete(store.run_file(THIRD, "failures.json"))
        code, out, _ = command("stop", THIRD, "--catalog", store.uri, "--no-wait")
    assert code == 0 and out == f"run {THIRD} was asked to stop\n"


def test_a_run_that_does_not_heed_is_said_so(command, store, monkeypatch):
    from persres.jobs.cli.app import runs as run_commands

    monkeypatch.setattr(run_commands, "STOP_TIMEOUT_S", 0.5)
    with hold_lease(store, THIRD, "ana@gpu-7"):
        code, _, err = command("stop", THIRD, "--catalog", store.uri)
    assert code == 1 and "has not within" in err


def test_a_log_that_is_not_there_or_cannot_be_followed(command, store):
    code, _, err = command("logs", FIRST, "--catalog", store.uri)
    assert code == 2 and "has left no log in its catalog" in err
    code, _, err = command("logs", FIRST, "--catalog", store.uri, "--follow")
    assert code == 2 and "cannot be followed" in err


def test_submit_refuses_what_only_a_cluster_has(command, store, tmp_path):
    (tmp_path / "run.yaml").write_text("{}")
    words = ["submit", "m.parquet", "--spec", tmp_path / "run.yaml", "--catalog", store.uri]
    code, _, err = command(*words, "--no-follow")
    assert code == 2 and "--no-follow is for a run on a cluster" in err
    code, _, err = command(*words, "--run-id", "tonight")
    assert code == 2 and "is not a run's id" in err
