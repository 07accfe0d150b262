"""Data files, the Parquet files of a catalog: write one, read one as a whole, find the concepts in it.

`results` reads single concepts.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.errors import StoreError, StoreRefused, StoreUnavailable
from . import layout
from .parquet_file import digest_in_name, open_bytes, open_parquet, parquet_bytes
from .store import CatalogStore

_FOLDERS = (layout.RESIDUALS, layout.RENDERINGS)
_ID = "concept_id"

T = TypeVar("T")

_DAMAGE = (pa.ArrowException, OSError, ValueError)
_UNCHECKED_DAMAGE = (*_DAMAGE, TypeError, LookupError, AttributeError, OverflowError)
"""What reading a damaged file raises, in our conversion of rows too if its bytes have no digest to check them against:
with one, such an error is a bug and no damage."""


class DamagedFile(StoreError):
    """A data file whose content is wrong, so that a retry cannot help."""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of a concept in a data file: `count` of them, from row `first` on."""

    first: int
    count: int
    concept_id: str


def data_files(store: CatalogStore) -> list[str]:
    """The paths of all data files, committed or not."""
    return [path for folder in _FOLDERS for path in store.list(folder) if path.endswith(".parquet")]


def referenced_files(index: pa.Table) -> set[str]:
    """The data files that rows of a table of schema `INDEX` refer to."""
    columns = (index.column(name).cast(pa.string()).unique() for name in ("residual_file", "rendering_file"))
    return {path for column in columns for path in column.to_pylist() if path is not None}


def read_data_file(store: CatalogStore, path: str, read: Callable[[pq.ParquetFile], T], *, in_parts: bool = False) -> T:
    """Return `read` of the opened data file.

    Args:
        in_parts: fetch only the parts that `read` reads instead of the whole file. If that fails, `read` is called
            again on the whole file, which distinguishes a damaged file from an unreachable store.

    Raises:
        DamagedFile: the file is not a complete and correct Parquet file.
        StoreError: the file is missing or cannot be read.
    """
    damage = _DAMAGE if digest_in_name(path) else _UNCHECKED_DAMAGE
    if in_parts:
        try:
            with store.open_input(path) as file, open_parquet(file, file.seek(0, io.SEEK_END), path) as parquet:
                return read(parquet)
        except (StoreRefused, StoreUnavailable):
            raise
        except (StoreError, *damage):
            pass  # the file is damaged, or was deleted
    data = store.read(path)
    try:
        with open_bytes(data, path) as parquet:
            return read(parquet)
    except damage as error:
        raise damaged_file(store, path, f"{type(error).__name__}: {error}") from None


def damaged_file(store: CatalogStore, path: str, reason: str) -> DamagedFile:
    """The error for a damaged data file."""
    return DamagedFile(
        f"{store.url(path)} is damaged ({reason})",
        fix=f"restore {store.url(path)} from a copy, or forget the concepts in it and submit again",
    )


def concepts_in_file(parquet: pq.ParquetFile, wanted: Collection[str]) -> frozenset[str]:
    """The concepts of `wanted` that have a row in the file. Reads only row groups whose statistics allow for one."""
    ordered = sorted(wanted)
    metadata = parquet.metadata
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == _ID)
    groups = [
        group
        for group in range(metadata.num_row_groups)
        if _may_contain(metadata.row_group(group).column(column).statistics, ordered)
    ]
    if not groups:
        return frozenset()
    held = set(parquet.read_row_groups(groups, columns=[_ID]).column(_ID).unique().to_pylist())
    return frozenset(held.intersection(ordered))


def drop_concepts(table: pa.Table, concept_ids: Collection[str]) -> tuple[pa.Table, list[int]]:
    """Return `table` without the rows of some concepts, and each old row's new number, -1 for a dropped row."""
    keep = pc.invert(pc.is_in(table.column(_ID), pa.array(sorted(concept_ids), pa.string())))  # pyright: ignore
    numbers: list[int] = []
    kept = 0
    for is_kept in keep.to_pylist():
        numbers.append(kept if is_kept else -1)
        kept += is_kept
    return table.filter(keep), numbers


def iter_spans(parquet: pq.ParquetFile, spans: Iterable[Span]) -> Iterator[tuple[Span, pa.Table]]:
    """Yield each span with its rows, in the order of the file, which is read once, one row group at a time.

    Spans that exceed the file are omitted.
    """
    rows = parquet.metadata.num_rows
    inside = [span for span in spans if span.first + span.count <= rows]
    pending = deque(sorted(inside, key=lambda span: (span.first, span.count)))
    held, start, end = None, 0, 0
    for group in range(parquet.metadata.num_row_groups):
        table = parquet.read_row_group(group)
        held = table if held is None else pa.concat_tables([held, table])
        end += table.num_rows
        while pending and pending[0].first + pending[0].count <= end:
            span = pending.popleft()
            yield span, held.slice(span.first - start, span.count)
        needed = min(end, pending[0].first if pending else end)
        held, start = held.slice(needed - start), needed


def _may_contain(statistics: pq.Statistics | None, ordered: Sequence[str]) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect_left(ordered, statistics.min)
    return at < len(ordered) and ordered[at] <= statistics.max


def data_file_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    """The bytes of a data file with a table of schema `RESIDUALS` or `RENDERINGS`."""
    # Almost all bytes are blobs that differ in every row: dictionaries would only cost time, and statistics would copy
    # small blobs to the footer. zstd compresses the repetitions in other columns.
    plain = [
        column.name for column in table.schema if not pa.types.is_nested(column.type) and column.type != pa.binary()
    ]
    return parquet_bytes(table, rows_per_group, use_dictionary=False, write_statistics=plain)
