"""A slow, obvious reference for which of several commits is a concept's current state."""

from __future__ import annotations

from collections.abc import Iterable

from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit


def expected_concepts(records: Iterable[ShardCommit]) -> dict[str, CommittedConcept]:
    """The committed state of every concept, sorted by id: of the latest run, and in it of the first attempt."""
    by_attempt = sorted(records, key=lambda record: (record.attempt, record.shard_id))
    concepts: dict[str, CommittedConcept] = {}
    for record in sorted(by_attempt, key=lambda record: record.run_id, reverse=True):
        for concept in record.concepts:
            concepts.setdefault(concept.concept_id, concept)
    return dict(sorted(concepts.items()))
