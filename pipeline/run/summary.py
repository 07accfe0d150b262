"""The summary of a run: every row of the manifest is committed, failed or was current. Pure.

What is committed is read from the catalog, not from the messages of workers: a worker may have committed a shard and
been lost before it reported that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from ...core.errors import ConceptFailure, PersresError
from ..catalog.commit_record import CommittedConcept, Measured
from ..planning.cost import RunCost
from ..planning.plan import PlannedConcept, RunPlan
from ..planning.throughput import sum_measured
from ..shard.summary import DEVICE_PHASES
from ..spec.prices import Prices
from ..storage.json_document import parse_document


class AccountingError(PersresError):
    """A run's numbers do not add up: concepts were lost or counted twice. A bug, never the user's fault."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended; stored as `runs/<run id>/summary.json`.

    Attributes:
        rows: the manifest's.
        committed: concepts that were trained or rendered, and committed.
        current: concepts whose committed results are up to date.
        removed: concepts of the catalog that the manifest no longer lists.
        seconds: the workers' time by phase.
        wall_seconds: the duration of the run.
        device_busy_share: the part of the workers' time, counted once their model is loaded, in which their devices
            trained, rendered or scored results that were committed; None if the run had no worker.
        measured: device time and amount of work of the run's shards, from which later runs are estimated.
        start_seconds: the time until the first worker had loaded its model; None if the run had no worker.
        cost: None if the run had no worker.
    """

    run_id: str
    rows: int
    committed: int
    failed: tuple[ConceptFailure, ...]
    current: int
    removed: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    wall_seconds: float = 0.0
    workers: int = 0
    device_busy_share: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    start_seconds: float | None = None
    cost: RunCost | None = None

    def check(self) -> None:
        """Check that committed + failed + current = rows, and that no concept failed twice.

        Raises:
            AccountingError: it is not so.
        """
        failed = {failure.concept_id for failure in self.failed}
        total = self.committed + len(failed) + self.current
        if total != self.rows or len(failed) != len(self.failed):
            raise AccountingError(
                f"run {self.run_id}: {self.committed} committed + {len(self.failed)} failed ({len(failed)} different) "
                f"+ {self.current} current = {total}, but the manifest has {self.rows} rows",
                fix="submit again, which does whatever is missing, and report this with the run's summary.json",
            )

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, *, name: str = "summary.json") -> RunSummary:
        """Read a stored summary, ignoring fields that a later version may have added.

        Args:
            name: of the object, for messages.

        Raises:
            DamagedDocument: it is no summary.
        """
        return parse_document(text, cls, name=name, fix="restore it from a copy, or delete it")


def account_for(
    plan: RunPlan,
    committed: Mapping[str, CommittedConcept],
    failures: Iterable[ConceptFailure],
    *,
    run_id: str,
    seconds: Mapping[str, float],
    ready_seconds: float,
    wall_seconds: float,
    workers: int,
    versions: Mapping[str, str],
    measured: Iterable[Measured] = (),
    start_seconds: float | None = None,
    prices: Prices | None = None,
) -> RunSummary:
    """Summarize a finished run by its plan and the catalog.

    Args:
        committed: the concepts of the catalog after the run (`read_committed`).
        failures: of this run's attempts. A concept that failed in one attempt and was committed by another counts as
            committed. The plan's own failures are added.
        seconds: the workers' time by phase.
        ready_seconds: the time that workers had their model loaded, summed over workers.
        measured: device time and amount of work of each shard.
        start_seconds: the time until the first worker had loaded its model.
        prices: the prices that the cost is computed from.

    Raises:
        AccountingError: a planned concept is neither committed under its fingerprints nor failed, or a failure names a
            concept that was not planned.
    """
    work = {concept.concept_id: concept for concept in (*plan.train, *plan.render_only)}
    done = {concept_id for concept_id, concept in work.items() if _is_done(concept, committed)}
    failed = {failure.concept_id: failure for failure in plan.failures}
    for failure in failures:
        if failure.concept_id not in done:
            failed.setdefault(failure.concept_id, failure)

    planned_failures = {failure.concept_id for failure in plan.failures}
    lost = sorted(work.keys() - done - failed.keys())
    foreign = sorted(failed.keys() - work.keys() - planned_failures)
    if lost or foreign:
        raise AccountingError(
            f"run {run_id}: neither committed nor failed: {lost}; failed but never planned: {foreign}",
            fix="submit again, which does whatever is missing, and report this with the run's plan and failures",
        )
    measured = sum_measured(measured)
    summary = RunSummary(
        run_id=run_id,
        rows=plan.rows,
        committed=len(done),
        failed=tuple(failed[concept_id] for concept_id in sorted(failed)),
        current=len(plan.current),
        removed=len(plan.removed),
        seconds=dict(seconds),
        wall_seconds=wall_seconds,
        workers=workers,
        device_busy_share=device_busy_share(seconds, ready_seconds),
        versions=dict(versions),
        measured=measured,
        start_seconds=start_seconds,
        cost=RunCost.of(ready_seconds, measured, prices or Prices()) if ready_seconds > 0 else None,
    )
    summary.check()
    return summary


def device_busy_share(seconds: Mapping[str, float], ready_seconds: float) -> float | None:
    """The part of the workers' time in which their devices worked, 0 to 1; None if there was no worker."""
    if ready_seconds <= 0:
        return None
    busy = sum(seconds.get(phase, 0.0) for phase in DEVICE_PHASES)
    return round(min(1.0, busy / ready_seconds), 4)


def _is_done(planned: PlannedConcept, committed: Mapping[str, CommittedConcept]) -> bool:
    held = committed.get(planned.concept_id)
    return (
        held is not None
        and held.training_fingerprint == planned.fingerprints.training
        and held.rendering_fingerprint == planned.fingerprints.rendering
    )
