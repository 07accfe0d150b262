"""Plan a run: which concepts to train, which to render, which are current, and the shards of work. Pure functions.

A concept is current if the catalog holds it under both of its fingerprints. A changed prompt changes the rendering
fingerprint alone, so the concept is rendered again from its committed residual.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ...core.errors import ConceptFailure
from ..catalog.commit_record import CommittedConcept, Fingerprints, ShardKind
from ..catalog.committed import get_many_without_scores
from ..manifest.row import ManifestRow

MIN_SHARDS_PER_WORKER = 3
"""Shards are made small enough for this, so that a worker that finishes early can take over some of the rest."""

_LOOKUP_BATCH = 4096


@dataclass(frozen=True, slots=True)
class PlannedConcept:
    """A manifest row with its fingerprints.

    Attributes:
        committed: the concept as the catalog holds it, without scores, or None. For a concept to render, it locates the
            residual; for one to train, the residual of other inputs, for a warm start.
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

    `current` holds only ids, because a manifest may have a million such rows. `removed` lists concepts of the catalog
    that are no longer in the manifest; they are left as they are.
    """

    train: tuple[PlannedConcept, ...]
    render_only: tuple[PlannedConcept, ...]
    current: tuple[str, ...]
    removed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]

    @property
    def rows(self) -> int:
        """The number of manifest rows in this plan."""
        return len(self.train) + len(self.render_only) + len(self.current) + len(self.failures)

    @property
    def has_work(self) -> bool:
        return bool(self.train or self.render_only)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of scheduling and commit. `shard_id` is a digest of the contents, independent of position."""

    shard_id: str
    kind: ShardKind
    concepts: tuple[PlannedConcept, ...]

    @property
    def concept_ids(self) -> tuple[str, ...]:
        return tuple(concept.concept_id for concept in self.concepts)

    @classmethod
    def of(cls, kind: ShardKind, concepts: Sequence[PlannedConcept]) -> Shard:
        """Make a shard; its id is a digest of the kind, the concept ids and the fingerprints, whatever their order."""
        digest = hashlib.sha256(kind.encode())
        for concept in sorted(concepts, key=lambda concept: concept.concept_id):
            fingerprints = concept.fingerprints
            digest.update(f"\n{concept.concept_id}\t{fingerprints.training}\t{fingerprints.rendering}".encode())
        return cls(f"{kind}-{digest.hexdigest()[:16]}", kind, tuple(concepts))


def plan_run(
    planned: Iterable[PlannedConcept],
    failures: Iterable[ConceptFailure],
    committed: Mapping[str, CommittedConcept],
    *,
    current: Iterable[str] = (),
) -> RunPlan:
    """Sort a manifest's concepts into those to train, those to render again, and current ones.

    Args:
        planned: the rows that could be fingerprinted, in the manifest's order, which the plan keeps.
        failures: one for each row that could not.
        committed: the concepts in the catalog, by id.
        current: ids of rows that are known to be current and are not in `planned`.

    Raises:
        ValueError: two rows have the same concept id.
    """
    failures, known_current = tuple(failures), tuple(current)
    train, render_only, found_current = [], [], []
    for concept, held in _with_committed(planned, committed):
        if held is None or held.training_fingerprint != concept.fingerprints.training:
            train.append(PlannedConcept(concept.row, concept.fingerprints, held))
        elif held.rendering_fingerprint != concept.fingerprints.rendering:
            render_only.append(PlannedConcept(concept.row, concept.fingerprints, held))
        else:
            found_current.append(concept.concept_id)
    plan = RunPlan(tuple(train), tuple(render_only), (*known_current, *found_current), (), failures)
    return replace(plan, removed=tuple(sorted(committed.keys() - _unique_ids(plan))))


def _with_committed(
    planned: Iterable[PlannedConcept], committed: Mapping[str, CommittedConcept]
) -> Iterator[tuple[PlannedConcept, CommittedConcept | None]]:
    """Each concept with its committed state, or None; looked up in batches."""
    remaining = iter(planned)
    while batch := list(islice(remaining, _LOOKUP_BATCH)):
        held = get_many_without_scores(committed, [concept.concept_id for concept in batch])
        yield from zip(batch, held, strict=True)


def _unique_ids(plan: RunPlan) -> set[str]:
    """The ids of all rows; raises ValueError if two rows have the same."""
    ids = {concept.concept_id for concept in (*plan.train, *plan.render_only)}
    ids.update(plan.current, (failure.concept_id for failure in plan.failures))
    if len(ids) != plan.rows:
        work = [concept.concept_id for concept in (*plan.train, *plan.render_only)]
        counts = Counter([*work, *plan.current, *(failure.concept_id for failure in plan.failures)])
        twice = sorted(concept_id for concept_id, count in counts.items() if count > 1)
        raise ValueError(f"planned twice: {', '.join(twice)}")
    return ids


def make_shards(plan: RunPlan, size: int, *, workers: int = 1, pack_size: int = 1) -> list[Shard]:
    """Cut a plan's work into shards of at most `size` concepts, those to train first, because they take longest.

    To fill packs, a shard's size is a multiple of `pack_size` if `size` allows. If the work is small for the number of
    workers, shards are smaller, down to one pack, so that workers finish at about the same time.

    Args:
        workers: the number of workers that share the work.
        pack_size: the number of concepts trained together.

    Raises:
        ValueError: `size`, `workers` or `pack_size` is below 1.
    """
    for name, number in (("size", size), ("workers", workers), ("pack_size", pack_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if workers > 1:
        size = min(size, max(pack_size, (len(plan.train) + len(plan.render_only)) // (workers * MIN_SHARDS_PER_WORKER)))
    size -= size % pack_size if size > pack_size else 0
    return [*_cut("train", plan.train, size), *_cut("render", plan.render_only, size)]


def _cut(kind: ShardKind, concepts: tuple[PlannedConcept, ...], size: int) -> list[Shard]:
    return [Shard.of(kind, concepts[start : start + size]) for start in range(0, len(concepts), size)]


def split_shard(shard: Shard) -> tuple[Shard, Shard]:
    """Halve a shard that keeps failing, to isolate the concept that causes it.

    Raises:
        ValueError: the shard holds a single concept.
    """
    if len(shard.concepts) < 2:
        raise ValueError(f"shard {shard.shard_id} holds {len(shard.concepts)} concept and cannot be split")
    middle = (len(shard.concepts) + 1) // 2
    return Shard.of(shard.kind, shard.concepts[:middle]), Shard.of(shard.kind, shard.concepts[middle:])
