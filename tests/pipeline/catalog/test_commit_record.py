from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreError
from persres.pipeline.catalog.commit_record import (
    CommittedConcept,
    ShardCommit,
    TornRecord,
    blob_digest,
    rendering_digest,
)
from persres.pipeline.catalog.sealed_json import seal, unseal

from ...support.commit_reference import expected_concepts
from ...support.commit_strategies import attempt_of, records


@given(records)
def test_record_parses_to_itself(record):
    assert ShardCommit.from_json(record.to_json(), path="commits/x.json") == record


@given(st.lists(records, max_size=6, unique_by=attempt_of), st.randoms())
def test_expected_concepts_do_not_depend_on_the_order_of_records(history, random):
    assert expected_concepts(history) == expected_concepts(random.sample(history, len(history)))


@given(st.lists(records, max_size=6, unique_by=attempt_of))
def test_expected_concepts_are_from_the_latest_run(history):
    concepts = expected_concepts(history)
    assert list(concepts) == sorted({one.concept_id for record in history for one in record.concepts})
    for concept_id, concept in concepts.items():
        holders = [record for record in history if concept_id in {one.concept_id for one in record.concepts}]
        latest = max(record.run_id for record in holders)
        first = min(
            (record for record in holders if record.run_id == latest), key=lambda one: (one.attempt, one.shard_id)
        )
        assert concept in first.concepts


RECORD = ShardCommit("r", "s", "1", "train", {}, (), (), {})


def test_record_ignores_fields_of_a_later_minor_version():
    content = unseal(RECORD.to_json(), sealed_since=2)
    assert ShardCommit.from_json(seal({**content, "new": 1}), path="x") == RECORD


@given(records, st.data())
def test_record_in_which_a_byte_is_flipped_is_an_error_or_the_same(record, data):
    text = bytearray(record.to_json())
    text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = ShardCommit.from_json(bytes(text), path="x")
    except StoreError as error:
        assert "commit record x" in str(error)
    else:
        assert read == record  # white space, for example


@given(records, st.data())
def test_record_cut_off_anywhere_is_torn(record, data):
    whole = record.to_json()
    cut = whole[: data.draw(st.integers(0, len(whole) - 3))]
    for text in (cut, cut + b"\0" * 7):
        with pytest.raises(TornRecord, match=r"commits/x\.json was cut off"):
            ShardCommit.from_json(text, path="commits/x.json")


def test_rendering_digest_depends_on_images_and_their_order():
    assert blob_digest(b"a") == hashlib.sha256(b"a").hexdigest()[:32]
    assert rendering_digest([]) == ""
    several = [rendering_digest(images) for images in ([b"a"], [b"a", b"b"], [b"b", b"a"], [b"ab"], [b""])]
    assert len(set(several)) == 5 and {len(digest) for digest in several} == {32}


def test_record_of_an_earlier_version_has_no_digests():
    record = replace(RECORD, version=1, concepts=(CommittedConcept("a", "mug", "t", "r", "x", 0),))
    raw = unseal(record.to_json(), sealed_since=2)
    for name in ("residual_digest", "renderings_digest"):
        del raw["concepts"][0][name]
    [concept] = ShardCommit.from_json(json.dumps(raw).encode(), path="x").concepts
    assert (concept.residual_digest, concept.renderings_digest) == ("", "")


@pytest.mark.parametrize(
    "text",
    [b"{}", b"[1]", RECORD.to_json().replace(b'"kind"', b'"kind'), b'{"version": 1}', b'{"version": "x"}'],
)
def test_damaged_record_is_named_with_a_fix(text):
    with pytest.raises(StoreError, match=r"commits/x\.json is damaged .*persres-batch repair"):
        ShardCommit.from_json(text, path="commits/x.json")


def test_record_of_a_newer_version_is_refused():
    with pytest.raises(StoreError, match="has version 3"):
        ShardCommit.from_json(replace(RECORD, version=3).to_json(), path="commits/x.json")
