"""A run's status from its catalog alone."""

from __future__ import annotations

import json

import pytest

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import LeaseState
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.run_status import STOPPED_PREFIX, RunStatus, begun_runs, run_status
from persres.pipeline.run.summary import RunSummary

RUN = "20261122T190501Z-3fa9c1"
NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    store = CatalogStore(str(tmp_path))
    plan = {"train": ["a", "b"], "render_only": ["c"], "failed": [], "job": f"persres-{RUN}", "manifest": "s3://m"}
    store.write(RunPaths(RUN).plan, json.dumps(plan).encode())
    return store


def status(store: CatalogStore, *, renewed_at: float | None = None) -> RunStatus:
    holder = None
    if renewed_at is not None:
        holder = LeaseState(RUN, "ana@gpu-7", "token", acquired_at=0, renewed_at=renewed_at, ttl_s=60)
    return run_status(store, RUN, committed=lambda: frozenset({"a"}), holder=holder, now=NOW)


def test_run_with_a_live_lease_is_running(store):
    found = status(store, renewed_at=NOW - 30)
    assert (found.state, found.done, found.left, found.planned) == ("running", 1, 2, 3)
    assert (found.job, found.manifest) == (f"persres-{RUN}", "s3://m")


def test_run_without_record_or_lease_is_lost(store):
    assert status(store).state == status(store, renewed_at=NOW - 61).state == "lost"


@pytest.mark.parametrize(
    ("ended_by", "state"),
    [(f"{STOPPED_PREFIX} {RUN} with 1 of 3 concepts done", "stopped"), ("no space left", "failed")],
)
def test_run_that_recorded_its_end_is_stopped_or_failed(store, ended_by, state):
    store.write(RunPaths(RUN).failures, json.dumps({"ended_by": ended_by}).encode())
    assert (status(store, renewed_at=NOW).state, status(store).reason) == (state, ended_by)


def test_run_with_a_summary_has_ended_and_reads_no_index(store):
    summary = RunSummary(RUN, rows=5, committed=2, failed=(ConceptFailure("c", "train", "NaN"),), current=2, removed=0)
    store.write(RunPaths(RUN).summary, summary.to_json())

    def not_called() -> frozenset[str]:
        raise AssertionError("a catalog of a million concepts is not read for this")

    found = run_status(store, RUN, committed=not_called, holder=None, now=NOW)
    assert (found.state, found.done, len(found.failed), found.left, found.planned) == ("ended", 2, 1, 0, 3)


def test_begun_runs_have_a_plan_and_come_newest_first(store):
    later = "20261123T190501Z-000000"
    store.write(RunPaths(later).plan, b"{}")
    store.write(RunPaths("20261124T190501Z-000000").stop_request, b"{}")
    assert begun_runs(store, 10) == [later, RUN] and begun_runs(store, 1) == [later]
