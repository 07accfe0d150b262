"""A run's state from its cluster and its catalog together. Finding runs: tests/jobs/cli/test_runs.py and tests/ray."""

from __future__ import annotations

import pytest

from persres.jobs.cluster.find_run import combined_state
from persres.jobs.cluster.run_jobs import JobMetadata, RunJob
from persres.pipeline.run.run_status import RunStatus
from persres.pipeline.run.states import RunState

RUN = "20261122T190501Z-3fa9c1"


def job(state: RunState) -> RunJob:
    return RunJob(f"persres-{RUN}", JobMetadata(RUN, "s3://m", "s3://c"), state)


def status(state: RunState) -> RunStatus:
    return RunStatus(RUN, 3, 1, (), 2, ended=state == "ended", report=None, state=state)


@pytest.mark.parametrize(
    ("on_cluster", "in_catalog", "state"),
    [
        ("waiting", None, "waiting"),
        ("running", None, "waiting"),  # it is planning, or another run holds the catalog
        ("ended", None, "ended"),  # all concepts were current
        ("failed", None, "failed"),
        ("running", "running", "running"),
        ("running", "lost", "running"),  # the store is unreachable, so that the lease has expired
        ("lost", "running", "lost"),  # before its lease has expired
        ("stopped", "lost", "stopped"),  # killed before it could record why
        ("ended", "lost", "lost"),
        ("lost", "stopped", "stopped"),
        ("running", "ended", "ended"),
    ],
)
def test_combined_state_of_cluster_and_catalog(on_cluster, in_catalog, state):
    assert combined_state(job(on_cluster), status(in_catalog) if in_catalog else None) == state


def test_combined_state_without_a_job_is_the_catalogs():
    assert combined_state(None, status("running")) == "running"
    assert combined_state(None, None) == "lost"
