"""A run's state from its catalog alone, and together with what its cluster says."""

from __future__ import annotations

import json

import pytest

from persres.core.errors import ConceptFailure
from persres.jobs.cluster.find_run import state_of
from persres.jobs.cluster.run_jobs import JobMetadata, RunJob
from persres.pipeline.catalog.lease import LeaseState
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.state import STOPPED, RunStatus, known_runs, run_status
from persres.pipeline.run.summary import RunSummary

RUN = "20261122T190501Z-3fa9c1"
NOW = 1_000_000.0


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    store = CatalogStore(str(tmp_path))
    plan = {"train": ["a", "b"], "render_only": ["c"], "failed": [], "job": f"persres-{RUN}", "manifest": "s3://m"}
    store.write(store.run_file(RUN, "plan.json"), json.dumps(plan).encode())
    return store


def status(store: CatalogStore, *, renewed_at: float | None = None) -> RunStatus:
    holder = None
    if renewed_at is not None:
        holder = LeaseState(RUN, "ana@gpu-7", "token", acquired_at=0, renewed_at=renewed_at, ttl_s=60)
    return run_status(store, RUN, committed=lambda: frozenset({"a"}), holder=holder, now=NOW)


def test_while_its_lease_lives_it_is_under_way(store):
    found = status(store, renewed_at=NOW - 30)
    assert (found.state, found.done, found.left, found.planned) == ("under way", 1, 2, 3)
    assert (found.job, found.manifest) == (f"persres-{RUN}", "s3://m")


def test_without_word_or_lease_it_died(store):
    assert status(store).state == status(store, renewed_at=NOW - 61).state == "died"


@pytest.mark.parametrize(
    ("ended_by", "state"), [(f"{STOPPED} {RUN} with 1 of 3 concepts done", "stopped"), ("no space left", "failed")]
)
def test_the_word_it_left_counts(store, ended_by, state):
    store.write(store.run_file(RUN, "failures.json"), json.dumps({"ended_by": ended_by}).encode())
    assert (status(store, renewed_at=NOW).state, status(store).reason) == (state, ended_by)


def test_its_summary_is_the_last_word_and_needs_no_look_at_what_is_committed(store):
    summary = RunSummary(RUN, rows=5, committed=2, failed=(ConceptFailure("c", "train", "NaN"),), current=2, removed=0)
    store.write(store.run_file(RUN, "summary.json"), summary.to_json())

    def not_asked() -> frozenset[str]:
        raise AssertionError("a catalog of a million concepts is not read for this")

    found = run_status(store, RUN, committed=not_asked, holder=None, now=NOW)
    assert (found.state, found.done, len(found.failed), found.left, found.planned) == ("ended", 2, 1, 0, 3)


def test_known_runs_are_those_with_a_plan_the_newest_first(store):
    later = "20261123T190501Z-000000"
    store.write(store.run_file(later, "plan.json"), b"{}")
    store.write(store.run_file("20261124T190501Z-000000", "stop.json"), b"{}")
    assert known_runs(store, 10) == [later, RUN] and known_runs(store, 1) == [later]


def job(state) -> RunJob:
    return RunJob(f"persres-{RUN}", JobMetadata(RUN, "s3://m", "s3://c"), state)


@pytest.mark.parametrize(
    ("on_cluster", "in_catalog", "state"),
    [
        ("waiting", None, "waiting"),
        ("under way", None, "waiting"),  # it plans, or another run holds the catalog
        ("ended", None, "ended"),  # it had nothing to do
        ("failed", None, "failed"),
        ("under way", "under way", "under way"),
        ("under way", "died", "under way"),  # the store is away, and so is the lease
        ("died", "under way", "died"),  # before its lease is over
        ("stopped", "died", "stopped"),  # killed before it could leave word
        ("ended", "died", "died"),
        ("died", "stopped", "stopped"),
        ("under way", "ended", "ended"),
    ],
)
def test_cluster_and_catalog_together(store, on_cluster, in_catalog, state):
    seen = None
    if in_catalog is not None:
        seen = RunStatus(RUN, 3, 1, (), 2, ended=in_catalog == "ended", report=None, state=in_catalog)
    assert state_of(job(on_cluster), seen) == state


def test_without_a_cluster_the_catalog_decides(store):
    assert state_of(None, status(store)) == "died"
