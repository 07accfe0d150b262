"""Remove every trace of a concept from a catalog: faces are concepts, and people withdraw their consent.

The catalog is readable at every moment. First the fence is raised, so that a lost run's worker brings nothing back. The
rows of other concepts are rewritten under new names; then one index snapshot refers to them; then the records and
snapshots before it are removed; and only then the files with rows of the forgotten concepts. A crash in between leaves
objects twice and the concept forgotten in part: forgetting it again completes it. A record that still refers to an old
file ties with the snapshot that refers to the new one; both hold the same rows, and the old file stays until no record
names it.

Data files that nothing committed refers to are removed rather than rewritten, and so are temporary files and torn
records, which cannot be searched. The documents of runs come last, since they still name the concept when a crash has
left nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import CatalogHeld, StoreError
from ..catalog import layout
from ..catalog.data_file import data_file_bytes, drop_concepts, read_data_file, referenced_files
from ..catalog.fence import raise_fence
from ..catalog.index import read_committed, rewrite_index, unused_objects
from ..catalog.layout import AttemptPaths
from ..catalog.parquet_file import footer_digest
from ..catalog.schemas import INDEX
from ..catalog.store import CatalogStore
from ..shard.commit import RENDERINGS_PER_ROW_GROUP, RESIDUALS_PER_ROW_GROUP
from .redact import find_documents, redact_document
from .traces import OnProgress, Traces, find_traces, require_known

CheckLease = Callable[[], None]

_WRITERS = 4  # each holds a file's rows twice
_MAX_PASSES = 10
_LOCATION_COLUMNS = ("residual_file", "residual_row", "rendering_file", "rendering_rows")
REWRITTEN = re.compile(r"-f\d+$")
"""The end of an attempt's name in the name of a file that `forget` has rewritten."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What `forget` changed: data files rewritten without the concepts, data files removed, documents changed."""

    concept_ids: tuple[str, ...]
    rewritten: int
    removed: int
    documents: int


@dataclass(frozen=True, slots=True)
class _RewrittenFile:
    """The file that replaces a data file, and the new number of each old row, -1 where it is removed."""

    path: str
    rows: Sequence[int]


@dataclass(slots=True)
class _Changes:
    """The paths of data files that were rewritten or removed."""

    rewritten: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)


def forget(
    store: CatalogStore,
    concept_ids: Collection[str],
    *,
    generation: int = 0,
    on_progress: OnProgress = lambda done, total: None,
    check: CheckLease = lambda: None,
) -> Forgotten:
    """Remove every trace of some concepts; all others stay readable and unchanged at every moment.

    The caller holds the catalog's lease. After an error or a crash the concepts may be forgotten in part: repeat it.

    Args:
        concept_ids: committed or not: any that has a row or a record, or is named in a run's documents.
        generation: of the caller's lease.
        on_progress: called with (data files searched, all of them).
        check: called before and after every change of a document and before every other one; raises if the lease is
            lost, as `Lease.confirm`.

    Raises:
        CatalogHeld: another process has taken over the catalog.
        InvalidInput: there is no trace of one of the concepts. Nothing was removed.
        StoreError: the catalog cannot be read or written, or a damaged file also holds other concepts.
    """
    traces = find_traces(store, concept_ids, on_progress=on_progress)
    require_known(store, traces)
    check()
    raise_fence(store, generation)
    traces = find_traces(store, concept_ids, searched=traces.searched, results_only=True)
    wanted, changes = traces.concept_ids, _Changes()
    for _ in range(_MAX_PASSES):  # again, since an attempt of a lost run may have committed meanwhile
        _remove_unused(store, check)
        _remove_results(store, traces, changes, generation, check)
        traces = find_traces(store, wanted, searched=traces.searched, results_only=True)
        if not traces.in_results:
            break
    else:
        raise StoreError(
            f"another process keeps committing {sorted(wanted)[:3]} to {store.uri}",
            fix="end all runs of this catalog, then forget again",
        )
    _remove_unused(store, check)
    _remove_temporary_files(store, check)
    documents = _redact_documents(store, wanted, check)
    return Forgotten(tuple(sorted(wanted)), len(changes.rewritten), len(changes.removed), documents)


def _remove_results(store: CatalogStore, traces: Traces, changes: _Changes, generation: int, check: CheckLease) -> None:
    """Rewrite data files and index without the concepts; then remove the old ones, records first."""
    check()
    paths, written, still_needed = sorted(traces.shared), list[str](), set[str]()
    rewrite = partial(_rewrite, store, wanted=traces.concept_ids, generation=generation, written=written, check=check)

    def change(table: pa.Table) -> pa.Table:
        changed = _update_index(table, traces.concept_ids, rewritten)
        still_needed.update(referenced_files(changed))
        return changed

    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            rewritten = dict(zip(paths, pool.map(rewrite, paths), strict=True))
        if traces.recorded or rewritten:
            check()
            rewrite_index(store, change, generation=generation)
    except CatalogHeld:
        # Whoever has taken over the catalog may be forgetting others, whose rows these files have.
        for path in set(written) - referenced_files(read_committed(store).to_table()):
            store.delete(path)
        raise
    for path in sorted((traces.shared | traces.own | traces.unreadable) - still_needed):
        check()
        store.delete(path)
        (changes.rewritten if path in rewritten else changes.removed).add(path)


