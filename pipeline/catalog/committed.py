"""The committed concepts of a catalog as a mapping over Arrow columns: a few hundred megabytes for a million concepts.

A `CommittedConcept` is created only for the concepts that are looked up. Whether a concept is committed under given
fingerprints, which a plan checks for every row of a manifest, is read from the columns.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from .commit_record import CommittedConcept, Fingerprints, supersedes
from .data_file import referenced_files
from .schemas import INDEX, committed_concepts

_CONCEPTS_PER_BATCH = 4096


class CommittedConcepts(Mapping[str, CommittedConcept]):
    """The committed state of every concept by concept id, sorted by id.

    Args:
        tables: of schema `INDEX`. If several rows hold one concept, `supersedes` selects one.
    """

    def __init__(self, tables: Iterable[pa.Table] = ()) -> None:
        self._table = pa.concat_tables(list(tables) or [INDEX.empty_table()]).combine_chunks()
        self._order = [self._table.column(name) for name in ("run_id", "attempt", "shard_id")]
        self._training = self._table.column("training_fingerprint")
        self._rendering = self._table.column("rendering_fingerprint")
        self._row_of = self._select_rows()

    def __getitem__(self, concept_id: str) -> CommittedConcept:
        return self._to_concepts([self._row_of[concept_id]])[0]

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

    def get_many(self, concept_ids: Sequence[str], *, scores: bool = True) -> list[CommittedConcept | None]:
        """`get` for many ids. For some thousands it takes a tenth of the time, and half of that without scores."""
        rows = [self._row_of.get(concept_id) for concept_id in concept_ids]
        found = iter(self._to_concepts([row for row in rows if row is not None], scores=scores))
        return [None if row is None else next(found) for row in rows]

    def holds(self, concept_id: str, fingerprints: Fingerprints) -> bool:
        """Whether the concept is committed under exactly these fingerprints, so that no work is left for it."""
        row = self._row_of.get(concept_id)
        return (
            row is not None
            and self._training[row].as_py() == fingerprints.training
            and self._rendering[row].as_py() == fingerprints.rendering
        )

    def concepts_of_run(self, run_id: str) -> frozenset[str]:
        """The concepts whose committed state comes from this run."""
        runs = self._table.column("run_id").to_pylist()
        return frozenset(concept_id for concept_id, row in self._row_of.items() if runs[row] == run_id)

    def files(self) -> set[str]:
        """The data files of all commits that were read, also of those that others take precedence over."""
        return referenced_files(self._table)

    def newest_run(self) -> str:
        """The latest run that committed any of the rows; empty if there are none."""
        return max(self._table.column("run_id").unique().to_pylist(), default="")

    def to_table(self) -> pa.Table:
        """A table of schema `INDEX` with one row per concept, sorted by id."""
        return self._table.take(pa.array(self._row_of.values(), pa.int64()))

    def _to_concepts(self, rows: Sequence[int], *, scores: bool = True) -> list[CommittedConcept]:
        return committed_concepts(self._table.take(pa.array(rows, pa.int64())), scores=scores)

    def _select_rows(self) -> dict[str, int]:
        """The row with each concept's current state, by concept id in sorted order."""
        row_of: dict[str, int] = {}
        for row, concept_id in enumerate(self._table.column("concept_id").to_pylist()):
            held = row_of.setdefault(concept_id, row)
            if held != row and supersedes(self._commit_key(row), self._commit_key(held)):
                row_of[concept_id] = row
        return dict(sorted(row_of.items()))

    def _commit_key(self, row: int) -> tuple[str, str, str]:
        run_id, attempt, shard_id = (column[row].as_py() for column in self._order)
        return run_id, attempt, shard_id


class _Items(ItemsView[str, CommittedConcept]):
    _mapping: CommittedConcepts

    def __iter__(self) -> Iterator[tuple[str, CommittedConcept]]:
        concept_ids = iter(self._mapping)
        while batch := list(islice(concept_ids, _CONCEPTS_PER_BATCH)):
            for concept_id, concept in zip(batch, self._mapping.get_many(batch), strict=True):
                assert concept is not None, "every key of the mapping is in it"
                yield concept_id, concept


class _Values(ValuesView[CommittedConcept]):
    _mapping: CommittedConcepts

    def __iter__(self) -> Iterator[CommittedConcept]:
        return (concept for _, concept in self._mapping.items())


def get_many_without_scores(
    committed: Mapping[str, CommittedConcept], concept_ids: Sequence[str]
) -> list[CommittedConcept | None]:
    """`get` for many ids in any mapping, without scores: work on a concept needs none, and a million are large."""
    if isinstance(committed, CommittedConcepts):
        return committed.get_many(concept_ids, scores=False)
    found = (committed.get(concept_id) for concept_id in concept_ids)
    return [concept and replace(concept, scores={}) for concept in found]
