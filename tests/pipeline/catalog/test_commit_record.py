from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptFailure, StoreError
from persres.pipeline.catalog.commit_record import (
    CommittedConcept,
    ShardCommit,
    TornRecord,
    VariantScores,
    blob_digest,
    newest_per_concept,
    rendering_digest,
)

concepts = st.builds(
    CommittedConcept,
    concept_id=st.sampled_from("abc"),
    macro_class=st.text(max_size=4),
    training_fingerprint=st.sampled_from(["t1", "t2"]),
    rendering_fingerprint=st.just("r1"),
    residual_file=st.just("residuals/x.parquet"),
    residual_row=st.integers(0, 9),
    rendering_file=st.one_of(st.none(), st.just("renderings/x.parquet")),
    rendering_rows=st.tuples(st.integers(0, 99), st.integers(0, 9)),
    scores=st.dictionaries(
        st.sampled_from(["base", "lag"]),
        st.builds(VariantScores, images=st.integers(1, 9), prompt_score=st.one_of(st.none(), st.floats(-1, 1))),
        max_size=2,
    ),
    residual_digest=st.sampled_from(["", "0123"]),
)
records = st.builds(
    ShardCommit,
    run_id=st.sampled_from(["20260101T000000Z-aaaaaa", "20260102T000000Z-000000"]),
    shard_id=st.sampled_from(["train-1", "train-2"]),
    attempt=st.sampled_from(["001", "002"]),
    kind=st.sampled_from(["train", "render"]),
    files=st.just({"residuals": "residuals/x.parquet"}),
    concepts=st.lists(concepts, max_size=3, unique_by=lambda one: one.concept_id).map(tuple),
    failures=st.just((ConceptFailure("z", "load", "cannot be read", "send another"),)),
    seconds=st.just({"train": 1.5}),
)


def distinct(record: ShardCommit) -> tuple[str, str, str]:
    return record.run_id, record.shard_id, record.attempt


@given(records)
def test_a_record_survives_its_file(record):
    assert ShardCommit.from_json(record.to_json(), path="commits/x.json") == record


@given(st.lists(records, max_size=6, unique_by=distinct), st.randoms())
def test_the_winner_does_not_depend_on_the_order_of_records(many, random):
    assert newest_per_concept(many) == newest_per_concept(random.sample(many, len(many)))


@given(st.lists(records, max_size=6, unique_by=distinct))
def test_every_concept_comes_from_the_latest_run_that_committed_it(many):
    winners = newest_per_concept(many)
    assert list(winners) == sorted({one.concept_id for record in many for one in record.concepts})
    for concept_id, winner in winners.items():
        holders = [record for record in many if concept_id in {one.concept_id for one in record.concepts}]
        latest = max(record.run_id for record in holders)
        first = min(
            (record for record in holders if record.run_id == latest), key=lambda one: (one.attempt, one.shard_id)
        )
        assert winner in first.concepts


RECORD = ShardCommit("r", "s", "1", "train", {}, (), (), {})


def test_fields_of_a_later_minor_version_are_ignored():
    text = json.dumps({**json.loads(RECORD.to_json()), "new": 1}).encode()
    assert ShardCommit.from_json(text, path="x") == RECORD


@given(records, st.data())
def test_a_record_that_was_cut_off_anywhere_says_that_it_is_torn(record, data):
    whole = record.to_json()
    cut = whole[: data.draw(st.integers(0, len(whole) - 3))]
    for text in (cut, cut + b"\0" * 7):
        with pytest.raises(TornRecord, match=r"commits/x\.json was cut off"):
            ShardCommit.from_json(text, path="commits/x.json")


def test_digests_tell_images_and_their_order_apart():
    assert blob_digest(b"a") == hashlib.sha256(b"a").hexdigest()[:32]
    assert rendering_digest([]) == ""
    several = [rendering_digest(images) for images in ([b"a"], [b"a", b"b"], [b"b", b"a"], [b"ab"], [b""])]
    assert len(set(several)) == 5 and {len(digest) for digest in several} == {32}


def test_a_record_from_before_the_digests_has_none():
    raw = json.loads(replace(RECORD, concepts=(CommittedConcept("a", "mug", "t", "r", "x", 0),)).to_json())
    for name in ("residual_digest", "renderings_digest"):
        del raw["concepts"][0][name]
    [concept] = ShardCommit.from_json(json.dumps(raw).encode(), path="x").concepts
    assert (concept.residual_digest, concept.renderings_digest) == ("", "")


@pytest.mark.parametrize(
    "text",
    [b"{}", b"[1]", RECORD.to_json().replace(b'"kind"', b'"kind'), b'{"version": 1}', b'{"version": "x"}'],
)
def test_a_damaged_record_is_named_with_what_to_do(text):
    with pytest.raises(StoreError, match=r"commits/x\.json is damaged .*delete commits/x\.json"):
        ShardCommit.from_json(text, path="commits/x.json")


def test_a_record_of_a_newer_version_is_not_guessed_at():
    with pytest.raises(StoreError, match="has version 2"):
        ShardCommit.from_json(replace(RECORD, version=2).to_json(), path="commits/x.json")
