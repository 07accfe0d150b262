"""How far one run has come, from what it has left in its catalog: without Ray, long after its cluster is gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...core.errors import ConceptFailure
from ..catalog.index import read_records
from ..catalog.lease import LeaseState
from ..catalog.store import CatalogStore
from ..planning.cost import RunCost
from .summary import RunSummary

State = Literal["waiting", "under way", "ended", "stopped", "failed", "died"]
"""waiting: for a place on its cluster, or for its catalog. ended: every concept is done or failed. stopped: somebody
wanted that. failed: the run says why. died: it says nothing, and nobody has heard of it for longer than its lease."""

OVER = frozenset[State]({"ended", "stopped", "failed", "died"})
STOPPED = "stopped run"
"""How the reason begins that a stopped run leaves behind."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run. `left` concepts are neither done nor failed; `ended` once its summary is written.

    `device_busy_share` and `cost` are known then too: the part of the workers' time in which their devices worked, and
    what that time cost. `job` is its submission id where it ran as a job of a cluster. `reason` is why it stopped or
    failed, as far as anybody said.
    """

    run_id: str
    planned: int
    done: int
    failed: tuple[ConceptFailure, ...]
    left: int
    ended: bool
    report: str | None
    device_busy_share: float | None = None
    state: State = "ended"
    job: str | None = None
    manifest: str = ""
    reason: str = ""
    cost: RunCost | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def is_known(store: CatalogStore, run_id: str) -> bool:
    """Whether a run has begun in this catalog.

    Raises:
        StoreError: the catalog cannot be read.
    """
    return store.exists(store.run_file(run_id, "plan.json"))


def job_of(store: CatalogStore, run_id: str) -> str | None:
    """The submission id of a known run; None if it is none of a cluster.

    Raises:
        StoreError: the catalog cannot be read.
    """
    return json.loads(store.read(store.run_file(run_id, "plan.json"))).get("job")


def run_status(
    store: CatalogStore, run_id: str, *, committed: Callable[[], Set[str]], holder: LeaseState | None, now: float
) -> RunStatus:
    """A known run's status.

    Args:
        committed: tells the concepts that readers have from this run; only asked of a run that has not ended.
        holder: who holds the catalog.
        now: seconds since 1970, to judge the lease by.

    Raises:
        StoreError: the catalog cannot be read.
    """
    plan: Mapping[str, Any] = json.loads(store.read(store.run_file(run_id, "plan.json")))
    summary_file, report = store.run_file(run_id, "summary.json"), store.run_file(run_id, "report.html")
    summary = RunSummary.from_json(store.read(summary_file)) if store.exists(summary_file) else None
    work = {*plan["train"], *plan["render_only"]}
    ended_by = None if summary else _ended_by(store, run_id)
    done, failed, left = _ended(summary) if summary else _so_far(store, run_id, plan, work & committed())
    return RunStatus(
        run_id=run_id,
        planned=done + len(failed) if summary else len(work) + len(plan["failed"]),
        done=done,
        failed=failed,
        left=left,
        ended=summary is not None,
        report=store.url(report) if store.exists(report) else None,
        device_busy_share=summary.device_busy_share if summary else None,
        state="ended" if summary else _state(run_id, ended_by, holder, now),
        job=plan.get("job"),
        manifest=plan.get("manifest", ""),
        reason=ended_by or "",
        cost=summary.cost if summary else None,
    )


def _ended(summary: RunSummary) -> tuple[int, tuple[ConceptFailure, ...], int]:
    return summary.committed, tuple(sorted(summary.failed, key=lambda failure: failure.concept_id)), 0


def _so_far(
    store: CatalogStore, run_id: str, plan: Mapping[str, Any], done: Set[str]
) -> tuple[int, tuple[ConceptFailure, ...], int]:
    told = {failure.concept_id: failure for record in read_records(store, run_id) for failure in record.failures}
    failed = tuple(told[concept_id] for concept_id in sorted(told.keys() - done))
    work = {*plan["train"], *plan["render_only"]}
    unread = [concept_id for concept_id in plan["failed"] if concept_id not in told]  # known only at the run's end
    return len(done), failed, len(work - done - told.keys()) + len(unread)


def _ended_by(store: CatalogStore, run_id: str) -> str | None:
    path = store.run_file(run_id, "failures.json")
    return json.loads(store.read(path)).get("ended_by") if store.exists(path) else None


def _state(run_id: str, ended_by: str | None, holder: LeaseState | None, now: float) -> State:
    if ended_by:
        return "stopped" if ended_by.startswith(STOPPED) else "failed"
    if holder is not None and holder.run_id == run_id and now - holder.renewed_at <= holder.ttl_s:
        return "under way"
    return "died"


def known_runs(store: CatalogStore, limit: int) -> Sequence[str]:
    """The newest runs that have left a plan, the newest first.

    Raises:
        StoreError: the catalog cannot be listed.
    """
    plans = {path.split("/")[1] for path in store.list(store.RUNS) if path.endswith("/plan.json")}
    return sorted(plans, reverse=True)[:limit]
