"""The log that real runs write to the catalog, and the names of their actors in Ray."""

from __future__ import annotations

import json
import threading

import pytest
import ray

from persres.core.errors import PersresError
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.run.log import read_run_log

from ..support.tiny_runs import write_manifest

pytestmark = pytest.mark.timeout(900)


def test_log_is_in_the_catalog_and_without_forgotten_concepts(submit, tmp_path):
    manifest = write_manifest(tmp_path, ["a", "b", "bad"], broken="bad")
    summary = submit(manifest, log_format="json").summary
    events = read_run_log(submit.store, summary.run_id)
    kinds = [event.event for event in events]
    assert kinds[:2] == ["run_started", "plan"] and kinds[-1] == "run_ended"
    assert "progress" in kinds and {event.run_id for event in events} == {summary.run_id}

    (failed,) = [event for event in events if event.event == "concept_failed"]
    assert failed.level == "warning" and failed.fields["concept_id"] == "bad"
    started, ended = ([event for event in events if event.event == f"shard_{which}"] for which in ("started", "ended"))
    attempts = [[(event.fields["shard_id"], event.fields["attempt"]) for event in some] for some in (started, ended)]
    assert sorted(attempts[0]) == sorted(attempts[1])
    assert sorted(name for event in ended for name in event.fields["concepts"]) == ["a", "b"]
    did_something = [event.fields for event in ended if event.fields["concepts"]]
    assert all(known["seconds"]["train"] > 0 and known["bytes_written"] > 0 for known in did_something)

    printed = [json.loads(line) for line in submit.shown.getvalue().splitlines()]
    assert [event["event"] for event in printed] == kinds, "with --log-format json nothing else is printed"

    forget(submit.store, ["a", "bad"])
    left = submit.store.read(RunPaths(summary.run_id).log).decode()
    assert '"a"' not in left and '"bad"' not in left and '"b"' in left


def test_log_of_a_failed_run_ends_with_the_error(submit, tmp_path, monkeypatch):
    from persres.jobs.driver import run_shards

    def fail(*arguments, **options):
        raise PersresError("no driver today", fix="wait")

    monkeypatch.setattr(run_shards, "run_shards", fail)
    with pytest.raises(PersresError, match="no driver"):
        submit(write_manifest(tmp_path, ["a"]))
    (run_id,) = submit.store.run_ids()
    last = read_run_log(submit.store, run_id)[-1]
    assert (last.event, last.level) == ("run_failed", "error") and "no driver" in last.text


def test_worker_actors_are_named_after_their_run(submit, tmp_path):
    seen: set[str] = set()
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.1):
            seen.update(ray.util.list_named_actors())

    watcher = threading.Thread(target=poll)
    watcher.start()
    try:
        finished = submit(write_manifest(tmp_path, ["a"]))
    finally:
        over.set()
        watcher.join()
    assert f"persres-{finished.summary.run_id}-worker-1" in seen
    assert not ray.util.list_named_actors(), "and are gone with it"
    assert submit.store.run_ids() == [finished.summary.run_id]
