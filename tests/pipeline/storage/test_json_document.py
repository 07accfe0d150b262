"""Parsing JSON objects: a typed value, or one error that names the object."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.storage.json_document import DamagedDocument, parse_document, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    run_id: str
    rows: int
    seconds: float = 0.0
    failed: tuple[str, ...] = ()


def parse(data: bytes) -> Document:
    return parse_document(data, Document, name="runs/x/summary.json", fix="restore it")


@given(VALUES)
def test_json_of_finite_numbers_is_parsed_as_the_standard_library_does(value):
    assert parse_json(json.dumps(value).encode(), name="", fix="") == json.loads(json.dumps(value))


@given(st.binary())
def test_any_bytes_are_a_value_or_damage(data):
    try:
        value = parse_json(data, name="a.json", fix="")
    except DamagedDocument:
        return
    assert json.loads(data) == value


@given(VALUES)
def test_any_value_is_the_document_or_damage(value):
    try:
        document = parse(json.dumps(value).encode())
    except DamagedDocument as error:
        assert "runs/x/summary.json is damaged (" in str(error) and "Fix: restore it" in str(error) and error.is_json
        return
    assert isinstance(document, Document) and math.isfinite(document.seconds)


def test_unknown_fields_are_ignored_and_missing_ones_have_their_default():
    assert parse(b'{"run_id": "r", "rows": 1, "of_a_later_version": [{}]}') == Document("r", 1)
    with pytest.raises(DamagedDocument, match=r"rows: field required"):
        parse(b'{"run_id": "r"}')


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"", b"{", b"\xff", b"NaN", b'"\\ud800"'])
def test_text_that_is_no_json_says_so(data):
    with pytest.raises(DamagedDocument) as caught:
        parse(data)
    assert not caught.value.is_json


@pytest.mark.parametrize("number", ["1e999", "-1e999", str(2**63), "9" * 4000])
def test_impossible_number_is_damage(number):
    with pytest.raises(DamagedDocument, match="it holds the number"):
        parse(f'{{"run_id": "r", "rows": 1, "later": [{{"x": {number}}}]}}'.encode())
