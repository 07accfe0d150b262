"""Rows of a Parquet manifest, within limits of memory that hold before anything is materialized.

The footer says how many rows and values there are and how much the columns unpack to; a file over the limits is refused
by it. Columns are then read with their dictionaries, some rows at a time, and a row's size is known before it is made
into Python objects. So memory depends on how much distinct content a file holds, never on how often it repeats it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import Problem
from ...core.plural import plural
from .decoded_size import SharedValues, decoded_bytes, item_counts, to_python, without_dictionaries
from .settings import ManifestSettings

_BATCH_ROWS = 2048
_BATCH_BYTES = 64 * 2**20  # of rows on average
_WITH_DICTIONARIES = frozenset({"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"})
_MIN_DENSE_ROWS = 8  # of columns in other encodings, where each text may repeat one before it and store nothing
_DENSE_BYTES = 256 * 2**20
_SHARED_FROM_BYTES = 4 * 2**20
_MAX_VALUES = 32 * 2**20  # of a column's row group; each takes some bytes even where all are equal
_MAX_UNPACKED_BYTES = 256 * 2**20
_MAX_UNPACKING = 100  # times the stored size, above _MAX_UNPACKED_BYTES


Row = tuple[dict[str, Any], Mapping[str, tuple[str, str]]]
"""One row: plain values by column, and the reason and the fix for each column that is over a limit."""

_NOTHING: Mapping[str, tuple[str, str]] = {}


class InvalidText(ValueError):
    """A text that is not UTF-8."""

    def __init__(self, row: int, column: str, text: bytes) -> None:
        super().__init__(f"row {row}, column {column}: the text is not UTF-8")
        self.row, self.column, self.text = row, column, text


def footer_problems(metadata: Any, columns: Sequence[str], settings: ManifestSettings) -> Iterator[Problem]:
    """The limits that a file exceeds by what its footer says of these columns."""
    if metadata.num_rows > settings.max_rows:
        fix = "split it, or raise manifest.max_rows in the run spec"
        yield Problem(_rows(metadata.num_rows, settings), fix, "manifest", value=str(metadata.num_rows))
    for group in range(metadata.num_row_groups):
        for chunk in _chunks(metadata.row_group(group), columns):
            found = _chunk_problem(chunk, metadata.row_group(group).num_rows, settings)
            if found:
                column = chunk.path_in_schema.split(".")[0]
                yield Problem(f"row group {group} {found[0]}", found[1], "manifest", column=column, value=found[2])
                return  # the others are of the same kind


def too_many_rows(rows: int, settings: ManifestSettings) -> Problem:
    """The problem of a manifest with more rows than the limit, of which `rows` have been read."""
    fix = "split it, or raise manifest.max_rows in the run spec"
    return Problem(_rows(f"more than {rows}", settings), fix, "manifest", value=str(rows))


def parquet_rows(file: BinaryIO, metadata: Any, columns: Sequence[str], settings: ManifestSettings) -> Iterator[Row]:
    """The rows of a file whose footer has no problems, in order.

    Raises:
        InvalidText: a text is not UTF-8.
        Exception: Arrow's and the store's own kinds, for a file that is damaged or cannot be read.
    """
    share, first = SharedValues(), 0
    for batch in _batches(file, metadata, columns):
        try:
            yield from _rows_of(batch, share, settings)
        except UnicodeDecodeError:
            raise _invalid_text(batch, first) from None
        first += batch.num_rows


def parquet_texts(file: BinaryIO, metadata: Any, column: str, longest: int) -> Iterator[list[str | None] | None]:
    """A column of texts in lists of some rows each; None and the end if one has more than `longest` bytes.

    Raises:
        Exception: as for `parquet_rows`, and UnicodeDecodeError.
    """
    for batch in _batches(file, metadata, [column]):
        if (decoded_bytes(batch.column(0)) > longest).any():
            yield None
            return
        yield batch.column(0).cast(pa.string()).to_pylist()


def _batches(file: BinaryIO, metadata: Any, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    encoded = _dictionary_columns(metadata, columns)
    parquet = pq.ParquetFile(file, metadata=metadata, read_dictionary=encoded)
    for group in range(metadata.num_row_groups):
        size = _batch_rows(metadata.row_group(group), columns, encoded)
        yield from parquet.iter_batches(batch_size=size, row_groups=[group], columns=list(columns))


def _rows(count: object, settings: ManifestSettings) -> str:
    return f"the manifest has {count} rows, and the limit is {settings.max_rows}"


def _chunks(row_group: Any, columns: Sequence[str]) -> Iterator[Any]:
    for index in range(row_group.num_columns):
        chunk = row_group.column(index)
        if chunk.path_in_schema.split(".")[0] in columns:
            yield chunk


def _chunk_problem(chunk: Any, rows: int, settings: ManifestSettings) -> tuple[str, str, str] | None:
    """The reason, the fix and the value, if a column's row group is over a limit."""
    stored, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
    if chunk.num_values > _MAX_VALUES:
        reason = f"holds {chunk.num_values} values, and the limit is {_MAX_VALUES}"
        return reason, "write smaller row groups and shorter lists", str(chunk.num_values)
    if unpacked > _MAX_UNPACKED_BYTES and unpacked > _MAX_UNPACKING * stored:
        reason = f"unpacks from {plural(stored, 'byte')} to {unpacked}, more than {_MAX_UNPACKING} times as many"
        return reason, "write smaller row groups and shorter texts", str(unpacked)
    if unpacked > settings.max_row_bytes * max(rows, 1):
        reason = f"has {unpacked // max(rows, 1)} bytes a row, and the limit is {settings.max_row_bytes}"
        return reason, "write less in a row, or raise manifest.max_row_bytes in the run spec", str(unpacked)
    return None


