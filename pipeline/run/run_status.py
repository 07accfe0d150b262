"""The status of one run, computed from its documents in the catalog: without Ray, also after its cluster is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from ...core.errors import ConceptFailure
from ..catalog import layout
from ..catalog.index import read_records
from ..catalog.layout import RunPaths
from ..catalog.lease import LeaseState
from ..catalog.store import CatalogStore
from ..planning.cost import RunCost
from ..storage.json_document import DamagedDocument
from .read_documents import StoredPlan, read_failures, read_plan, read_summary
from .states import RunState
from .summary import RunSummary

T = TypeVar("T")

STOPPED_PREFIX = "stopped run"
"""The reason that a stopped run records begins with this; that of a failed run does not."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The status of one run.

    Attributes:
        planned: concepts to train or render, and rows that could not be planned.
        left: concepts that are neither done nor failed.
        ended: whether the run has written its summary.
        report: the URI of its report, if it has written one.
        device_busy_share: the part of the workers' time in which their devices worked; None until the run has ended.
        job: the submission id, if the run is the job of a cluster.
        manifest: its URI, without credentials.
        reason: why the run stopped or failed, if it recorded that.
        cost: None until the run has ended.
        warnings: documents of the run that are damaged; what only they say is missing.
    """

    run_id: str
    planned: int
    done: int
    failed: tuple[ConceptFailure, ...]
    left: int
    ended: bool
    report: str | None
    device_busy_share: float | None = None
    state: RunState = "ended"
    job: str | None = None
    manifest: str = ""
    reason: str = ""
    cost: RunCost | None = None
    warnings: tuple[str, ...] = ()


def has_begun(store: CatalogStore, run_id: str) -> bool:
    """Whether a run has written its plan to this catalog; no run has an id that could not be a folder's name.

    Raises:
        StoreError: the catalog cannot be read.
    """
    return layout.is_name(run_id) and store.exists(RunPaths(run_id).plan)


def begun_runs(store: CatalogStore, limit: int) -> Sequence[str]:
    """The ids of the newest runs that have written their plan, newest first.

    Raises:
        StoreError: the catalog cannot be listed.
    """
    found = ((path, RunPaths.parse(path)) for path in store.list(layout.RUNS))
    return sorted((run.run_id for path, run in found if run and path == run.plan), reverse=True)[:limit]


def job_of(store: CatalogStore, run_id: str) -> str | None:
    """The submission id of a run that has begun; None if it is no job of a cluster, or its plan is damaged.

    Raises:
        StoreError: the catalog cannot be read.
    """
    try:
        return read_plan(store, run_id).job
    except DamagedDocument:
        return None


def run_status(
    store: CatalogStore, run_id: str, *, committed: Callable[[], Set[str]], holder: LeaseState | None, now: float
) -> RunStatus:
    """The status of a run that has begun.

    Args:
        committed: returns the concepts whose committed state is this run's work; called only if it has not ended.
        holder: the catalog's lease.
        now: the time to judge the lease by, in seconds since 1970.

    Raises:
        StoreError: the catalog cannot be read.
    """
    warnings: list[str] = []
    plan = _unless_damaged(lambda: read_plan(store, run_id), warnings) or StoredPlan((), (), ())
    has_ended = store.exists(RunPaths(run_id).summary)
    summary = _unless_damaged(lambda: read_summary(store, run_id), warnings)
    ended_by = None
    if not has_ended:
        failures = _unless_damaged(lambda: read_failures(store, run_id), warnings)
        ended_by = failures.ended_by if failures else "its failures.json is damaged"
    done, failed, left = _final_counts(summary) if summary else _counts_so_far(store, run_id, plan, committed)
    report = RunPaths(run_id).report
    return RunStatus(
        run_id=run_id,
        planned=done + len(failed) if summary else len(plan.work) + len(plan.failed),
        done=done,
        failed=failed,
        left=left,
        ended=has_ended,
        report=store.url(report) if store.exists(report) else None,
        device_busy_share=summary.device_busy_share if summary else None,
        state="ended" if has_ended else _unfinished_state(run_id, ended_by, holder, now),
        job=plan.job,
        manifest=plan.manifest,
        reason=ended_by or "",
        cost=summary.cost if summary else None,
        warnings=tuple(warnings),
    )


def _unless_damaged(read: Callable[[], T], warnings: list[str]) -> T | None:
    """`read()`; None, and a warning, if the document is damaged, since a run's others still say how it stands."""
    try:
        return read()
    except DamagedDocument as error:
        warnings.append(str(error))
        return None


def _final_counts(summary: RunSummary) -> tuple[int, tuple[ConceptFailure, ...], int]:
    return summary.committed, tuple(sorted(summary.failed, key=lambda failure: failure.concept_id)), 0


def _counts_so_far(
    store: CatalogStore, run_id: str, plan: StoredPlan, committed: Callable[[], Set[str]]
) -> tuple[int, tuple[ConceptFailure, ...], int]:
    done = plan.work & committed()
    recorded = {failure.concept_id: failure for record in read_records(store, run_id) for failure in record.failures}
    failed = tuple(recorded[concept_id] for concept_id in sorted(recorded.keys() - done))
    unplanned = [concept_id for concept_id in plan.failed if concept_id not in recorded]  # written at the run's end
    return len(done), failed, len(plan.work - done - recorded.keys()) + len(unplanned)


def _unfinished_state(run_id: str, ended_by: str | None, holder: LeaseState | None, now: float) -> RunState:
    if ended_by:
        return "stopped" if ended_by.startswith(STOPPED_PREFIX) else "failed"
    if holder is not None and holder.run_id == run_id and now - holder.renewed_at <= holder.ttl_s:
        return "running"
    return "lost"
