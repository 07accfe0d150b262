"""Every flipped byte of a file with digests is an error or has no effect."""

from __future__ import annotations

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persres.core.errors import StoreError
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.parquet_file import footer_digest, open_bytes, parquet_bytes

from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import commit_trained

TABLE = pa.table(
    {"id": [f"c{number}" for number in range(40)], "blob": [bytes([number]) * 300 for number in range(40)]}
)


def test_file_is_plain_parquet_with_row_groups():
    data = parquet_bytes(TABLE, 16)
    assert pq.read_table(io.BytesIO(data)).equals(TABLE)
    with open_bytes(data, f"x-{footer_digest(data)}.parquet") as file:
        assert file.metadata.num_row_groups == 3 and file.read().equals(TABLE)
        assert file.read_row_group(2, columns=["id"])["id"].to_pylist() == [f"c{n}" for n in range(32, 40)]
    empty = parquet_bytes(TABLE.slice(0, 0), 16)
    with open_bytes(empty, f"x-{footer_digest(empty)}.parquet") as file:
        assert file.read().num_rows == 0


def test_no_flipped_byte_of_a_file_is_silent():
    data, generator = parquet_bytes(TABLE, 16), random.Random(1)
    path = f"x-{footer_digest(data)}.parquet"
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        try:
            with open_bytes(bytes(flipped), path) as file:
                assert file.read().equals(TABLE) and position < 4, "only the magic at the start is not read"
        except (OSError, pa.ArrowException):
            pass


@pytest.mark.parametrize("flips", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_flipped_byte_of_an_index_is_silent(flips):
    store = memory_store()
    commit_trained(store, *(planned(name) for name in ("a", "b", "c", "d", "e")))
    compact(store)
    before, generator = dict(read_committed(store)), random.Random(flips)
    paths = store.list("index/")
    whole = store.read_many(paths)
    for _ in range(flips):
        path = generator.choice(paths)
        flipped = bytearray(whole[path])
        position = generator.randrange(len(flipped))
        flipped[position] ^= 1 << generator.randrange(8)
        store.write(path, bytes(flipped))
        try:
            assert dict(read_committed(store)) == before
        except StoreError as error:
            assert path in str(error)
        store.write(path, whole[path])