def _dictionary_columns(metadata: Any, columns: Sequence[str]) -> list[str]:
    """The columns of texts whose dictionaries Arrow can keep; of other encodings it cannot."""
    encodings: dict[str, set[str]] = {}
    for group in range(metadata.num_row_groups):
        for chunk in _chunks(metadata.row_group(group), columns):
            if chunk.physical_type == "BYTE_ARRAY":
                encodings.setdefault(chunk.path_in_schema, set()).update(chunk.encodings)
    return [path for path, found in encodings.items() if found <= _WITH_DICTIONARIES]


def _batch_rows(row_group: Any, columns: Sequence[str], encoded: Collection[str]) -> int:
    """How many rows to read at a time."""
    chunks = list(_chunks(row_group, columns))
    average = sum(chunk.total_uncompressed_size for chunk in chunks) // max(row_group.num_rows, 1)
    size = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(average, 1)))
    dense = [chunk for chunk in chunks if chunk.physical_type == "BYTE_ARRAY" and chunk.path_in_schema not in encoded]
    largest = max((chunk.total_uncompressed_size for chunk in dense), default=0)
    return min(size, max(_MIN_DENSE_ROWS, _DENSE_BYTES // largest)) if largest else size


def _rows_of(batch: pa.RecordBatch, share: SharedValues, settings: ManifestSettings) -> Iterator[Row]:
    names, columns = batch.schema.names, batch.columns
    sizes = [decoded_bytes(column) for column in columns]
    counts = [item_counts(column) for column in columns]
    totals = sum(sizes, start=np.zeros(batch.num_rows, np.int64))
    is_large = totals > settings.max_row_bytes
    for count in counts:
        is_large |= count > settings.max_list_items
    if not is_large.any():
        yield from ((row, _NOTHING) for row in _python_rows(batch, int(totals.sum()), share))
        return
    start = 0
    for row in [*np.flatnonzero(is_large).tolist(), batch.num_rows]:
        before = batch.slice(start, row - start)
        yield from ((one, _NOTHING) for one in _python_rows(before, int(totals[start:row].sum()), share))
        if row < batch.num_rows:
            of_row = {
                name: (int(size[row]), int(count[row])) for name, size, count in zip(names, sizes, counts, strict=True)
            }
            yield _oversized_row(batch.slice(row, 1), of_row, share, settings)
        start = row + 1


def _python_rows(batch: pa.RecordBatch, size: int, share: SharedValues) -> list[dict[str, Any]]:
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    if size <= _SHARED_FROM_BYTES:  # as nearly always, and in a third of the time
        kinds = [field.with_type(without_dictionaries(field.type)) for field in batch.schema]
        return batch.cast(pa.schema(kinds)).to_pylist()
    columns = [to_python(column, share) for column in batch.columns]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _oversized_row(
    batch: pa.RecordBatch, of_column: dict[str, tuple[int, int]], share: SharedValues, settings: ManifestSettings
) -> Row:
    """A row over a limit, without the columns that make it so: those with too many items, or else the largest."""
    oversized = {
        name: (
            f"{name} has {count} items, and the limit is {settings.max_list_items}",
            "shorten it, or raise manifest.max_list_items in the run spec",
        )
        for name, (_, count) in of_column.items()
        if count > settings.max_list_items
    }
    left = {name: size for name, (size, _) in of_column.items() if name not in oversized}
    total = sum(left.values())
    while total > settings.max_row_bytes:
        largest = max(left, key=lambda name: left[name])
        oversized[largest] = (
            f"the row takes {total} bytes, {largest} {left[largest]} of them; the limit is {settings.max_row_bytes}",
            "shorten it, or raise manifest.max_row_bytes in the run spec",
        )
        total -= left.pop(largest)
    [values] = _python_rows(batch.select(list(left)), total, share) if left else [{}]
    return values, oversized


def _invalid_text(batch: pa.RecordBatch, first: int) -> Exception:
    """The first text of a batch that is not UTF-8."""
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        for index in range(len(values)):
            try:
                values[index].as_py()
            except UnicodeDecodeError as error:
                return InvalidText(first + index, name, error.object[:80])
    return ValueError("a text is not UTF-8")
