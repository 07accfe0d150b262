"""Parquet manifests of a few kilobytes that stand for gigabytes are refused, or read in the memory of their content."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.pipeline.manifest.decoded_size import SharedValues, decoded_bytes, to_python
from persres.pipeline.manifest.scan import read_manifest, row_count_if_valid
from persres.pipeline.manifest.settings import ManifestSettings

MEGABYTE = 1 << 20
PROMPTS = ["a {concept}"]


def table(rows: int, **columns: Any) -> pa.Table:
    own = {
        "concept_id": pa.array([f"c{n}" for n in range(rows)]),
        "macro_class": pa.repeat("mug", rows),
        "reference_images": pa.array([["a.png"]] * rows),
    }
    return pa.table(own | columns)


def repeated(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    """A column of equal values that takes no memory of its own."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([value], kind))


def lists(items: int, rows: int) -> pa.Array:
    """Rows of which the first has all items."""
    offsets = pa.array([0, *[items] * rows], pa.int32())
    return pa.ListArray.from_arrays(offsets, repeated("a.png", items, pa.string()))


def bombs() -> dict[str, tuple[pa.Table, dict[str, Any]]]:
    """Tables, with how they are written."""
    text = "m" * 10 * MEGABYTE
    delta = {"use_dictionary": False, "column_encoding": {"macro_class": "DELTA_BYTE_ARRAY"}}
    return {
        "a class repeated by a dictionary": (table(1000, macro_class=repeated(text, 1000, pa.string())), {}),
        "an id repeated by a dictionary": (table(1000, concept_id=repeated(text, 1000, pa.string())), {}),
        "a list of 30 million images": (table(2, reference_images=lists(30_000_000, 2)), {}),
        "a list of 60 million images": (table(2, reference_images=lists(60_000_000, 2)), {}),
        "twenty million equal rows": (
            pa.table({
                "concept_id": repeated("a", 20_000_000, pa.string()),
                "macro_class": repeated("mug", 20_000_000, pa.string()),
                "reference_images": pa.nulls(20_000_000, pa.list_(pa.string())),
            }),
            {},
        ),
        "one cell of 500 MB": (table(1, macro_class=pa.array(["m" * 500_000_000])), {"use_dictionary": False}),
        "a class repeated by prefixes": (table(120, macro_class=pa.repeat(text, 120)), delta),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for number, (content, options) in enumerate(bombs().values()):
        pq.write_table(content, folder / f"{number}.parquet", compression="zstd", **options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(7))
def test_small_file_takes_little_memory(folder, number):
    path = folder / f"{number}.parquet"
    assert path.stat().st_size < 2 * MEGABYTE
    code = f"""
import resource
from persres.pipeline.manifest.scan import read_manifest, row_count_if_valid
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
row_count_if_valid({str(path)!r})
read = read_manifest({str(path)!r}, default_prompts=["a {{concept}}"])
print(peak() - before, len(read.problems) > 0, all(problem.reason and problem.fix for problem in read.problems))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes, *checks = done.stdout.split()
    assert checks == ["True", "True"]
    assert int(megabytes) < 1000, done.stdout


def read(path: Path, **limits: int) -> Any:
    return read_manifest(path, default_prompts=PROMPTS, settings=ManifestSettings.model_validate(limits))


def test_large_row_is_a_problem_of_its_own(tmp_path):
    prompts = [[f"{'x' * (5000 if n in (3, 7) else 5)} {{concept}}"] for n in range(10)]
    path = tmp_path / "m.parquet"
    pq.write_table(table(10, prompts=pa.array(prompts)), path)

    found = read(path, max_row_bytes=2000)

    assert [(p.row, p.column, p.level, p.concept_id) for p in found.problems] == [
        (3, "prompts", "concept", "c3"),
        (7, "prompts", "concept", "c7"),
    ]
    assert "the limit is 2000" in found.problems[0].reason and "manifest.max_row_bytes" in found.problems[0].fix
    assert [row.concept_id for row in found.rows] == [f"c{n}" for n in range(10) if n not in (3, 7)]
    assert not read(path, max_row_bytes=20_000).problems


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_long_list_is_a_problem_of_its_own(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    rows = table(3, reference_images=pa.array([["a.png"], ["a.png"] * 40, ["a.png"]]))
    if suffix == "parquet":
        pq.write_table(rows, path)
    else:
        rows.to_pandas().to_json(path, orient="records", lines=True)

    [problem] = read(path, max_list_items=30).problems

    assert (problem.row, problem.column, problem.level) == (1, "reference_images", "concept")
    assert problem.reason == "reference_images has 40 items, and the limit is 30"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_rows_beyond_the_limit_make_the_manifest_unusable(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pq.write_table(table(30), path)
    else:
        table(30).to_pandas().to_json(path, orient="records", lines=True)
    [problem] = read(path, max_rows=20).problems
    assert problem.level == "manifest" and "the limit is 20" in problem.reason and "manifest.max_rows" in problem.fix
    assert row_count_if_valid(str(path), ManifestSettings(max_rows=20)) is None
    assert not read(path, max_rows=30).problems


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "dictionary"])
def test_texts_of_every_encoding_are_read(tmp_path, encoding):
    rows = table(1000, prompts=pa.array([[f"a {{concept}} number {n}"] for n in range(1000)]))
    options: dict[str, Any] = {}
    if encoding != "dictionary":
        texts = ("concept_id", "macro_class", "reference_images.list.element", "prompts.list.element")
        options = {"use_dictionary": False, "column_encoding": dict.fromkeys(texts, encoding)}
    pq.write_table(rows, tmp_path / "m.parquet", row_group_size=300, data_page_version="2.0", **options)

    found = read(tmp_path / "m.parquet")

    assert not found.problems and row_count_if_valid(str(tmp_path / "m.parquet")) == 1000
    assert [(row.concept_id, row.prompts) for row in found.rows] == [
        (f"c{n}", (f"a {{concept}} number {n}",)) for n in range(1000)
    ]


KINDS = st.sampled_from([
    (pa.string(), st.none() | st.text(max_size=4)),
    (pa.large_string(), st.none() | st.text(max_size=4)),
    (pa.binary(), st.none() | st.binary(max_size=4)),
    (pa.string_view(), st.none() | st.text(max_size=4)),
    (pa.int64(), st.none() | st.integers(-9, 9)),
    (pa.dictionary(pa.int8(), pa.string()), st.none() | st.text(max_size=2)),
])  # fmt: skip


@st.composite
def arrays(draw) -> pa.Array:
    """Arrays of the kinds that manifests hold, sliced as batches are."""
    kind, values = draw(KINDS)
    for _ in range(draw(st.integers(0, 2))):
        layout = draw(st.sampled_from(["list", "large", "struct", "map", "fixed"]))
        inner = values
        if layout == "struct":
            kind = pa.struct({"bytes": kind, "path": pa.string()})
            values = st.none() | st.fixed_dictionaries({"bytes": inner, "path": st.none() | st.text(max_size=2)})
        elif layout == "map":
            kind = pa.map_(pa.string(), kind)
            values = st.none() | st.lists(st.tuples(st.text(max_size=2), inner), max_size=2)
        elif layout == "fixed":
            kind, values = pa.list_(kind, 2), st.lists(inner, min_size=2, max_size=2)
        else:
            kind = pa.list_(kind) if layout == "list" else pa.large_list(kind)
            values = st.none() | st.lists(inner, max_size=3)
    array = pa.array(draw(st.lists(values, max_size=6)), kind)
    start = draw(st.integers(0, len(array)))
    return array.slice(start, draw(st.integers(0, len(array) - start)))


@settings(max_examples=300, deadline=None)
@given(arrays())
def test_values_are_those_of_arrow_and_sizes_add_up(array):
    assert to_python(array, SharedValues()) == array.to_pylist()
    sizes = decoded_bytes(array)
    assert len(sizes) == len(array)
    assert all(size >= _text_bytes(value) for size, value in zip(sizes.tolist(), array.to_pylist(), strict=True))


def _text_bytes(value: Any) -> int:
    match value:
        case str():
            return len(value.encode())
        case bytes():
            return len(value)
        case dict():
            return sum(map(_text_bytes, value.values()))
        case list() | tuple():
            return sum(map(_text_bytes, value))
    return 0


def test_equal_large_values_are_one_object(tmp_path):
    image = {"bytes": b"x" * 50_000, "path": "a.png"}
    pq.write_table(table(600, reference_images=pa.array([[image]] * 600)), tmp_path / "m.parquet")
    found = read(tmp_path / "m.parquet")
    assert len({id(row.reference_images[0].data) for row in found.rows}) == 1
