"""The log of real runs: what happened to which shard and concept, kept in the catalog; and the names Ray shows."""

from __future__ import annotations

import io
import json
import threading

import pytest
import ray
from rich.console import Console

from persres.core.errors import PersresError
from persres.jobs.submit import WhereToRun, submit_local
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.run.log import read_run_log

from .test_submit import spec, submit, write_manifest  # noqa: F401  (fixtures)

pytestmark = pytest.mark.timeout(900)


def test_a_run_leaves_its_log_which_forgets_concepts(submit, tmp_path):  # noqa: F811
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
    left = submit.store.read(submit.store.run_file(summary.run_id, "log.jsonl")).decode()
    assert '"a"' not in left and '"bad"' not in left and '"b"' in left


def test_a_run_that_fails_says_so_in_its_log(submit, tmp_path, monkeypatch):  # noqa: F811
    from persres.jobs.driver import run_shards

    def fail(*arguments, **options):
        raise PersresError("the sky has fallen", fix="wait for another")

    monkeypatch.setattr(run_shards, "run_shards", fail)
    with pytest.raises(PersresError, match="sky"):
        submit(write_manifest(tmp_path, ["a"]))
    (run_id,) = submit.store.run_ids()
    last = read_run_log(submit.store, run_id)[-1]
    assert (last.event, last.level) == ("run_failed", "error") and "sky" in last.text


def test_workers_are_named_after_their_run(spec, tmp_path, local_ray):  # noqa: F811
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.update(ray.util.list_named_actors())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        console = Console(file=io.StringIO())
        manifest, catalog = write_manifest(tmp_path, ["a"]), str(tmp_path / "catalog")
        finished = submit_local(manifest, spec, catalog, where=WhereToRun(1), console=console)
    finally:
        over.set()
        watcher.join()
    assert f"persres-{finished.summary.run_id}-worker-1" in seen
    assert not ray.util.list_named_actors(), "and their names go with them"
    assert CatalogStore(catalog).run_ids() == [finished.summary.run_id]
