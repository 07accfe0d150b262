from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persres.core.errors import Problem
from persres.pipeline.manifest.scan import concept_failures, read_manifest, row_count_if_valid

PROMPTS = ("a photo of a {concept}",)


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"concept_id": f"mug-{number}", "macro_class": "mug", "reference_images": ["a.png", "b.png"]} | changes


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    columns = dict.fromkeys(name for values in rows for name in values)
    complete = [dict.fromkeys(columns) | values for values in rows]  # Arrow takes its columns from the first row alone
    pq.write_table(pa.Table.from_pylist(complete, schema), path, row_group_size=3)
    return path


def read(path: Any):
    return read_manifest(path, default_prompts=PROMPTS)


def test_parquet_manifest_is_read_in_order(tmp_path):
    extra = {"prompts": ["a {concept} at sea"], "seed": 5, "metadata": [("sku", "9")]}
    kind = pa.map_(pa.string(), pa.string())
    table = pa.Table.from_pylist([row(n, **extra) for n in range(1000)])
    table = table.set_column(
        table.schema.get_field_index("metadata"), "metadata", pa.array([[("sku", "9")]] * 1000, kind)
    )
    pq.write_table(table, tmp_path / "m.parquet")

    manifest = read(tmp_path / "m.parquet")

    assert (manifest.problems, manifest.warnings) == ([], [])
    assert [r.concept_id for r in manifest.rows] == [f"mug-{n}" for n in range(1000)]
    assert [r.row for r in manifest.rows] == list(range(1000))
    assert manifest.rows[999].metadata == {"sku": "9"}
    assert manifest.rows[0].reference_images[1].uri == str(tmp_path / "b.png")


def test_manifest_written_by_datasets_may_hold_images_as_paths_or_bytes(tmp_path):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature
    from datasets.table import embed_table_storage

    picture = tmp_path / "elsewhere" / "a.png"
    picture.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(picture)
    text, images = Value("string"), List(ImageFeature())
    features = Features({"concept_id": text, "macro_class": text, "reference_images": images})
    rows = [row(n, reference_images=[str(picture), Image.new("RGB", (64, 64), "blue")]) for n in range(2)]
    dataset = Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "paths.parquet")
    pq.write_table(embed_table_storage(dataset.data.table), tmp_path / "bytes.parquet")  # what push_to_hub uploads

    by_path, embedded = read(tmp_path / "paths.parquet"), read(tmp_path / "bytes.parquet")

    assert by_path.problems == embedded.problems == []
    first, second = by_path.rows[0].reference_images
    assert (first.uri, first.data) == (str(picture), None)
    assert second.data and second.data.startswith(b"\x89PNG")
    first, _ = embedded.rows[0].reference_images
    assert first.data == picture.read_bytes() and first.label == "a.png"


def test_manifest_written_by_pandas_is_read(tmp_path):
    frame = pd.DataFrame([row(0, seed=4), row(1, seed=None)], index=["x", "y"])
    frame["macro_class"] = frame["macro_class"].astype("category")
    frame["prompts"] = None
    frame.to_parquet(tmp_path / "m.parquet")

    manifest = read(tmp_path / "m.parquet")

    assert (manifest.problems, manifest.warnings) == ([], [])
    assert [r.seed for r in manifest.rows] == [4, None]
    assert manifest.rows[0].prompts == PROMPTS


def test_json_lines_give_the_same_rows_as_parquet(tmp_path):
    rows = [row(n, seed=n, metadata={"sku": str(n)}) for n in range(3)]
    lines = "\n\n".join(json.dumps(values) for values in rows)
    (tmp_path / "m.jsonl").write_text("\ufeff" + lines + "\n", "utf-8")

    from_lines, from_parquet = read(tmp_path / "m.jsonl"), read(parquet(tmp_path / "m.parquet", rows))

    assert from_lines.problems == []
    assert from_lines.rows == from_parquet.rows


def test_manifest_in_an_object_store_is_read():
    with fsspec.open("memory://sets/m.jsonl", "wb") as file:
        file.write(json.dumps(row()).encode())

    manifest = read("memory://sets/m.jsonl")

    assert manifest.rows[0].reference_images[0].uri == "memory://sets/a.png"


def test_problems_of_all_rows_are_found_in_one_pass(tmp_path):
    rows = [
        row(0),
        row(1, reference_images=[]),
        row(0),
        row(2, prompts=["no placeholder"], macro_class=""),
        row(3, concept_id="a/b"),
        row(4, concept_id=None, seed=-1),
    ]

    manifest = read(parquet(tmp_path / "m.parquet", rows))

    assert [(p.row, p.column, p.level) for p in manifest.problems] == [
        (1, "reference_images", "concept"),
        (2, "concept_id", "manifest"),
        (3, "macro_class", "concept"),
        (3, "prompts", "concept"),
        (4, "concept_id", "manifest"),
        (5, "concept_id", "manifest"),
        (5, "seed", "concept"),
    ]
    assert "row 0" in manifest.problems[1].reason
    assert [r.row for r in manifest.rows] == [0]
    assert [r.row for r in manifest.invalid_rows] == [1, 2, 3, 4, 5]
    assert manifest.row_count == 6 and len(manifest.manifest_problems) == 3


def test_missing_column_is_reported_once_and_the_others_are_checked(tmp_path):
    rows = [{"concept_id": f"c{n}", "referense_images": ["a.png"], "macro_class": "", "shelf": 4} for n in range(3)]

    for path in (parquet(tmp_path / "m.parquet", rows), tmp_path / "m.jsonl"):
        if not path.exists():
            path.write_text("\n".join(map(json.dumps, rows)))
        manifest = read(path)

        missing = [p for p in manifest.problems if p.level == "manifest"]
        assert [(p.column, p.row, p.fix) for p in missing] == [
            ("reference_images", None, "rename the column 'referense_images' to 'reference_images'")
        ]
        assert [(p.row, p.column) for p in manifest.problems if p.level == "concept"] == [
            (n, "macro_class") for n in range(3)
        ]
        assert len(manifest.warnings) == 2 and "'shelf'" in manifest.warnings[1]


