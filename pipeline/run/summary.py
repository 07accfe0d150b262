"""The sum at the end of a run: every row of the manifest is committed, failed or was current. Pure.

The catalog is the judge of what is committed, not the messages of workers: an attempt may have committed and died
before it could say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from ...core.errors import ConceptFailure, PersresError
from ..catalog.commit_record import CommittedConcept, Measured
from ..planning.cost import RunCost
from ..planning.plan import PlannedConcept, RunPlan
from ..planning.throughput import added_up
from ..shard.work import DEVICE_PHASES
from ..spec.prices import Prices


class AccountingError(PersresError):
    """A run's numbers do not add up: concepts were lost or counted twice. A bug, never the user's fault."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run ended; stored as `runs/<run id>/summary.json`.

    `rows` are the manifest's; `current` had nothing to do; `removed` are in the catalog but no longer in the manifest.
    `seconds` are summed over workers, by phase; `wall_seconds` is how long the run took. `device_busy_share` is the
    part of the workers' time, from the moment each had loaded its model, in which their devices trained, rendered or
    scored what was then committed; None where no worker was needed.
    `measured` is what the run's shards took for how much, for later runs to be estimated by, `start_seconds` how long
    it was until the first worker had loaded its model, and `cost` what the run did cost; None where no worker was
    needed.
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
        """Raises AccountingError unless committed + failed + current = rows, and no concept failed twice."""
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
    def from_json(cls, text: bytes) -> RunSummary:
        """Read a stored summary, ignoring fields that a later version may have added."""
        raw = json.loads(text)
        failed = tuple(ConceptFailure(**failure) for failure in raw["failed"])
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        measured = tuple(map(Measured.from_values, raw.get("measured", ())))
        cost = RunCost.from_values(raw["cost"]) if raw.get("cost") else None
        return cls(**{**known, "failed": failed, "measured": measured, "cost": cost})


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
    """Hold a finished run against its plan and against the catalog.

    Args:
        committed: what the catalog holds after the run (`read_committed`).
        failures: of this run's attempts. A concept that failed in one attempt and is committed by another counts as
            committed; the plan's own failures need not be repeated.
        seconds: what workers spent, by phase, summed over them.
        ready_seconds: how long workers were there with their model loaded, summed over them.
        measured: what each of the run's shards took for how much.
        start_seconds: how long it was until the first worker had loaded its model.
        prices: what the run's cost is reckoned by.

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
    measured = added_up(measured)
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
    """The part of the workers' time in which their devices worked, 0 to 1; None where there was no worker."""
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
