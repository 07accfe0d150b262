from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreError
from persres.pipeline.catalog.data_file import (
    DamagedFile,
    Span,
    concepts_in_file,
    data_files,
    drop_concepts,
    iter_spans,
    read_data_file,
)

from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import commit_trained

names = st.text("ab", min_size=1, max_size=3)


def parquet_of(concept_ids: list[str], *, per_group: int, statistics: bool = True) -> pq.ParquetFile:
    buffer = io.BytesIO()
    table = pa.table({"number": range(len(concept_ids)), "concept_id": pa.array(concept_ids, pa.string())})
    pq.write_table(table, buffer, row_group_size=per_group, write_statistics=statistics)
    return pq.ParquetFile(io.BytesIO(buffer.getvalue()))


@given(st.lists(names, min_size=1, max_size=12), st.sets(names, min_size=1), st.integers(1, 5), st.booleans())
def test_concepts_in_file_are_found_with_and_without_statistics(held, wanted, per_group, statistics):
    parquet = parquet_of(held, per_group=per_group, statistics=statistics)
    assert concepts_in_file(parquet, wanted) == set(held) & wanted


@given(st.lists(names, min_size=1, max_size=12), st.sets(names, min_size=1))
def test_drop_concepts_keeps_order_and_returns_new_row_numbers(held, wanted):
    table = pa.table({"concept_id": pa.array(held, pa.string()), "number": range(len(held))})
    kept, numbers = drop_concepts(table, wanted)
    assert kept["concept_id"].to_pylist() == [name for name in held if name not in wanted]
    for old, new in enumerate(numbers):
        assert (new == -1) == (held[old] in wanted)
        assert new == -1 or kept["number"][new].as_py() == old


@given(
    st.integers(1, 20),
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(0, 22), st.integers(1, 6)), max_size=8),
)
def test_iter_spans_yields_every_span_within_the_file_once(rows, per_group, places):
    parquet = parquet_of(["a"] * rows, per_group=per_group)
    spans = [Span(first, count, "a") for first, count in places]
    found = [(span, table["number"].to_pylist()) for span, table in iter_spans(parquet, spans)]
    inside = [span for span in spans if span.first + span.count <= rows]
    assert found == [
        (span, list(range(span.first, span.first + span.count)))
        for span in sorted(inside, key=lambda span: (span.first, span.count))
    ]


def test_read_data_file_is_the_same_whole_or_in_parts():
    store = memory_store()
    record = commit_trained(store, planned("a"), planned("b"))
    assert set(data_files(store)) == set(record.files.values())
    for path in data_files(store):
        whole, parts = (
            read_data_file(store, path, lambda parquet: parquet.read(), in_parts=in_parts) for in_parts in (False, True)
        )
        assert whole.equals(parts)


@pytest.mark.parametrize("in_parts", [False, True])
def test_read_data_file_distinguishes_damage_from_absence(in_parts):
    store = memory_store()
    store.write("residuals/x.parquet", b"PAR1, and no more")
    with pytest.raises(DamagedFile, match=r"residuals/x\.parquet is damaged.*Fix: restore"):
        read_data_file(store, "residuals/x.parquet", lambda parquet: parquet.read(), in_parts=in_parts)
    with pytest.raises(StoreError) as error:
        read_data_file(store, "residuals/y.parquet", lambda parquet: parquet.read(), in_parts=in_parts)
    assert not isinstance(error.value, DamagedFile)
