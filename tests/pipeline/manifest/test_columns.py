from __future__ import annotations

import pyarrow as pa
import pytest

from persres.pipeline.catalog.schemas import MANIFEST
from persres.pipeline.manifest.columns import COLUMNS, column_problems, missing_columns, unused_columns

STRINGS = pa.list_(pa.string())
IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def test_manifest_schema_has_no_column_problems():
    assert tuple(sorted(MANIFEST.names)) == tuple(sorted(COLUMNS))
    assert not [*column_problems(MANIFEST), *missing_columns(MANIFEST.names), *unused_columns(MANIFEST.names)]


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("concept_id", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], [pa.int64()]),
        ("reference_images", [STRINGS, IMAGES, pa.list_(pa.string(), 2), pa.large_list(pa.null())], [pa.string()]),
        ("prompts", [pa.null(), STRINGS, pa.list_view(pa.string())], [pa.string(), IMAGES]),
        ("seed", [pa.null(), pa.int8(), pa.float64()], [pa.string(), pa.bool_()]),
        ("metadata", [pa.null(), pa.struct({"sku": pa.int64()})], [pa.string(), STRINGS]),
    ],
)
def test_column_accepts_the_arrow_types_that_writers_produce(column, good, bad):
    assert not [problem for kind in good for problem in column_problems(pa.schema({column: kind}))]
    for kind in bad:
        [problem] = column_problems(pa.schema({column: kind}))
        assert (problem.column, problem.level, problem.value) == (column, "manifest", str(kind))
        assert problem.fix.startswith("cast it to")


def test_duplicate_column_is_one_problem():
    schema = pa.schema([("seed", pa.int64()), ("seed", pa.string()), ("x", pa.string()), ("x", pa.string())])
    assert [(one.column, one.fix) for one in column_problems(schema)] == [("seed", "keep one")]


def test_missing_and_unused_columns_are_reported_by_name():
    names = ["concept_ids", "macro_class", "__index_level_0__"]
    assert [(one.column, one.fix) for one in missing_columns(names)] == [
        ("concept_id", "rename the column 'concept_ids' to 'concept_id'"),
        ("reference_images", "add the column 'reference_images'"),
    ]
    [warning] = unused_columns(names)
    assert "'concept_ids'" in warning
