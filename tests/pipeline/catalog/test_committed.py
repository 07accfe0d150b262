"""The mapping over Arrow columns equals a dictionary of concepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.catalog.committed import CommittedConcepts, get_many_without_scores
from persres.pipeline.catalog.schemas import INDEX, index_table

from ...support.commit_reference import expected_concepts
from ...support.commit_strategies import attempt_of, records

histories = st.lists(records, max_size=8, unique_by=attempt_of)


@given(histories, st.integers(1, 4), st.randoms())
def test_committed_concepts_equal_the_reference(history, tables, shuffle):
    """In any order of records, divided into any number of tables."""
    shuffle.shuffle(history)
    committed = CommittedConcepts([index_table(history[start::tables]) for start in range(tables)])
    expected = expected_concepts(history)

    assert list(committed.items()) == list(expected.items())
    assert list(committed.values()) == list(expected.values())
    assert len(committed) == len(expected)
    assert [name in committed for name in "abcd"] == [name in expected for name in "abcd"]
    assert committed.get_many("dcbaab") == [expected.get(name) for name in "dcbaab"]
    assert committed.newest_run() == max((one.run_id for one in history if one.concepts), default="")


@given(histories)
def test_holds_is_true_only_for_the_current_fingerprints(history):
    committed, expected = CommittedConcepts([index_table(history)]), expected_concepts(history)
    for name in "abcd":
        for training in ("t1", "t2"):
            held = expected.get(name)
            assert committed.holds(name, Fingerprints(training, "r1")) == (
                held is not None and (held.training_fingerprint, held.rendering_fingerprint) == (training, "r1")
            )


@given(histories, st.integers(0, 8))
def test_committed_concepts_merged_in_two_steps_equal_those_merged_at_once(history, first):
    merged = CommittedConcepts([index_table(history[:first])]).to_table()
    assert merged.schema.equals(INDEX, check_metadata=True)
    assert CommittedConcepts([index_table(history[first:]), merged]) == expected_concepts(history)


def test_committed_concepts_of_no_tables_are_empty():
    empty = CommittedConcepts()
    assert (len(empty), list(empty), empty.newest_run(), empty.concepts_of_run("r")) == (0, [], "", frozenset())
    assert not empty.holds("a", Fingerprints("t", "r")) and empty.get("a") is None
    assert empty.to_table().num_rows == 0
    with pytest.raises(KeyError):
        empty["a"]


@given(histories)
def test_get_many_without_scores_works_for_any_mapping(history):
    expected = expected_concepts(history)
    plain = [replace(expected[name], scores={}) if name in expected else None for name in "cabd"]
    assert get_many_without_scores(expected, "cabd") == plain
    assert get_many_without_scores(CommittedConcepts([index_table(history)]), "cabd") == plain
