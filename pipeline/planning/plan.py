"""What a run has to do, and in which portions. Pure functions over plain values.

A concept is current only if the catalog holds it under the fingerprints it has now. A changed prompt changes the
rendering fingerprint alone, so the concept is rendered again from the residual it already has.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ...core.errors import ConceptFailure
from ..catalog.commit_record import CommittedConcept, Fingerprints, ShardKind
from ..catalog.committed import places_of_each
from ..manifest.row import ManifestRow

SHARDS_A_WORKER = 3
"""At least so many, where there is work enough: a worker that ends early then takes a share of what is left."""


_CONCEPTS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class PlannedConcept:
    """A manifest row and what it would be done with.

    `committed` is what the catalog holds of it, without scores; None if it holds nothing. For a concept that only needs
    rendering it says where the residual is; for one to train, where one trained otherwise is, to start warm from.
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

    `current` are ids alone, for a manifest may have a million such rows. `removed` names concepts that the catalog
    holds and the manifest no longer lists; nothing is done to them.
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
    *,
    current: Iterable[str] = (),
) -> RunPlan:
    """Sort a manifest's concepts into those to train, those to render again, and those with nothing to do.

    Args:
        planned: the rows that could be fingerprinted, in the manifest's order, which the plan keeps.
        failures: the rows that could not, one failure each.
        committed: what the catalog holds.
        current: the ids of rows that are already known to be current, and not in `planned`.

    Raises:
        ValueError: a concept is given twice.
    """
    failures, known_current = tuple(failures), tuple(current)
    train, render_only, found_current = [], [], []
    for concept, held in _with_what_is_held(planned, committed):
        if held is None or held.training_fingerprint != concept.fingerprints.training:
            train.append(PlannedConcept(concept.row, concept.fingerprints, held))
        elif held.rendering_fingerprint != concept.fingerprints.rendering:
            render_only.append(PlannedConcept(concept.row, concept.fingerprints, held))
        else:
            found_current.append(concept.concept_id)
    plan = RunPlan(tuple(train), tuple(render_only), (*known_current, *found_current), (), failures)
    return replace(plan, removed=tuple(sorted(committed.keys() - _different_ids(plan))))


def _with_what_is_held(
    planned: Iterable[PlannedConcept], committed: Mapping[str, CommittedConcept]
) -> Iterator[tuple[PlannedConcept, CommittedConcept | None]]:
    remaining = iter(planned)
    while portion := list(islice(remaining, _CONCEPTS_AT_A_TIME)):
        held = places_of_each(committed, [concept.concept_id for concept in portion])
        yield from zip(portion, held, strict=True)


def _different_ids(plan: RunPlan) -> set[str]:
    """The ids of all rows; raises ValueError where two rows share one."""
    ids = {concept.concept_id for concept in (*plan.train, *plan.render_only)}
    ids.update(plan.current, (failure.concept_id for failure in plan.failures))
    if len(ids) != plan.rows:
        work = [concept.concept_id for concept in (*plan.train, *plan.render_only)]
        counts = Counter([*work, *plan.current, *(failure.concept_id for failure in plan.failures)])
        twice = sorted(concept_id for concept_id, count in counts.items() if count > 1)
        raise ValueError(f"planned twice: {', '.join(twice)}")
    return ids


def make_shards(plan: RunPlan, size: int, *, workers: int = 1, pack_size: int = 1) -> list[Shard]:
    """Cut a plan's work into shards of at most `size` concepts, those to train first: they take longest.

    Packs are to be full, so a shard is a multiple of `pack_size` where `size` allows. Where there is little work for
    several workers, shards are smaller, but never less than a pack, so that no worker waits long for another's last.

    Args:
        workers: how many will share the work.
        pack_size: how many concepts are trained together.

    Raises:
        ValueError: `size`, `workers` or `pack_size` is below 1.
    """
    for name, number in (("size", size), ("workers", workers), ("pack_size", pack_size)):
        if number < 1:
            raise ValueError(f"{name} of a shard is at least 1, not {number}")
    if workers > 1:
        size = min(size, max(pack_size, (len(plan.train) + len(plan.render_only)) // (workers * SHARDS_A_WORKER)))
    size -= size % pack_size if size > pack_size else 0
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
