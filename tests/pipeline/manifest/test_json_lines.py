"""Lines of a JSON manifest: none is held beyond its limit, and one mistake is told once."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.manifest.json_lines import BadLine, json_lines
from persres.pipeline.manifest.scan import read_manifest
from persres.pipeline.manifest.settings import ManifestSettings


def read(content: bytes, **limits: int) -> list[Any]:
    return list(json_lines(io.BytesIO(content), ManifestSettings.model_validate(limits)))


def bad(content: bytes, **limits: int) -> list[str]:
    return [str(found) for found in read(content, **limits) if isinstance(found, BadLine)]


def test_array_over_many_lines_is_one_problem(tmp_path):
    rows = [{"concept_id": f"c{n}", "macro_class": "mug", "reference_images": ["a.png"]} for n in range(100)]
    for indent in (1, None):
        (tmp_path / "m.json").write_text("\n " + json.dumps(rows, indent=indent))
        [problem] = read_manifest(tmp_path / "m.json", default_prompts=["a {concept}"]).problems
        assert problem.reason == "line 2 begins a JSON array"
        assert problem.fix == "write one object a line, for example with jq -c '.[]'"


def test_object_over_many_lines_is_one_problem():
    assert bad(json.dumps({"data": [{"a": 1}] * 50}, indent=1).encode()) == [
        "line 1 begins a JSON object that does not end on it"
    ]


def test_lines_of_another_format_are_one_problem(tmp_path):
    (tmp_path / "m.jsonl").write_text("concept_id,macro_class\n" * 500)
    [problem] = read_manifest(tmp_path / "m.jsonl", default_prompts=["a {concept}"]).problems
    assert problem.reason.startswith("lines 1 to 500 are no JSON objects; the first is not JSON")


def test_separate_mistakes_are_told_separately():
    found = bad(b'{}\nx\ny\n{}\n{"a":1,"a":2}\n{"b":1,"b":2}\n5\n')
    assert [text.split(";")[0] for text in found] == [
        "lines 2 to 3 are no JSON objects",
        "line 5 gives 'a' twice",
        "line 6 gives 'b' twice",
        "line 7 is not a JSON object",
    ]


def test_long_line_is_refused_unread():
    class Endless(io.RawIOBase):
        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return b"x" * size

    file = Endless()
    [found] = json_lines(file, ManifestSettings(max_line_bytes=5_000_000))  # type: ignore[arg-type]
    assert isinstance(found, BadLine) and str(found) == "line 1 is longer than 5000000 bytes"
    assert "manifest.max_line_bytes" in found.fix
    assert file.taken < 10_000_000
    assert bad(b"{}\n" + b" " * 50 + b"{}\n{}\n", max_line_bytes=20) == ["line 2 is longer than 20 bytes"]


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2), max_size=5), st.data())
def test_lines_end_as_text_files_do(rows, data):
    ends = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])
    content = b"".join(json.dumps(row).encode() + data.draw(ends) for row in rows)
    assert read(b"\xef\xbb\xbf" + content) == rows


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1])
def test_line_end_cut_in_two_by_a_chunk_is_one(size):
    content = b" " * (size - 3) + b"{}\r" + b"\n{}\n[\n"
    assert [str(found) for found in read(content)] == [
        "{}",
        "{}",
        "line 3 is not JSON: Expecting value: line 1 column 2 (char 1)",
    ]
