"""Reading a manifest never raises, whatever it holds: all rows are usable and all problems printable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persres.core.concept import CONCEPT_ID_PATTERN, check_template
from persres.jobs.cli.printing import problem_line
from persres.pipeline.manifest.columns import COLUMNS
from persres.pipeline.manifest.scan import ParsedManifest, concept_failures, read_manifest, row_count_if_valid

PROMPTS = ("a photo of a {concept}",)
GOOD = {
    "concept_id": "mug-1",
    "macro_class": "mug",
    "reference_images": ["a.png"],
    "prompts": ["a {concept}"],
    "seed": 3,
}

any_text = st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "Lu", "Zs"]), max_size=6)
plain = (
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.sampled_from(["mug-1", "{concept}", "../a"])
)
any_json = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=6
)
rows = st.dictionaries(st.sampled_from(COLUMNS) | any_text, any_json, max_size=6) | st.builds(
    lambda name, value: GOOD | {name: value}, st.sampled_from(COLUMNS), any_json
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def read(path: Path, content: bytes) -> ParsedManifest:
    """Read a manifest and check what holds for all of them."""
    path.write_bytes(content)
    row_count_if_valid(str(path))
    reading = read_manifest(path, default_prompts=PROMPTS)
    assert reading.rows or reading.problems
    for problem in reading.problems:
        assert problem.reason and problem.fix
        line = problem_line(problem)
        assert line.isprintable() and len(line) < 2000 + len(str(path)), line
    for warning in reading.warnings:
        assert warning.encode()
    for failure in concept_failures(reading.problems):
        assert failure.reason.encode() and failure.fix
    for row in reading.rows if not reading.manifest_problems else ():
        assert CONCEPT_ID_PATTERN.fullmatch(row.concept_id) and row.macro_class and row.reference_images
        assert all(check_template(prompt) is None and prompt.encode() for prompt in row.prompts)
        pa.array([list(row.metadata.items())], pa.map_(pa.string(), pa.string()))
        assert row.seed is None or 0 <= row.seed < 2**63
        assert [source.label.encode() for source in (*row.reference_images, *(row.masks or ()))]
    return reading


@given(st.binary(max_size=400))
@example(b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1")
@example(b"{" * 50_000)
@example(b'{"a":' * 50_000)
@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl"])
def test_arbitrary_bytes_never_raise(folder, name, content):
    read(folder / name, content)


@given(st.lists(rows, min_size=1, max_size=4))
@settings(max_examples=200)
def test_arbitrary_json_lines_give_one_row_each(folder, values):
    reading = read(folder / "m.jsonl", "\n".join(map(json.dumps, values)).encode())
    assert reading.row_count == len(values)


@given(st.data())
@settings(max_examples=150)
def test_corrupted_parquet_never_raises(folder, data):
    pq.write_table(pa.Table.from_pylist([GOOD] * 3), folder / "good.parquet")
    content = bytearray((folder / "good.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read(folder / "m.parquet", bytes(content[: data.draw(st.integers(0, len(content)))]))


TYPES = [
    pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float64(), pa.string(), pa.large_string(), pa.binary(),
    pa.date32(), pa.timestamp("ns"), pa.decimal128(5, 2), pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.string()), pa.list_(pa.int64()), pa.list_(pa.list_(pa.string())), pa.list_(pa.null()),
    pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})), pa.list_(pa.struct({"path": pa.int64()})),
    pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.list_(pa.int8())), pa.map_(pa.int64(), pa.float64()),
    pa.struct({"a": pa.string(), "b": pa.int64()}), pa.list_(pa.string(), 2),
]  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """A table with some of the manifest columns and others, of valid and invalid types."""
    names = draw(st.lists(st.sampled_from([*COLUMNS, "other", ""]), min_size=1, max_size=6))
    count = draw(st.integers(0, 3))
    arrays = []
    for name in names:
        good = GOOD.get(name)
        if good is not None and draw(st.booleans()):
            arrays.append(pa.array([good] * count))
        else:
            kind = draw(st.sampled_from(TYPES))
            arrays.append(pa.array([draw(_value(kind)) for _ in range(count)], kind))
    return pa.Table.from_arrays(arrays, names)


def _value(kind: pa.DataType) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    of_list = {pa.string(): text, pa.int64(): st.integers(0, 9), pa.null(): st.none()}
    if pa.types.is_fixed_size_list(kind):
        return st.none() | st.lists(text, min_size=2, max_size=2)
    if pa.types.is_list(kind) and kind.value_type in of_list:
        return st.none() | st.lists(of_list[kind.value_type] | st.none(), max_size=3)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return st.none() | text
    if pa.types.is_uint64(kind):
        return st.none() | st.integers(0, 2**64 - 1)
    if pa.types.is_float64(kind):
        return st.none() | st.floats()
    if kind == pa.map_(pa.string(), pa.string()):
        return st.none() | st.lists(st.tuples(text, text | st.none()), max_size=2)
    if kind == pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})):
        image = st.fixed_dictionaries({"bytes": st.binary(max_size=4) | st.none(), "path": text | st.none()})
        return st.none() | st.lists(image | st.none(), max_size=2)
    return st.none()


@given(tables())
@settings(max_examples=200)
def test_arbitrary_table_never_raises(folder, table):
    pq.write_table(table, folder / "table.parquet")
    read(folder / "m.parquet", (folder / "table.parquet").read_bytes())
