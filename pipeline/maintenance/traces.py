"""Where in a catalog a concept is: in the index and the records, in data files, in the documents of runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import InvalidInput, StoreError
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import DamagedFile, concepts_among, data_files, read_data_file
from ..catalog.index import read_committed, read_records
from ..catalog.store import CatalogStore
from .redact import naming_documents

Progress = Callable[[int, int], None]

_READERS = 8
_NEAR_AMONG = 20_000


@dataclass(frozen=True, slots=True)
class Traces:
    """Where a catalog holds or names some concepts.

    Attributes:
        concept_ids: those asked for.
        recorded: those that the index or a loose record speaks of, as committed or as failed.
        shared: data files with rows of them in which committed results of others lie too.
        own: data files with rows of them that nobody else needs.
        unreadable: damaged data files that nobody else needs: they may hold anything.
        documents: documents of runs that name them.
        unknown: those of which there is no trace, sorted.
        searched: data files that hold none of them.
    """

    concept_ids: frozenset[str]
    recorded: frozenset[str]
    shared: frozenset[str]
    own: frozenset[str]
    unreadable: frozenset[str]
    documents: frozenset[str]
    unknown: tuple[str, ...]
    searched: frozenset[str]

    @property
    def in_results(self) -> bool:
        """Whether data files, the index or a record have them."""
        return bool(self.recorded or self.shared or self.own)


def find_traces(
    store: CatalogStore,
    concept_ids: Collection[str],
    *,
    searched: frozenset[str] = frozenset(),
    results_only: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> Traces:
    """Look for concepts everywhere in a catalog; changes nothing.

    Args:
        searched: data files that need not be looked into.
        results_only: leave the documents of runs out, and so what is unknown.
        on_progress: called with (data files searched, all of them).

    Raises:
        StoreError: the catalog cannot be read, or a file in which others lie is damaged.
    """
    wanted = frozenset(concept_ids)
    paths = [path for path in data_files(store) if path not in searched]
    holders, damaged = _holders(store, paths, wanted, on_progress)
    committed = read_committed(store)
    needed = _needed_by_others(committed, {*holders, *damaged}, wanted)
    for path in damaged & needed.keys():
        raise StoreError(
            f"{store.url(path)} is damaged, so that nothing can be taken out of it; others lie in it too",
            fix=f"forget these as well, then submit again: {' '.join(sorted(needed[path]))}; or restore it from a copy",
        )
    recorded = _recorded(store, committed, wanted)
    named = {} if results_only else dict(naming_documents(store, wanted))
    certain = (found for path, found in named.items() if path.endswith(".json"))  # a report's words may be anything
    known = recorded.union(*holders.values(), *certain)
    return Traces(
        concept_ids=wanted,
        recorded=recorded,
        shared=frozenset(holders.keys() & needed.keys()),
        own=frozenset(holders.keys() - needed.keys()),
        unreadable=frozenset(damaged),
        documents=frozenset(named),
        unknown=() if results_only else tuple(sorted(wanted - known)),
        searched=searched.union(paths) - holders.keys() - damaged,
    )


def require_known(store: CatalogStore, traces: Traces) -> None:
    """Raises InvalidInput, naming the nearest ids, if there is no trace of one of the concepts."""
    if not traces.unknown:
        return
    committed = read_committed(store)
    lines = []
    for concept_id in traces.unknown:
        alike = (other for other in committed if other[:1].lower() == concept_id[:1].lower())
        near = get_close_matches(concept_id, islice(alike, _NEAR_AMONG), cutoff=0.5)
        lines.append(concept_id + (f" (did you mean {', '.join(near)}?)" if near else ""))
    raise InvalidInput(f"{store.uri} has no trace of {'; '.join(lines)}", fix="check the spelling; nothing was removed")


def _holders(
    store: CatalogStore, paths: Sequence[str], wanted: frozenset[str], on_progress: Progress
) -> tuple[dict[str, frozenset[str]], set[str]]:
    """Which files have rows of which concepts, and which are damaged."""
    holders: dict[str, frozenset[str]] = {}
    damaged: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        looks = pool.map(partial(_look, store, wanted=wanted), paths)
        for done, (path, found) in enumerate(zip(paths, looks, strict=True), start=1):
            if found is None:
                damaged.add(path)
            elif found:
                holders[path] = found
            on_progress(done, len(paths))
    return holders, damaged


def _look(store: CatalogStore, path: str, *, wanted: frozenset[str]) -> frozenset[str] | None:
    try:
        return read_data_file(store, path, lambda parquet: concepts_among(parquet, wanted), in_parts=True)
    except DamagedFile:
        return None


def _needed_by_others(
    committed: CommittedConcepts, paths: Collection[str], wanted: frozenset[str]
) -> dict[str, set[str]]:
    """Of these files, those in which committed results of other concepts lie, and of which."""
    if not paths:
        return {}
    needed: dict[str, set[str]] = {}
    table = committed.to_table()
    asked = pa.array(sorted(paths), pa.string())
    for name in ("residual_file", "rendering_file"):
        files = table.column(name).cast(pa.string())
        rows = pc.is_in(files, asked)  # pyright: ignore[reportAttributeAccessIssue]
        pairs = zip(files.filter(rows).to_pylist(), table.column("concept_id").filter(rows).to_pylist(), strict=True)
        for path, concept_id in pairs:
            if concept_id not in wanted:
                needed.setdefault(path, set()).add(concept_id)
    return needed


def _recorded(store: CatalogStore, committed: CommittedConcepts, wanted: frozenset[str]) -> frozenset[str]:
    found = wanted & committed.keys()
    for record in read_records(store):
        found |= wanted.intersection(one.concept_id for one in (*record.concepts, *record.failures))
    return frozenset(found)
