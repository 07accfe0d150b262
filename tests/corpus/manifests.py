"""Invalid manifests: exit code 2 if the whole manifest is unusable, 3 if single rows are invalid."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .bad_input import BadInput
from .sandbox import GOOD_ROW, Sandbox


def _file(name: str, content: bytes | str) -> Callable[[Sandbox], list[str]]:
    return lambda sandbox: sandbox.submit(sandbox.file(name, content))


def _rows(*rows: dict[str, Any]) -> Callable[[Sandbox], list[str]]:
    """A Parquet manifest of these rows: the valid row with changes; a column that is `...` is absent."""
    complete = [{name: value for name, value in (GOOD_ROW | row).items() if value is not ...} for row in rows]
    return lambda sandbox: sandbox.submit(sandbox.manifest(*complete))


def _lines(*rows: dict[str, Any]) -> Callable[[Sandbox], list[str]]:
    return lambda sandbox: sandbox.submit(sandbox.json_lines(*({**GOOD_ROW, **row} for row in rows)))


def _named(uri: str) -> Callable[[Sandbox], list[str]]:
    return lambda sandbox: sandbox.submit(uri)


def _duplicate_column(sandbox: Sandbox) -> list[str]:
    ids = pa.array(["mug-1"])
    columns = [ids, ids, pa.array(["mug"]), pa.array([["mug.png"]])]
    table = pa.Table.from_arrays(columns, ["concept_id", "concept_id", "macro_class", "reference_images"])
    pq.write_table(table, sandbox.path("manifest.parquet"))
    return sandbox.submit(sandbox.path("manifest.parquet"))


def _invalid_utf8(sandbox: Sandbox) -> list[str]:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 3], pa.int32()).buffers()[1], pa.py_buffer(b"m\xffg")]
    )
    pq.write_table(
        pa.table({"concept_id": ["mug-1"], "macro_class": broken, "reference_images": [["mug.png"]]}),
        sandbox.path("manifest.parquet"),
    )
    return sandbox.submit(sandbox.path("manifest.parquet"))


def _cut_off(sandbox: Sandbox) -> list[str]:
    whole = sandbox.manifest().read_bytes()
    return sandbox.submit(sandbox.file("cut.parquet", whole[: len(whole) // 2]))


def _damaged_pages(sandbox: Sandbox) -> list[str]:
    rows = [GOOD_ROW | {"concept_id": f"mug-{number}"} for number in range(2000)]
    data = bytearray(sandbox.manifest(*rows).read_bytes())
    data[100:600] = b"\xff" * 500
    return sandbox.submit(sandbox.file("damaged.parquet", bytes(data)))


def _no_rows(sandbox: Sandbox) -> list[str]:
    table = pq.read_table(sandbox.manifest()).slice(0, 0)
    pq.write_table(table, sandbox.path("empty.parquet"))
    return sandbox.submit(sandbox.path("empty.parquet"))


def _twenty_million_rows(sandbox: Sandbox) -> list[str]:
    """Columns whose rows are all equal take a few kilobytes."""
    rows = 20_000_000
    text = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), ["mug"])
    images = pa.nulls(rows, pa.list_(pa.string()))
    path = sandbox.path("rows.parquet")
    pq.write_table(pa.table({"concept_id": text, "macro_class": text, "reference_images": images}), path)
    return sandbox.submit(path)


def _unpacking(sandbox: Sandbox) -> list[str]:
    columns = {name: [value] for name, value in (GOOD_ROW | {"macro_class": "m" * 300_000_000}).items()}
    path = sandbox.path("text.parquet")
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)
    return sandbox.submit(path)


def _folder(sandbox: Sandbox) -> list[str]:
    sandbox.path("folder.parquet").mkdir()
    return sandbox.submit(sandbox.path("folder.parquet"))


def _leading_out_of_its_bucket(sandbox: Sandbox) -> list[str]:
    import fsspec

    with fsspec.open("memory://bucket/sets/manifest.jsonl", "wb") as file:
        file.write(json.dumps(GOOD_ROW | {"reference_images": ["../../other/mug.png"]}).encode())
    return sandbox.submit("memory://bucket/sets/manifest.jsonl")


_TEN_MEGABYTES = 10_000_000


def manifests() -> list[BadInput]:
    """Every manifest of the corpus."""
    utf16 = (json.dumps(GOOD_ROW) + "\n").encode("utf-16")
    latin = json.dumps(GOOD_ROW | {"macro_class": "tasse à café"}, ensure_ascii=False).encode("latin-1")
    whole = [
        BadInput("a missing manifest", _named("nowhere.parquet"), 2, ("there is no such file",)),
        BadInput("a folder instead of a manifest", _folder, 2, ("it is a folder",)),
        BadInput("an empty file", _file("manifest.parquet", b""), 2, ("cannot be read",)),
        BadInput("text named .parquet", _file("manifest.parquet", "concept_id,macro_class\n"), 2, ("cannot be read",)),
        BadInput("a Parquet file cut off in the middle", _cut_off, 2, ("cannot be read",)),
        BadInput("a Parquet file with damaged pages", _damaged_pages, 2, ("cannot be read",)),
        BadInput("a Parquet file without rows", _no_rows, 2, ("the manifest has no rows",)),
        BadInput("a CSV file", _file("manifest.csv", "concept_id\n"), 2, ("'.csv'", ".parquet")),
        BadInput("an unknown scheme", _named("nosuch://m.parquet"), 2, ("unknown scheme",)),
        BadInput(
            "JSON over several lines",
            _file("m.json", json.dumps([GOOD_ROW], indent=1)),
            2,
            ("line 1 begins a JSON array", "one object a line"),
        ),
        BadInput("lines with commas between them", _file("m.jsonl", json.dumps(GOOD_ROW) + ",\n"), 2, ("line 1",)),
        BadInput("100,000 nested brackets", _file("m.jsonl", '{"a":' * 100_000), 2, ("line 1 is not JSON",)),
        BadInput(
            "a number of 5000 digits", _file("m.jsonl", '{"seed": ' + "9" * 5000 + "}"), 2, ("line 1 is not JSON",)
        ),
        BadInput(
            "text in lines named .jsonl", _file("m.jsonl", "concept_id\n" * 500), 2, ("lines 1 to 500 are no JSON",)
        ),
        BadInput(
            "a line of 20 MB", _file("m.jsonl", '{"a": "' + "m" * 20_000_000), 2, ("is longer than 16777216 bytes",)
        ),
        BadInput("a Parquet file that unpacks to 20 million rows", _twenty_million_rows, 2, ("the limit is 10000000",)),
        BadInput("a Parquet file that unpacks to 300 MB", _unpacking, 2, ("more than 100 times as many",)),
        BadInput("UTF-16 JSON lines", _file("m.jsonl", utf16), 2, ("not UTF-8",)),
        BadInput("Latin-1 JSON lines", _file("m.jsonl", latin), 2, ("line 1", "not UTF-8")),
        BadInput(
            "a duplicate JSON key",
            _file("m.jsonl", '{"concept_id": "a", "concept_id": "b"}'),
            2,
            ("gives 'concept_id' twice",),
        ),
        BadInput("text in Parquet that is not UTF-8", _invalid_utf8, 2, ("macro_class", "not UTF-8")),
        BadInput("a duplicate column", _duplicate_column, 2, ("appears 2 times",)),
        BadInput("a missing column", _rows({"macro_class": ...}), 2, ("the column is missing", "macro_class")),
        BadInput("a misspelt column", _rows({"macro_class": ..., "macro_clas": "mug"}), 2, ("rename the column",)),
        BadInput("ids that are numbers", _rows({"concept_id": 7}), 2, ("cast it to a string",)),
        BadInput("references that are one string", _rows({"reference_images": "mug.png"}), 2, ("list of strings",)),
        BadInput("references nested too deep", _rows({"reference_images": [["mug.png"]]}), 2, ("list of strings",)),
        BadInput(
            "prompts that are one string", _rows({"prompts": "a {concept}"}), 2, ("cast it to a list of strings",)
        ),
        BadInput("a seed that is text", _rows({"seed": "7"}), 2, ("cast it to an integer",)),
        BadInput("an id that is null", _rows({}, {"concept_id": None}), 2, ("row 1", "the id is missing")),
        BadInput("a duplicate id", _rows({}, {}), 2, ("already used by row 0",)),
        BadInput("an id with a path", _rows({"concept_id": "../mug"}), 2, ("an id starts with", "for example 'mug'")),
        BadInput("an id with a line break", _rows({"concept_id": "mug\n1"}), 2, ("an id starts with",)),
        BadInput("an id of 129 characters", _rows({"concept_id": "m" * 129}), 2, ("at most 128",)),
    ]
    rows = [
        BadInput("no macro class", _rows({"macro_class": ""}), 3, ("the macro class is missing",)),
        BadInput(
            "a macro class with a control character", _rows({"macro_class": "mug\x1b[31m"}), 3, ("control character",)
        ),
        BadInput("a macro class of 10 MB", _rows({"macro_class": "m" * _TEN_MEGABYTES}), 3, ("10000000 characters",)),
        BadInput("no references", _lines({"reference_images": []}), 3, ("is an empty list",)),
        BadInput(
            "a reference that is null", _lines({"reference_images": [None]}), 3, ("reference_images[0] is empty",)
        ),
        BadInput("a reference that is a number", _lines({"reference_images": [5]}), 3, ("is not a path or URI",)),
        BadInput("a reference with a NUL in it", _lines({"reference_images": ["a\0.png"]}), 3, ("control character",)),
        BadInput("bytes in JSON", _lines({"reference_images": [{"bytes": "iVBO"}]}), 3, ("bytes that are not binary",)),
        BadInput("a reference outside of its bucket", _leading_out_of_its_bucket, 3, ("leads out of the bucket",)),
        BadInput(
            "an empty list of prompts",
            _lines({"prompts": []}),
            3,
            ("prompts",),
        ),
        BadInput("a prompt without {concept}", _rows({"prompts": ["a mug"]}), 3, ("exactly once",)),
        BadInput("a prompt with {concept} twice", _rows({"prompts": ["{concept} {concept}"]}), 3, ("exactly once",)),
        BadInput("a prompt of blanks", _rows({"prompts": ["  "]}), 3, ("the prompt is empty",)),
        BadInput(
            "a prompt of 10 MB", _rows({"prompts": ["{concept} " + "m" * _TEN_MEGABYTES]}), 3, ("10000010 characters",)
        ),
        BadInput(
            "a prompt longer than the text encoder reads",
            _rows({"prompts": ["a {concept} " + "on sand " * 20]}),
            3,
            ("tokens long",),
        ),
        BadInput(
            "a prompt with a control character", _rows({"prompts": ["a {concept}\x07"]}), 3, ("control character",)
        ),
        BadInput(
            "a prompt with a lone surrogate",
            _file("m.jsonl", json.dumps(GOOD_ROW | {"prompts": ["{concept} \ud800"]})),
            3,
            ("a lone surrogate",),
        ),
        BadInput("a seed below zero", _rows({"seed": -1}), 3, ("whole number from 0 to 2^63 - 1",)),
        BadInput("a seed that is true", _lines({"seed": True}), 3, ("whole number from 0 to 2^63 - 1",)),
        BadInput(
            "metadata with a lone surrogate",
            _file("m.jsonl", json.dumps(GOOD_ROW | {"metadata": {"a": "\udfff"}})),
            3,
            ("a lone surrogate",),
        ),
        BadInput("metadata with a list in it", _lines({"metadata": {"tags": ["a"]}}), 3, ("is not a plain value",)),
        BadInput("100,000 prompts", _lines({"prompts": ["a {concept}"] * 100_000}), 3, ("has 100000 items",)),
        BadInput("fewer masks than references", _rows({"masks": ["a.png", "b.png"]}), 3, ("2 masks for 1 reference",)),
    ]
    return [*whole, *rows]
