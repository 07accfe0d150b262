"""The status of a catalog: its latest run, and its holder."""

from __future__ import annotations

import json

import pytest

from persres.core.errors import ConceptFailure
from persres.jobs.cli.catalog import status_lines
from persres.pipeline.catalog.index import compact
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import hold_lease
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.catalog_status import catalog_status, latest_report
from persres.pipeline.run.summary import RunSummary

from ...support.catalog_factories import commit, planned, rendering_rows_of, residual_row, shard_of

RUN = "20261122T190501Z-3fa9c1"


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    """A run of four concepts: one is done, one failed, one could not be read, one is left."""
    store = CatalogStore(str(tmp_path))
    plan = {"run_id": RUN, "train": ["a", "b", "c"], "render_only": [], "failed": ["unreadable"]}
    store.write(RunPaths(RUN).plan, json.dumps(plan).encode())
    commit(
        store,
        shard_of(planned("a"), planned("b")),
        run_id=RUN,
        residuals=[residual_row(planned("a"))],
        renderings=rendering_rows_of(planned("a")),
        failures=(ConceptFailure("b", "train", "loss is NaN"),),
    )
    return store


def test_catalog_status_of_a_run_that_did_not_end(store):
    latest = catalog_status(store).latest
    assert latest is not None
    assert (latest.done, [failure.concept_id for failure in latest.failed], latest.left) == (1, ["b"], 2)
    text = "\n".join(status_lines(catalog_status(store)))
    assert "(lost: submit again to continue)" in text and "held by nobody" in text


def test_catalog_status_shows_a_running_run_and_its_holder(store):
    with hold_lease(store, RUN, "ana@gpu-7"):
        status = catalog_status(store)
        assert status.holder is not None and not status.holder.expired
        text = "\n".join(status_lines(status))
        assert "(running)" in text and "held by run 20261122T190501Z-3fa9c1 of ana@gpu-7 since" in text
        later = catalog_status(store, now=status.holder.since + 3600)
        assert later.holder is not None and later.holder.expired
        assert "the lease has expired" in "\n".join(status_lines(later))


def test_catalog_status_of_a_run_that_ended(store):
    failures = (ConceptFailure("b", "train", "loss is NaN"), ConceptFailure("unreadable", "load", "truncated"))
    summary = RunSummary(RUN, rows=4, committed=2, failed=failures, current=0, removed=0, device_busy_share=0.934)
    commit(store, shard_of(planned("c")), run_id=RUN)
    store.write(RunPaths(RUN).report, b"<html>")
    store.write(RunPaths(RUN).summary, summary.to_json())
    latest = catalog_status(store).latest
    assert latest is not None and latest.ended and latest.left == 0
    assert [failure.concept_id for failure in latest.failed] == ["b", "unreadable"]
    assert latest.report == latest_report(store) and latest.device_busy_share == 0.934
    assert "(ended, device busy 93%)" in "\n".join(status_lines(catalog_status(store)))
    assert json.loads(catalog_status(store).to_json())["latest"]["done"] == 2


def test_catalog_status_is_the_same_after_compaction(store):
    before = catalog_status(store)
    assert compact(store) == 1
    after = catalog_status(store)
    assert after.latest and before.latest and after.latest.done == before.latest.done == 1
    assert after.concepts == before.concepts


def test_catalog_status_without_a_run(tmp_path):
    status = catalog_status(CatalogStore(str(tmp_path / "nothing")))
    assert (status.concepts, status.runs, status.latest, status.holder) == (0, 0, None, None)
    assert latest_report(CatalogStore(str(tmp_path / "nothing"))) is None
