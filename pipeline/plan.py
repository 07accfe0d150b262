"""What a run has to do, and in which portions. Pure functions over plain values.

A concept is current only if the catalog holds it under the fingerprints it has now. A changed prompt changes the
rendering fingerprint alone, so the concept is rendered again from the residual it already has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import ConceptFailure
from .commit_record import CommittedConcept, ShardKind
from .fingerprint import Fingerprints
from .manifest_row import ManifestRow


@dataclass(frozen=True, slots=True)
class PlannedConcept:
    """A manifest row and what it would be done with.

    `committed` is what the catalog holds of it; for a concept that only needs rendering it says where the residual is.
    """

    row: ManifestRow
    fingerprints: Fingerprints
    committed: CommittedConcept | None = None

    @property
    def concept_id(self) -> str:
        return self.row.concept_id


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Every row of a manifest, in exactly one of `train`, `render_only`, `current` and `failures`.

    `removed` names concepts that the catalog holds and the manifest no longer lists; nothing is done to them.
    """

    train: tuple[PlannedConcept, ...]
    render_only: tuple[PlannedConcept, ...]
    current: tuple[str, ...]
    removed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]

    @property
    def rows(self) -> int:
        """How many manifest rows this plan accounts for."""
        return len(self.train) + len(self.render_only) + len(self.current) + len(self.failures)

    @property
    def has_work(self) -> bool:
        return bool(self.train or self.render_only)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of scheduling and commit. `shard_id` is a digest of its own contents, never a position."""

    shard_id: str
    kind: ShardKind
    concepts: tuple[PlannedConcept, ...]

    @property
    def concept_ids(self) -> tuple[str, ...]:
        return tuple(concept.concept_id for concept in self.concepts)

    @classmethod
    def of(cls, kind: ShardKind, concepts: Sequence[PlannedConcept]) -> Shard:
        """Name a shard after what it holds: the kind, the concepts and their fingerprints, in any order."""
        digest = hashlib.sha256(kind.encode())
        for concept in sorted(concepts, key=lambda concept: concept.concept_id):
            fingerprints = concept.fingerprints
            digest.update(f"\n{concept.concept_id}\t{fingerprints.training}\t{fingerprints.rendering}".encode())
        return cls(f"{kind}-{digest.hexdigest()[:16]}", kind, tuple(concepts))


def plan_run(
    planned: Iterable[PlannedConcept],
    failures: Iterable[ConceptFailure],
    committed: Mapping[str, CommittedConcept],
) -> RunPlan:
    """Sort a manifest's concepts into those to train, those to render again, and those with nothing to do.

    Args:
        planned: the rows that could be fingerprinted, in the manifest's order, which the plan keeps.
        failures: the rows that could not, one failure each.
        committed: what the catalog holds.

    Raises:
        ValueError: a concept is given twice.
    """
    planned, failures = tuple(planned), tuple(failures)
    ids = Counter([*(concept.concept_id for concept in planned), *(failure.concept_id for failure in failures)])
    twice = sorted(concept_id for concept_id, count in ids.items() if count > 1)
    if twice:
        raise ValueError(f"planned twice: {', '.join(twice)}")

    train, render_only, current = [], [], []
    for concept in planned:
        held = committed.get(concept.concept_id)
        if held is None or held.training_fingerprint != concept.fingerprints.training:
            train.append(PlannedConcept(concept.row, concept.fingerprints))
        elif held.rendering_fingerprint != concept.fingerprints.rendering:
            render_only.append(PlannedConcept(concept.row, concept.fingerprints, held))
        else:
            current.append(concept.concept_id)
    removed = sorted(committed.keys() - ids.keys())
    return RunPlan(tuple(train), tuple(render_only), tuple(current), tuple(removed), failures)


def make_shards(plan: RunPlan, size: int) -> list[Shard]:
    """Cut a plan's work into shards of at most `size` concepts, those to train first: they take longest.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a shard holds at least one concept, not {size}")
    return [*_cut("train", plan.train, size), *_cut("render", plan.render_only, size)]


def _cut(kind: ShardKind, concepts: tuple[PlannedConcept, ...], size: int) -> list[Shard]:
    return [Shard.of(kind, concepts[start : start + size]) for start in range(0, len(concepts), size)]


def split_shard(shard: Shard) -> tuple[Shard, Shard]:
    """Halve a shard that keeps failing, to find the concept that is to blame.

    Raises:
        ValueError: the shard holds a single concept: that is the one to quarantine.
    """
    if len(shard.concepts) < 2:
        raise ValueError(f"shard {shard.shard_id} holds {len(shard.concepts)} concept and cannot be split")
    middle = (len(shard.concepts) + 1) // 2
    return Shard.of(shard.kind, shard.concepts[:middle]), Shard.of(shard.kind, shard.concepts[middle:])
