"""Which concepts a plan may count on if data files were deleted, on every kind of store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.missing_files import read_present
from persres.pipeline.planning.plan import plan_run

from ...support.catalog_factories import commit, planned, shard_of

NAMES = ("a", "b", "c", "d")


def plan_of(store):
    """The names to train, to render, and that are current."""
    plan = plan_run(map(planned, NAMES), (), read_present(store))
    return tuple(
        [one if isinstance(one, str) else one.concept_id for one in part]
        for part in (plan.train, plan.render_only, plan.current)
    )


@pytest.mark.parametrize("compacted", [False, True])
def test_concepts_of_a_missing_file_are_done_again(store, compacted):
    commit(store, shard_of(planned("a"), planned("b")))
    commit(store, shard_of(planned("c"), planned("d")))
    if compacted:
        compact(store)
    assert plan_of(store) == ([], [], [*NAMES])
    held, texts = read_committed(store), []
    store.delete(str(held["a"].rendering_file))
    assert plan_of(store) == ([], ["a", "b"], ["c", "d"])
    store.delete(held["c"].residual_file)
    assert plan_of(store) == (["c", "d"], ["a", "b"], [])
    present = read_present(store, texts.append)
    assert [text.split(" is missing: ") for text in texts] == [
        [store.url(str(held["a"].rendering_file)), "its 2 concepts must be done again"],
        [store.url(held["c"].residual_file), "its 2 concepts must be done again"],
    ]
    assert present["c"].residual_file == held["c"].residual_file, "where it was, for a message"
    assert not present.holds("a", Fingerprints("t1", "r1"))


def test_missing_file_of_a_superseded_commit_changes_nothing(store):
    first = commit(store, shard_of(planned("a")))
    commit(store, shard_of(planned("a", training="t2")), run_id="run-2")
    for path in first.files.values():
        store.delete(path)
    texts: list[str] = []
    present = read_present(store, texts.append)
    assert present.holds("a", Fingerprints("t2", "r1")) and not texts


def test_concept_without_prompts_misses_no_renderings(store):
    concept = planned("a")
    concept = replace(concept, row=replace(concept.row, prompts=()))
    commit(store, shard_of(concept))
    texts: list[str] = []
    assert read_present(store, texts.append).holds("a", Fingerprints("t1", "r1")) and not texts