def test_column_of_the_wrong_type_is_one_problem(tmp_path):
    values = {
        "concept_id": 7,
        "macro_class": 1.5,
        "reference_images": "a.png",
        "prompts": "p",
        "seed": "s",
        "metadata": "m",
    }

    manifest = read(parquet(tmp_path / "m.parquet", [values] * 3))

    assert {(p.column, p.row, p.level) for p in manifest.problems} == {(name, None, "manifest") for name in values}
    assert next(p for p in manifest.problems if p.column == "concept_id").value == "int64"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.parquet", b"", "cannot be read"),
        ("m.parquet", b"not parquet at all", "cannot be read"),
        ("m.jsonl", b"", "no rows"),
        ("m.jsonl", b"\xff\xfe\x00", "line 1 is not UTF-8"),
        ("m.jsonl", b"[{}]\n", "line 1 begins a JSON array"),
        ("m.jsonl", b"3\n", "line 1 is not a JSON object"),
        ("m.jsonl", b'{"a": 1},\n', "line 1 is not JSON"),
        ("m.jsonl", b"[" * 100_000, "line 1 begins a JSON array"),
        ("m.jsonl", b'{"a":' * 100_000, "line 1 is not JSON"),
        ("m.jsonl", b'{"a": 1,', "line 1 begins a JSON object"),
        ("m.csv", b"concept_id\n", "file type '.csv'"),
        ("m", b"", "file type ''"),
    ],
)
def test_file_that_is_not_a_manifest_is_one_problem(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)

    manifest = read(tmp_path / name)

    assert [(p.level, reason in p.reason) for p in manifest.problems] == [("manifest", True)], manifest.problems
    assert manifest.problems[0].fix and not manifest.rows


def test_missing_file_and_manifest_without_rows_are_problems(tmp_path):
    schema = pa.schema(
        {"concept_id": pa.string(), "macro_class": pa.string(), "reference_images": pa.list_(pa.string())}
    )

    assert "no such file" in read(tmp_path / "m.parquet").problems[0].reason
    assert "no rows" in read(parquet(tmp_path / "empty.parquet", [], schema)).problems[0].reason


def test_corrupted_parquet_is_a_manifest_problem(tmp_path):
    path = parquet(tmp_path / "m.parquet", [row(n) for n in range(2000)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(data)

    manifest = read(path)

    assert manifest.manifest_problems and "cannot be read" in manifest.problems[0].reason


def test_masks_give_a_warning_that_they_are_unused(tmp_path):
    manifest = read(parquet(tmp_path / "m.parquet", [row(masks=["m.png", "n.png"])]))

    assert manifest.problems == []
    assert manifest.warnings == ["masks are checked, but training does not use them yet"]


def test_concept_failures_join_the_reasons_of_a_concept():
    problems = [
        Problem("no image", "add one", row=1, concept_id="a", column="reference_images", value="[]"),
        Problem("no class", "add one", row=1, concept_id="a", column="macro_class", value="None"),
        Problem("duplicate", "rename", "manifest", row=2, concept_id="b"),
    ]

    [failure] = concept_failures(problems)

    assert (failure.concept_id, failure.stage, failure.fix) == ("a", "load", "add one")
    assert failure.reason == "no image (reference_images: []); no class (macro_class: None)"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["good", "twin", "empty", "slash"]), min_size=1, max_size=12))
def test_every_row_is_valid_or_has_a_problem(tmp_path_factory, kinds):
    make = {
        "good": lambda n: row(n),
        "twin": lambda n: row(n, concept_id="twin"),
        "empty": lambda n: row(n, reference_images=[]),
        "slash": lambda n: row(n, concept_id=f"a/{n}"),
    }
    path = tmp_path_factory.mktemp("any") / "m.jsonl"
    path.write_text("\n".join(json.dumps(make[kind](n)) for n, kind in enumerate(kinds)))

    manifest = read(path)

    assert sorted(r.row for r in [*manifest.rows, *manifest.invalid_rows]) == list(range(len(kinds)))
    assert {p.row for p in manifest.problems} == {r.row for r in manifest.invalid_rows}
    assert len({r.concept_id for r in manifest.rows}) == len(manifest.rows)


ANY_ID = st.sampled_from(["a", "b", "mug-1", "", "a/b", "-a", "m" * 129]) | st.none()


@given(st.lists(ANY_ID, min_size=1, max_size=5), st.sampled_from(["concept_id", "id"]), st.booleans())
def test_row_count_if_valid_is_none_for_manifests_that_a_full_scan_refuses(tmp_path_factory, ids, column, dictionary):
    kind = pa.dictionary(pa.int32(), pa.string()) if dictionary else pa.string()
    columns = {
        column: pa.array(ids, kind),
        "macro_class": ["mug"] * len(ids),
        "reference_images": [["a.png"]] * len(ids),
    }
    path = tmp_path_factory.mktemp("any") / "m.parquet"
    pq.write_table(pa.table(columns), path)

    count = row_count_if_valid(str(path))

    assert (count is None) == bool(read(path).manifest_problems)
    assert count in (None, len(ids))


@pytest.mark.parametrize("name", ["none.parquet", "m.jsonl", "text.parquet", "m.parquet?x"])
def test_row_count_if_valid_is_none_for_files_it_cannot_read(tmp_path, name):
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "m.jsonl").write_text(json.dumps(row()))

    assert row_count_if_valid(str(tmp_path / name)) is None
