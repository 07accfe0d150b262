"""What a plan may count on: committed concepts whose data files are there.

A data file that somebody has deleted is found by listing, before anything is read. Its concepts are then no longer
current: those without their residual are trained again, those without their renderings are rendered again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pyarrow as pa
import pyarrow.compute as pc

from ...core.plural import plural
from .committed import CommittedConcepts
from .data_file import data_files, referenced_files
from .index import read_committed
from .store import CatalogStore

_FILES = {"residual_file": "training_fingerprint", "rendering_file": "rendering_fingerprint"}
"""The columns with data files, and for each the fingerprint that holds only with its file."""


def read_present(store: CatalogStore, on_missing: Callable[[str], None] = lambda text: None) -> CommittedConcepts:
    """As `read_committed`, but concepts whose data files are missing have an empty fingerprint, which no row has.

    Args:
        on_missing: called with a text that names a missing file, for each.

    Raises:
        StoreError: as for `read_committed`, or the data files cannot be listed.
    """
    committed = read_committed(store)
    missing = committed.files() - set(data_files(store))
    if not missing:
        return committed
    # They may belong to results of the past, or `forget` may have moved their rows since: read and look again.
    table = read_committed(store).to_table()
    missing = {path for path in referenced_files(table) & missing if not store.exists(path)}
    for path in sorted(missing):
        count = plural(_rows_of(table, [path]), "concept")
        on_missing(f"{store.url(path)} is missing: its {count} must be done again")
    for column, fingerprint in _FILES.items():
        kept = pc.if_else(_is_in(table, column, missing), "", table.column(fingerprint))  # pyright: ignore
        table = table.set_column(table.schema.get_field_index(fingerprint), table.schema.field(fingerprint), kept)
    return CommittedConcepts([table])


def _rows_of(table: pa.Table, paths: Collection[str]) -> int:
    return sum(pc.sum(_is_in(table, column, paths)).as_py() or 0 for column in _FILES)  # pyright: ignore


def _is_in(table: pa.Table, column: str, paths: Collection[str]) -> pa.ChunkedArray:
    return pc.is_in(table.column(column).cast(pa.string()), pa.array(sorted(paths), pa.string()))  # pyright: ignore
