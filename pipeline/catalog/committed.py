"""What a catalog holds, for a million concepts in a few hundred megabytes: Arrow columns behind a mapping.

Rows stay columns until somebody asks for a concept. The question a plan asks of every row of a manifest, whether the
catalog holds the concept under these fingerprints, is answered without making an object of it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from .commit_record import CommittedConcept, Fingerprints, supersedes
from .schemas import INDEX, committed_concepts

_CONCEPTS_AT_A_TIME = 4096


class CommittedConcepts(Mapping[str, CommittedConcept]):
    """The one committed state of every concept, by concept id and in the order of the ids.

    Args:
        tables: of schema `INDEX`; where several rows speak of a concept, `supersedes` says which one counts.
    """

    def __init__(self, tables: Iterable[pa.Table] = ()) -> None:
        self._table = pa.concat_tables([INDEX.empty_table(), *tables]).combine_chunks()
        self._order = [self._table.column(name) for name in ("run_id", "attempt", "shard_id")]
        self._training = self._table.column("training_fingerprint")
        self._rendering = self._table.column("rendering_fingerprint")
        self._row_of = self._winners()

    def __getitem__(self, concept_id: str) -> CommittedConcept:
        return self._decoded([self._row_of[concept_id]])[0]

    def __contains__(self, concept_id: object) -> bool:
        return concept_id in self._row_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __len__(self) -> int:
        return len(self._row_of)

    def items(self) -> ItemsView[str, CommittedConcept]:
        return _Items(self)

    def values(self) -> ValuesView[CommittedConcept]:
        return _Values(self)

    def of_each(self, concept_ids: Sequence[str], *, scores: bool = True) -> list[CommittedConcept | None]:
        """`get` of many ids; of some thousands at a time it takes a tenth of the time. Without scores, half of it."""
        rows = [self._row_of.get(concept_id) for concept_id in concept_ids]
        found = iter(self._decoded([row for row in rows if row is not None], scores=scores))
        return [None if row is None else next(found) for row in rows]

    def holds(self, concept_id: str, fingerprints: Fingerprints) -> bool:
        """Whether the concept is committed under exactly these fingerprints: then there is nothing to do for it."""
        row = self._row_of.get(concept_id)
        return (
            row is not None
            and self._training[row].as_py() == fingerprints.training
            and self._rendering[row].as_py() == fingerprints.rendering
        )

    def of_run(self, run_id: str) -> frozenset[str]:
        """The concepts whose committed state is the work of this run."""
        runs = self._table.column("run_id").to_pylist()
        return frozenset(concept_id for concept_id, row in self._row_of.items() if runs[row] == run_id)

    def newest_run(self) -> str:
        """The latest run that any of it comes from; empty where nothing is committed."""
        return max(self._table.column("run_id").unique().to_pylist(), default="")

    def to_table(self) -> pa.Table:
        """A row a concept, of schema `INDEX`, in the order of the ids."""
        return self._table.take(pa.array(self._row_of.values(), pa.int64()))

    def _decoded(self, rows: Sequence[int], *, scores: bool = True) -> list[CommittedConcept]:
        return committed_concepts(self._table.take(pa.array(rows, pa.int64())), scores=scores)

    def _winners(self) -> dict[str, int]:
        """The row of every concept that counts, by id."""
        row_of: dict[str, int] = {}
        for row, concept_id in enumerate(self._table.column("concept_id").to_pylist()):
            held = row_of.setdefault(concept_id, row)
            if held != row and supersedes(self._commit(row), self._commit(held)):
                row_of[concept_id] = row
        return dict(sorted(row_of.items()))

    def _commit(self, row: int) -> tuple[str, str, str]:
        run_id, attempt, shard_id = (column[row].as_py() for column in self._order)
        return run_id, attempt, shard_id


class _Items(ItemsView[str, CommittedConcept]):
    _mapping: CommittedConcepts

    def __iter__(self) -> Iterator[tuple[str, CommittedConcept]]:
        names = iter(self._mapping)
        while portion := list(islice(names, _CONCEPTS_AT_A_TIME)):
            for name, concept in zip(portion, self._mapping.of_each(portion), strict=True):
                assert concept is not None, "every name of a mapping is in it"
                yield name, concept


class _Values(ValuesView[CommittedConcept]):
    _mapping: CommittedConcepts

    def __iter__(self) -> Iterator[CommittedConcept]:
        return (concept for _, concept in self._mapping.items())


def places_of_each(
    committed: Mapping[str, CommittedConcept], concept_ids: Sequence[str]
) -> list[CommittedConcept | None]:
    """What any mapping holds of each concept apart from its scores: its fingerprints, and where its rows lie.

    That is what work on a concept needs to know, and all of it fits a million times into memory.
    """
    if isinstance(committed, CommittedConcepts):
        return committed.of_each(concept_ids, scores=False)
    held = (committed.get(concept_id) for concept_id in concept_ids)
    return [one and replace(one, scores={}) for one in held]
