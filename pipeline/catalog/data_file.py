"""A catalog's Parquet files, below the level of single results: which concepts have rows in one, and where those lie.

Reading one concept's results is `shard_commit`'s. This is for whoever goes through a whole catalog, file by file.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...core.errors import StoreError, StoreRefused, StoreUnavailable
from .store import CatalogStore

FOLDERS = ("residuals/", "renderings/")
_ID = "concept_id"

T = TypeVar("T")


class DamagedFile(StoreError):
    """A data file that was read and makes no sense: another try would end the same way."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` rows of a file from row `first` on, and whose they are."""

    first: int
    count: int
    concept_id: str


def data_files(store: CatalogStore) -> list[str]:
    """The paths of all data files, whether anything committed refers to them or not."""
    return [path for folder in FOLDERS for path in store.list(folder) if path.endswith(".parquet")]


def read_data_file(store: CatalogStore, path: str, use: Callable[[pq.ParquetFile], T], *, in_parts: bool = False) -> T:
    """What `use` makes of an open file.

    Args:
        in_parts: fetch only what `use` reads, rather than the whole file at once. Should that fail, `use` is called
            again on the whole file, which tells damage from a store that is not to be reached.

    Raises:
        DamagedFile: the file is there, and is not a whole and correct Parquet file.
        StoreError: the file is not there or cannot be read.
    """
    if in_parts:
        try:
            with store.open_input(path) as file, _parquet(file) as parquet:
                return use(parquet)
        except (StoreRefused, StoreUnavailable):
            raise
        except (StoreError, pa.ArrowException):
            pass  # damage, or the file is gone
    data = store.read(path)
    try:
        with _parquet(io.BytesIO(data)) as parquet:
            return use(parquet)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(
            f"{store.url(path)} is damaged ({type(error).__name__}: {error})",
            fix=f"restore {store.url(path)} from a copy, or forget the concepts that lie in it and submit again",
        ) from None


def concepts_among(parquet: pq.ParquetFile, wanted: Collection[str]) -> frozenset[str]:
    """Which of `wanted` have a row in the file. Reads the ids of those row groups alone whose statistics allow it."""
    ordered = sorted(wanted)
    metadata = parquet.metadata
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == _ID)
    groups = [
        group
        for group in range(metadata.num_row_groups)
        if _may_hold(metadata.row_group(group).column(column).statistics, ordered)
    ]
    if not groups:
        return frozenset()
    held = set(parquet.read_row_groups(groups, columns=[_ID]).column(_ID).unique().to_pylist())
    return frozenset(held.intersection(ordered))


def without_concepts(table: pa.Table, concept_ids: Collection[str]) -> tuple[pa.Table, list[int]]:
    """A file's rows without those of some concepts, and of each old row the new number, -1 where it is gone."""
    keep = pc.invert(pc.is_in(table.column(_ID), pa.array(sorted(concept_ids), pa.string())))  # pyright: ignore
    numbers: list[int] = []
    kept = 0
    for stays in keep.to_pylist():
        numbers.append(kept if stays else -1)
        kept += stays
    return table.filter(keep), numbers


def rows_in_turn(parquet: pq.ParquetFile, spans: Iterable[Span]) -> Iterator[tuple[Span, pa.Table]]:
    """The rows of every span, in the order of the file, which is read once and wholly, a row group at a time.

    A span that goes beyond the end of the file is left out.
    """
    rows = parquet.metadata.num_rows
    inside = [span for span in spans if span.first + span.count <= rows]
    waiting = deque(sorted(inside, key=lambda span: (span.first, span.count)))
    held, start, end = None, 0, 0
    for group in range(parquet.metadata.num_row_groups):
        table = parquet.read_row_group(group)
        held = table if held is None else pa.concat_tables([held, table])
        end += table.num_rows
        while waiting and waiting[0].first + waiting[0].count <= end:
            span = waiting.popleft()
            yield span, held.slice(span.first - start, span.count)
        needed = min(end, waiting[0].first if waiting else end)
        held, start = held.slice(needed - start), needed


def _parquet(file: Any) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)


def _may_hold(statistics: pq.Statistics | None, ordered: Sequence[str]) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    at = bisect_left(ordered, statistics.min)
    return at < len(ordered) and ordered[at] <= statistics.max


def data_file_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    """A table of schema `RESIDUALS` or `RENDERINGS` as a data file holds it."""
    # Almost all bytes are blobs that differ in every row: dictionaries would only cost, and statistics would repeat
    # small blobs in the footer. zstd folds what the other columns repeat.
    plain = [
        column.name for column in table.schema if not pa.types.is_nested(column.type) and column.type != pa.binary()
    ]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=rows_per_group,
        compression="zstd",
        use_dictionary=False,
        write_statistics=plain,  # pyright: ignore[reportArgumentType]  # the stubs know bool only
        write_page_checksum=True,
    )
    return buffer.getvalue()
