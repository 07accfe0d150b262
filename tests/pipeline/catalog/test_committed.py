"""A million concepts behind a mapping: the same answers as a dictionary of objects gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.catalog.commit_record import Fingerprints, newest_per_concept
from persres.pipeline.catalog.committed import CommittedConcepts, places_of_each
from persres.pipeline.catalog.schemas import INDEX, index_table

from .test_commit_record import distinct, records

histories = st.lists(records, max_size=8, unique_by=distinct)


@given(histories, st.integers(1, 4), st.randoms())
def test_it_is_the_mapping_that_the_obvious_way_gives(history, tables, shuffle):
    """Whatever the order of records and however they are divided into tables."""
    shuffle.shuffle(history)
    committed = CommittedConcepts([index_table(history[start::tables]) for start in range(tables)])
    expected = newest_per_concept(history)

    assert list(committed.items()) == list(expected.items())
    assert list(committed.values()) == list(expected.values())
    assert len(committed) == len(expected)
    assert [name in committed for name in "abcd"] == [name in expected for name in "abcd"]
    assert committed.of_each("dcbaab") == [expected.get(name) for name in "dcbaab"]
    assert committed.newest_run() == max((one.run_id for one in history if one.concepts), default="")


@given(histories)
def test_only_the_winner_of_all_is_held_under_its_own_fingerprints(history):
    committed, expected = CommittedConcepts([index_table(history)]), newest_per_concept(history)
    for name in "abcd":
        for training in ("t1", "t2"):
            held = expected.get(name)
            assert committed.holds(name, Fingerprints(training, "r1")) == (
                held is not None and (held.training_fingerprint, held.rendering_fingerprint) == (training, "r1")
            )


@given(histories, st.integers(0, 8))
def test_winners_of_winners_are_the_winners_of_all(history, folded_first):
    folded = CommittedConcepts([index_table(history[:folded_first])]).to_table()
    assert folded.schema.equals(INDEX, check_metadata=True)
    assert CommittedConcepts([index_table(history[folded_first:]), folded]) == newest_per_concept(history)


def test_nothing_is_committed_at_first():
    nothing = CommittedConcepts()
    assert (len(nothing), list(nothing), nothing.newest_run(), nothing.of_run("r")) == (0, [], "", frozenset())
    assert not nothing.holds("a", Fingerprints("t", "r")) and nothing.get("a") is None
    assert nothing.to_table().num_rows == 0
    with pytest.raises(KeyError):
        nothing["a"]


@given(histories)
def test_places_are_all_but_the_scores_of_whatever_mapping_it_is(history):
    expected = newest_per_concept(history)
    places = [replace(expected[name], scores={}) if name in expected else None for name in "cabd"]
    assert places_of_each(expected, "cabd") == places
    assert places_of_each(CommittedConcepts([index_table(history)]), "cabd") == places
