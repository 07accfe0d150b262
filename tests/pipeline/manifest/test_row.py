from __future__ import annotations

import os
import posixpath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.concept import CONCEPT_ID_PATTERN
from persres.pipeline.manifest.row import ReferenceSource, parent_folder, parse_row, resolve_uri
from persres.pipeline.storage.uri import normalized, without_credentials

GOOD: dict[str, Any] = {"concept_id": "mug-1", "macro_class": "mug", "reference_images": ["a.png"]}


def parse(**changes: Any):
    return parse_row(GOOD | changes, row=3, folder="/data", default_prompts=["a {concept}"])


def test_valid_row_is_parsed_without_problems():
    row, problems = parse(prompts=["the {concept} at sea"], seed=7, metadata={"sku": "9", "none": None, "size": 3})

    assert problems == []
    assert (row.row, row.concept_id, row.macro_class) == (3, "mug-1", "mug")
    assert row.reference_images == (ReferenceSource("/data/a.png"),)
    assert row.prompts == ("the {concept} at sea",)
    assert row.metadata == {"sku": "9", "size": "3"}
    assert (row.seed_for(1), parse()[0].seed_for(1)) == (7, 1)
    assert parse()[0].prompts == ("a {concept}",)


@pytest.mark.parametrize(
    ("changes", "column", "level", "reason"),
    [
        ({"concept_id": None}, "concept_id", "manifest", "missing"),
        ({"concept_id": "mug/1"}, "concept_id", "manifest", "letter or digit"),
        ({"concept_id": "-mug"}, "concept_id", "manifest", "letter or digit"),
        ({"concept_id": "m" * 129}, "concept_id", "manifest", "128"),
        ({"concept_id": 5}, "concept_id", "manifest", "not a string"),
        ({"macro_class": " "}, "macro_class", "concept", "missing"),
        ({"macro_class": None}, "macro_class", "concept", "missing"),
        ({"macro_class": "mug\x00"}, "macro_class", "concept", "a control character"),
        ({"macro_class": "m" * 201}, "macro_class", "concept", "201 characters long"),
        ({"reference_images": ["a\n.png"]}, "reference_images", "concept", "a control character"),
        ({"prompts": ["{concept} \ud800"]}, "prompts", "concept", "a lone surrogate"),
        ({"metadata": {"\ud800": "a"}}, "metadata", "concept", "a lone surrogate"),
        ({"seed": 10**400}, "seed", "concept", "whole number"),
        ({"reference_images": None}, "reference_images", "concept", "is missing"),
        ({"reference_images": []}, "reference_images", "concept", "empty list"),
        ({"reference_images": "a.png"}, "reference_images", "concept", "not a list"),
        ({"reference_images": ["a.png", None]}, "reference_images", "concept", "reference_images[1] is empty"),
        ({"reference_images": [{"bytes": None, "path": None}]}, "reference_images", "concept", "is empty"),
        ({"reference_images": [{"bytes": "iVBO", "path": None}]}, "reference_images", "concept", "not binary"),
        ({"reference_images": [4]}, "reference_images", "concept", "not a path"),
        ({"prompts": []}, "prompts", "concept", "empty list"),
        ({"prompts": "a {concept}"}, "prompts", "concept", "not a list"),
        ({"prompts": ["a {concept}", "a mug"]}, "prompts", "concept", "prompts[1]"),
        ({"prompts": ["{concept} {concept}"]}, "prompts", "concept", "exactly once"),
        ({"prompts": [None]}, "prompts", "concept", "not a string"),
        ({"masks": ["m.png", "n.png"]}, "masks", "concept", "2 masks for 1"),
        ({"masks": []}, "masks", "concept", "empty list"),
        ({"seed": -1}, "seed", "concept", "2^63"),
        ({"seed": 1.5}, "seed", "concept", "whole number"),
        ({"seed": True}, "seed", "concept", "whole number"),
        ({"seed": float("inf")}, "seed", "concept", "whole number"),
        ({"metadata": "x"}, "metadata", "concept", "not a map"),
        ({"metadata": {"a": [1]}}, "metadata", "concept", "plain value"),
    ],
)
def test_problem_names_row_column_value_and_fix(changes, column, level, reason):
    _, problems = parse(**changes)

    assert len(problems) == 1, problems
    problem = problems[0]
    assert (problem.row, problem.column, problem.level) == (3, column, level)
    assert reason in problem.reason
    assert problem.fix and problem.value


def test_row_reports_all_of_its_problems():
    _, problems = parse(macro_class="", reference_images=[], prompts=["a", "b"], seed=-4)

    assert [problem.column for problem in problems] == ["reference_images", "macro_class", "prompts", "prompts", "seed"]
    assert {problem.concept_id for problem in problems} == {"mug-1"}


