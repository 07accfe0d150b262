"""Find a concept everywhere in a catalog: in the index and the records, in data files, in the documents of runs."""

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
from ..catalog.data_file import DamagedFile, concepts_in_file, data_files, read_data_file
from ..catalog.index import read_committed, read_records
from ..catalog.store import CatalogStore
from .redact import find_documents

OnProgress = Callable[[int, int], None]

_READERS = 8
_MAX_COMPARED = 20_000  # ids; comparing is slow


@dataclass(frozen=True, slots=True)
class Traces:
    """Where a catalog holds or names some concepts.

    Attributes:
        concept_ids: the concepts that were searched for.
        recorded: those that the index or a loose record lists, as committed or as failed.
        shared: data files with rows of them that also hold committed results of others.
        own: data files with rows of them that no other concept needs.
        unreadable: damaged data files that no other concept needs: they may hold anything.
        documents: documents of runs that name them.
        unknown: those without any trace, sorted.
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
        """Whether data files, the index or a record hold any of the concepts."""
        return bool(self.recorded or self.shared or self.own)


def find_traces(
    store: CatalogStore,
    concept_ids: Collection[str],
    *,
    searched: frozenset[str] = frozenset(),
    results_only: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> Traces:
    """Search a catalog for concepts; changes nothing.

    Args:
        searched: data files to skip.
        results_only: do not search the documents of runs, and leave `unknown` empty.
        on_progress: called with (data files searched, all of them).

    Raises:
        StoreError: the catalog cannot be read, or a damaged file also holds other concepts.
    """
    wanted = frozenset(concept_ids)
    paths = [path for path in data_files(store) if path not in searched]
    holders, damaged = _holders(store, paths, wanted, on_progress)
    committed = read_committed(store)
    needed = _needed_by_others(committed, {*holders, *damaged}, wanted)
    for path in damaged & needed.keys():
        raise StoreError(
            f"{store.url(path)} is damaged and also holds other concepts, so no rows can be removed from it",
            fix=f"forget these as well, then submit again: {' '.join(sorted(needed[path]))}; or restore it from a copy",
        )
    recorded = _recorded(store, committed, wanted)
    named = {} if results_only else dict(find_documents(store, wanted))
    certain = (found for path, found in named.items() if path.endswith(".json"))  # a report's text may be anything
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
    """Raise InvalidInput, suggesting similar ids, if there is no trace of one of the concepts."""
    if not traces.unknown:
        return
    committed = read_committed(store)
    lines = []
    for concept_id in traces.unknown:
        candidates = (other for other in committed if other[:1].lower() == concept_id[:1].lower())
        near = get_close_matches(concept_id, islice(candidates, _MAX_COMPARED), cutoff=0.5)
        lines.append(concept_id + (f" (did you mean {', '.join(near)}?)" if near else ""))
    raise InvalidInput(f"{store.uri} has no trace of {'; '.join(lines)}", fix="check the spelling; nothing was removed")


def _holders(
    store: CatalogStore, paths: Sequence[str], wanted: frozenset[str], on_progress: OnProgress
) -> tuple[dict[str, frozenset[str]], set[str]]:
    """Which files have rows of which concepts, and which are damaged."""
    holders: dict[str, frozenset[str]] = {}
    damaged: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(partial(_search_file, store, wanted=wanted), paths)
        for done, (path, found) in enumerate(zip(paths, results, strict=True), start=1):
            if found is None:
                damaged.add(path)
            elif found:
                holders[path] = found
            on_progress(done, len(paths))
    return holders, damaged


def _search_file(store: CatalogStore, path: str, *, wanted: frozenset[str]) -> frozenset[str] | None:
    try:
        return read_data_file(store, path, lambda parquet: concepts_in_file(parquet, wanted), in_parts=True)
    except DamagedFile:
        return None


def _needed_by_others(
    committed: CommittedConcepts, paths: Collection[str], wanted: frozenset[str]
) -> dict[str, set[str]]:
    """Those of the files that hold committed results of other concepts, and of which."""
    if not paths:
        return {}
    needed: dict[str, set[str]] = {}
    table = committed.to_table()
    searched = pa.array(sorted(paths), pa.string())
    for name in ("residual_file", "rendering_file"):
        files = table.column(name).cast(pa.string())
        rows = pc.is_in(files, searched)  # pyright: ignore[reportAttributeAccessIssue]
        pairs = zip(files.filter(rows).to_pylist(), table.column("concept_id").filter(rows).to_pylist(), strict=True)
        for path, concept_id in pairs:
            if concept_id not in wanted:
                needed.setdefault(path, set()).add(concept_id)
    return needed


def _recorded(store: CatalogStore, committed: CommittedConcepts, wanted: frozenset[str]) -> frozenset[str]:
    """The concepts that the index or a loose record lists."""
    found = wanted & committed.keys()
    for record in read_records(store):
        found |= wanted.intersection(one.concept_id for one in (*record.concepts, *record.failures))
    return frozenset(found)
