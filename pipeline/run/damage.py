"""Committed results that are found damaged: a record takes them back, so that the next run makes them again.

Damage is found by what reads it. A residual that a shard is to render with is trained again in that shard
(`shard.loading`). The report at a run's end reads the results of the concepts that it shows, when the workers are gone.
So the run counts concepts with damaged results as failed, and commits a record that holds them with an empty
fingerprint. No row of a manifest has that one, so the next plan trains or renders them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...core.errors import ConceptFailure, StoreError
from ..catalog.commit_record import CommittedConcept, ShardCommit
from ..catalog.index_version import newest_version
from ..catalog.store import CatalogStore
from ..planning.plan import RunPlan
from ..shard.commit import put_record
from .summary import RunSummary

_ATTEMPT = "000"  # before the run's own, which begin with 001: the record supersedes what the run itself has committed
_FIX = "submit again, which makes it again"

Part = Literal["residual", "renderings"]


@dataclass(frozen=True, slots=True)
class Damage:
    """A committed concept of which a part is damaged or gone; `error`: what reading it raised."""

    concept_id: str
    part: Part
    error: StoreError

    @property
    def failure(self) -> ConceptFailure:
        """The failure of the concept; its fix is that of a catalog that nothing has taken back."""
        verb = "is" if self.part == "residual" else "are"
        reason = f"its committed {self.part} {verb} damaged: {self.error.message}"
        return ConceptFailure(self.concept_id, "load", reason, self.error.fix or "")


def take_back(
    store: CatalogStore,
    plan: RunPlan,
    committed: Mapping[str, CommittedConcept],
    summary: RunSummary,
    damaged: Sequence[Damage],
    *,
    lease_generation: int,
    on_failure: Callable[[ConceptFailure], None] = lambda failure: None,
) -> RunSummary:
    """Commit that what is damaged is to be made again, and count its concepts as failed.

    Concepts that the manifest does not list stay as they are: no run would do them again.

    Args:
        plan: of the run, which has ended.
        committed: the concepts of the catalog.
        summary: of the run, which counts the damaged concepts as committed or current.
        lease_generation: of the run's lease.
        on_failure: called with the failure of every damaged concept.

    Returns:
        The summary that counts them as failed.

    Raises:
        CatalogHeld: the run has lost its lease.
        StoreError: the record could not be written.
    """
    work = {concept.concept_id for concept in (*plan.train, *plan.render_only)}
    rows = work.union(plan.current)
    for one in damaged:
        on_failure(one.failure)
    damaged = [one for one in damaged if one.concept_id in rows]
    if not damaged:
        return summary
    failures = [replace(one.failure, fix=_FIX) for one in damaged]
    concepts = tuple(_taken_back(committed[one.concept_id], one.part) for one in damaged)
    digest = hashlib.sha256("\n".join(concept.concept_id for concept in concepts).encode()).hexdigest()[:16]
    record = ShardCommit(
        summary.run_id,
        f"damage-{digest}",
        _ATTEMPT,
        "render",
        files={},
        concepts=concepts,
        failures=tuple(failures),
        lease_generation=lease_generation,
        index_version=newest_version(store).number,
    )
    put_record(store, record)
    done = sum(one.concept_id in work for one in failures)
    counted = replace(
        summary,
        committed=summary.committed - done,
        current=summary.current - (len(failures) - done),
        failed=tuple(sorted((*summary.failed, *failures), key=lambda failure: failure.concept_id)),
    )
    counted.check()
    return counted


def _taken_back(concept: CommittedConcept, part: Part) -> CommittedConcept:
    if part == "residual":
        return replace(concept, training_fingerprint="")
    return replace(
        concept,
        rendering_fingerprint="",
        rendering_file=None,
        rendering_rows=(0, 0),
        scores={},
        renderings_digest="",
    )
