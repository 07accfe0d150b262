"""Parquet files whose every byte is checked before it is parsed.

A flipped byte outside of Parquet's own page checksums, in a page header or in the footer, gives other values without an
error, or ends the process. So a file carries digests of all of it: the footer's metadata has the SHA-256 of every row
group's bytes, and the file's name has the footer's. A reader fetches a footer or a whole row group, compares its
digest, and only then gives it to Arrow. So one row of a large file is still read with two requests.

Files of earlier versions, whose names have no digest, are read with the page checksums alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.range_reader import RangeReader

_ROW_GROUPS = "persres.row_groups"
_NAME_DIGEST = re.compile(r"-([0-9a-f]{32})\.parquet")
_MAGIC = b"PAR1"
_TAIL = struct.Struct("<I4s")  # the footer's length and the magic, with which every Parquet file ends
_TAIL_FETCH = 64 << 10  # enough for most footers
_KEPT_ROW_GROUPS = 2  # Arrow may read a row group in several parts, and two of them in turn

Fetch = Callable[[int, int], bytes]
"""Returns the bytes from the first position to the one before the second."""


class DigestMismatch(OSError):
    """Bytes are not those that were written."""


def parquet_bytes(table: pa.Table, rows_per_group: int, **options: Any) -> bytes:
    """The bytes of a Parquet file with zstd compression, page checksums, and a digest of every row group.

    Args:
        options: of `pyarrow.parquet.ParquetWriter`.
    """
    buffer = io.BytesIO()
    groups: list[tuple[int, int, str]] = []
    with pq.ParquetWriter(buffer, table.schema, compression="zstd", write_page_checksum=True, **options) as writer:
        for first in range(0, table.num_rows, rows_per_group):
            start = buffer.tell()
            writer.write_table(table.slice(first, rows_per_group), row_group_size=rows_per_group)
            with buffer.getbuffer() as written:
                groups.append((start, buffer.tell(), _digest(written[start : buffer.tell()])))
        writer.add_key_value_metadata({_ROW_GROUPS: json.dumps(groups, separators=(",", ":"))})
    return buffer.getvalue()


def footer_digest(data: bytes) -> str:
    """The digest of a Parquet file's footer, 32 hexadecimal digits, for the file's name."""
    length, _ = _TAIL.unpack(data[-_TAIL.size :])
    return _digest(data[len(data) - length - _TAIL.size :])


def digest_in_name(path: str) -> str | None:
    """The footer's digest in a file's name; None for files of earlier versions."""
    match = _NAME_DIGEST.search(path)
    return match[1] if match else None


def open_bytes(data: bytes, path: str) -> pq.ParquetFile:
    """As `open_parquet`, for a file that is in memory."""
    return open_parquet(io.BytesIO(data), len(data), path)


def open_parquet(file: BinaryIO, size: int, path: str) -> pq.ParquetFile:
    """Open a Parquet file of `size` bytes, whose name may have its footer's digest.

    Adjacent columns of a row group are fetched in one request. Reading from it raises `DigestMismatch` for bytes that
    were changed, and Arrow's own errors.

    Raises:
        DigestMismatch: the footer is not the one that was written.
    """

    def fetch(start: int, end: int) -> bytes:
        file.seek(start)
        return file.read(end - start)

    digest = digest_in_name(path)
    if digest is None:
        return pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
    footer = _read_footer(fetch, size, digest)
    metadata = pq.read_metadata(io.BytesIO(_MAGIC + footer))
    groups = _VerifiedRowGroups(fetch, json.loads(metadata.metadata[_ROW_GROUPS.encode()]))
    source = cast(Any, RangeReader(size, groups.read))
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=True, page_checksum_verification=True)


def _read_footer(fetch: Fetch, size: int, digest: str) -> bytes:
    """The last bytes of a file, from the footer on; with one request unless the footer is large."""
    tail = fetch(max(0, size - _TAIL_FETCH), size)
    if len(tail) < _TAIL.size or not tail.endswith(_MAGIC):
        raise DigestMismatch("it is truncated")
    length = _TAIL.unpack(tail[-_TAIL.size :])[0] + _TAIL.size
    if length > size:
        raise DigestMismatch("its footer is not the one that was written")
    footer = tail[-length:] if length <= len(tail) else fetch(size - length, size)
    if _digest(footer) != digest:
        raise DigestMismatch("its footer is not the one that was written")
    return footer


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class _VerifiedRowGroups:
    """The row groups of a file, each fetched as a whole and compared with its digest before any of it is given out.

    Args:
        groups: (first byte, end, digest) of each, in the order of the file.
    """

    def __init__(self, fetch: Fetch, groups: Sequence[tuple[int, int, str]]) -> None:
        self._fetch, self._groups = fetch, groups
        self._kept: dict[int, bytes] = {}

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to the one before `end`, which row groups cover."""
        parts = []
        while start < end:
            number = bisect_right(self._groups, start, key=lambda group: group[0]) - 1
            first, last, _ = self._groups[number]
            if not first <= start < last:
                raise DigestMismatch(f"byte {start} is in no row group")
            parts.append(self._row_group(number)[start - first : end - first])
            start = min(end, last)
        return b"".join(parts)

    def _row_group(self, number: int) -> bytes:
        if number not in self._kept:
            start, end, digest = self._groups[number]
            data = self._fetch(start, end)
            if _digest(data) != digest:
                raise DigestMismatch(f"row group {number} is not the one that was written")
            while len(self._kept) >= _KEPT_ROW_GROUPS:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = data
        return self._kept[number]