def _rewrite(
    store: CatalogStore,
    path: str,
    *,
    wanted: frozenset[str],
    generation: int,
    written: list[str],
    check: CheckLease,
) -> _RewrittenFile:
    """Write a file's other rows under a new name, which is added to `written`."""
    kept, numbers = drop_concepts(read_data_file(store, path, lambda parquet: parquet.read()), wanted)
    old, is_residuals = AttemptPaths.parse(path), path.startswith(layout.RESIDUALS)
    if old is None:
        raise StoreError(
            f"{store.url(path)} holds rows of these concepts, but was not written by persres-batch",
            fix="take it out of the catalog, or take their rows out of it; then forget again",
        )
    data = data_file_bytes(kept, RESIDUALS_PER_ROW_GROUP if is_residuals else RENDERINGS_PER_ROW_GROUP)
    # With the generation, so that no process that is behind can take the new file for an old one that it is to delete.
    paths = replace(old, attempt=f"{REWRITTEN.sub('', old.attempt)}-f{generation}")
    new = (paths.residuals if is_residuals else paths.renderings)(footer_digest(data))
    check()
    written.append(new)
    store.write(new, data)
    if store.read(new) != data:
        raise StoreError(f"{store.url(new)} does not hold what was written to it", fix="delete it; forget again")
    return _RewrittenFile(new, numbers)


def _update_index(table: pa.Table, concept_ids: Collection[str], rewritten: Mapping[str, _RewrittenFile]) -> pa.Table:
    """Return a table of schema `INDEX` without some concepts; rows of others refer to the rewritten files.

    Dictionaries are rebuilt: a plain filter would keep values that only the forgotten rows had.
    """
    dropped = pc.is_in(table.column("concept_id"), pa.array(sorted(concept_ids), pa.string()))  # pyright: ignore
    table = table.filter(pc.invert(dropped))  # pyright: ignore[reportAttributeAccessIssue]
    columns = {
        column.name: table.column(column.name).to_pylist() for column in INDEX if column.name in _LOCATION_COLUMNS
    }
    residuals, renderings = columns["residual_file"], columns["rendering_file"]
    for row, path in enumerate(residuals):
        if new := rewritten.get(path):
            residuals[row], columns["residual_row"][row] = new.path, new.rows[columns["residual_row"][row]]
    for row, path in enumerate(renderings):
        if new := rewritten.get(path):
            first, count = columns["rendering_rows"][row]
            renderings[row], columns["rendering_rows"][row] = new.path, [new.rows[first], count]
    arrays = []
    for column in INDEX:
        if column.name in columns:
            arrays.append(pa.array(columns[column.name], column.type))
        elif pa.types.is_dictionary(column.type):
            arrays.append(table.column(column.name).cast(pa.string()).combine_chunks().cast(column.type))
        else:
            arrays.append(table.column(column.name))
    return pa.table(arrays, schema=INDEX)


def _remove_unused(store: CatalogStore, check: CheckLease) -> None:
    """Remove records and snapshots without effect: any of them may hold any concept."""
    unused = unused_objects(store)
    for path in (*unused.torn, *unused.refused, *unused.replaced):
        check()
        store.delete(path)


def _remove_temporary_files(store: CatalogStore, check: CheckLease) -> None:
    """Remove what killed writers have left: any of it may hold any concept."""
    for path in store.stat_all(hidden=True):
        name = path.rsplit("/", 1)[-1]
        if name.startswith(".") and name.endswith(".tmp") and not path.startswith(layout.LEASES):
            check()
            store.delete(path)


def _redact_documents(store: CatalogStore, wanted: frozenset[str], check: CheckLease) -> int:
    """Remove the concepts from the documents of runs; returns the number of changed documents."""
    changed = 0
    for path, _ in find_documents(store, wanted):
        document = redact_document(path, store.read(path), wanted)
        check()
        if document is None:
            store.delete(path)
        else:
            _replace_document(store, path, document, check)
        changed += 1
    return changed


def _replace_document(store: CatalogStore, path: str, document: bytes, check: CheckLease) -> None:
    """Overwrite a document, unless the lease is lost, even if this process was suspended before the write.

    Whoever holds the lease then may have redacted the document too, and this write has undone that: it is removed.
    """
    store.write(path, document)
    try:
        check()
    except CatalogHeld:
        store.delete(path)
        raise