def test_suggested_id_is_valid():
    _, [problem] = parse(concept_id="_shop / mug #1_")

    assert CONCEPT_ID_PATTERN.fullmatch(problem.fix.split("'")[1])


def test_seed_may_be_an_integral_float_as_pandas_writes_it():
    assert parse(seed=7.0)[0].seed == 7
    assert parse(seed=float("nan"))[0].seed is None


def test_embedded_bytes_take_precedence_over_their_path():
    row, problems = parse(reference_images=[{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}])

    assert problems == []
    assert row.reference_images == (ReferenceSource("a.png", b"x"), ReferenceSource("/data/b.png"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["bytes", "path", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
columns = ["concept_id", "macro_class", "reference_images", "prompts", "masks", "seed", "metadata"]


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(columns, plain)))
def test_parse_row_raises_for_no_value(values):
    row, problems = parse_row(values, row=0, folder="/data", default_prompts=["a {concept}"])

    assert problems or (row.concept_id and row.macro_class and row.reference_images and row.prompts)


@pytest.mark.parametrize(
    ("manifest", "uri", "expected"),
    [
        ("/data/m.parquet", "refs/a.png", "/data/refs/a.png"),
        ("/data/sets/m.parquet", "../refs/a.png", "/data/refs/a.png"),
        ("/data/m.parquet", "/other/a.png", "/other/a.png"),
        ("/data/m.parquet", "s3://bucket/a.png", "s3://bucket/a.png"),
        ("s3://bucket/sets/m.parquet", "refs/a.png", "s3://bucket/sets/refs/a.png"),
        ("s3://bucket/sets/m.parquet", "../a.png", "s3://bucket/a.png"),
        ("https://host/sets/m.parquet?sig=1", "a.png", "https://host/sets/a.png"),
        ("memory://m.parquet", "a.png", "memory://a.png"),
        ("file:///data/m.parquet", "a.png", "/data/a.png"),
        ("FILE:///data/m.parquet", "a.png", "/data/a.png"),
        ("/data/m.parquet", "file:///other/a%20b.png", "/other/a b.png"),
        ("/data/m.parquet", "file:/other/a.png", "/other/a.png"),
        ("s3://bucket/m.parquet", "file://localhost/other/a.png", "/other/a.png"),
        ("/data/m.parquet", "~/a.png", os.path.expanduser("~/a.png")),
        ("/data/m.parquet", "HTTPS://host/A%2Fb.png", "https://host/A%2Fb.png"),
        ("/data/m.parquet", "S3://bucket/a.png", "s3://bucket/a.png"),
        ("/data/m.parquet", "a%20b.png", "/data/a%20b.png"),
    ],
)
def test_relative_reference_starts_at_the_manifests_folder(manifest, uri, expected):
    assert resolve_uri(uri, parent_folder(normalized(manifest))) == expected
    row, _ = parse_row(
        GOOD | {"reference_images": [uri], "masks": [uri]},
        row=0,
        folder=parent_folder(normalized(manifest)),
        default_prompts=["a {concept}"],
    )
    assert [source.uri for source in (*row.reference_images, *(row.masks or ()))] == [expected, expected]


paths = st.lists(st.sampled_from(["a", "b.png", ".", "..", "...", "", ".x"]), min_size=1, max_size=5).map("/".join)


@given(st.sampled_from(["", "/", "s3://", "memory://"]), paths, paths)
def test_resolve_uri_joins_and_normalizes_any_path(scheme, folder, uri):
    """`resolve_uri` skips joining and normalizing where they change nothing."""
    prefix, root = ("", scheme + folder) if "://" not in scheme else (scheme, folder)
    expected = uri if uri.startswith("/") else prefix + posixpath.normpath(posixpath.join(root, uri))
    assert resolve_uri(uri, prefix + root) == expected


def test_parent_folder_of_a_bare_name_is_the_working_directory():
    assert parent_folder("m.parquet") == os.getcwd()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:8080/a.png?sig=secret#secret", "https://host:8080/a.png"),
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("/data/a.png", "/data/a.png"),
        ("https://[me:secret@host/a.png", "https://host/a.png"),
    ],
)
def test_label_hides_credentials(uri, shown):
    assert without_credentials(uri) == shown
    assert ReferenceSource(uri).label == shown


def test_label_of_an_embedded_image_is_its_name_or_size():
    assert ReferenceSource("a.png", b"xyz").label == "a.png"
    assert ReferenceSource(None, b"xyz").label == "<3 bytes>"
    assert "xyz" not in repr(ReferenceSource(None, b"xyz"))
