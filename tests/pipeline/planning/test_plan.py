from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.planning.plan import Shard, make_shards, plan_run, split_shard

from ...support.catalog_factories import planned

ids = st.text("abcdef0123", min_size=1, max_size=3)
prints = st.sampled_from(["1", "2"])


def committed(concept_id: str, training: str = "t1", rendering: str = "r1") -> CommittedConcept:
    return CommittedConcept(concept_id, "mug", training, rendering, "residuals/x.parquet", 0)


@st.composite
def manifests_and_catalogs(draw: st.DrawFn):
    """A manifest's concepts and failures, and a catalog that holds some of them and others."""
    names = draw(st.lists(ids, unique=True, max_size=12))
    fails = [name for name in names if draw(st.integers(0, 4)) == 0]
    concepts = [
        planned(name, training=draw(prints), rendering=draw(prints), row=row)
        for row, name in enumerate(names)
        if name not in fails
    ]
    held = draw(st.dictionaries(st.one_of(ids, st.sampled_from(names) if names else ids), st.tuples(prints, prints)))
    return (
        concepts,
        [ConceptFailure(name, "load", "cannot be read") for name in fails],
        {name: committed(name, *fingerprints) for name, fingerprints in held.items()},
    )


@given(manifests_and_catalogs())
def test_plan_holds_every_row_exactly_once(inputs):
    concepts, failures, held = inputs
    plan = plan_run(concepts, failures, held)
    places = [
        *(concept.concept_id for concept in (*plan.train, *plan.render_only)),
        *plan.current,
        *(failure.concept_id for failure in plan.failures),
    ]
    assert sorted(places) == sorted([*(one.concept_id for one in concepts), *(one.concept_id for one in failures)])
    assert plan.rows == len(concepts) + len(failures)
    assert set(plan.removed) == set(held) - set(places)


@given(manifests_and_catalogs())
def test_concept_is_current_only_if_both_fingerprints_match(inputs):
    concepts, failures, held = inputs
    plan = plan_run(concepts, failures, held)
    wanted = {one.concept_id: one.fingerprints for one in concepts}
    for concept_id in plan.current:
        assert (held[concept_id].training_fingerprint, held[concept_id].rendering_fingerprint) == (
            wanted[concept_id].training,
            wanted[concept_id].rendering,
        )
    for concept in plan.render_only:
        assert concept.committed == held[concept.concept_id]
        assert concept.committed.training_fingerprint == concept.fingerprints.training
    for concept in plan.train:
        assert concept.committed == held.get(concept.concept_id), "a warm start reads it"


def test_edited_prompt_renders_again_without_training():
    plan = plan_run([planned("a", rendering="r2"), planned("b")], [], {"a": committed("a"), "b": committed("b")})
    assert [one.concept_id for one in plan.render_only] == ["a"]
    assert plan.current == ("b",)
    assert not plan.train


def test_duplicate_concept_raises():
    with pytest.raises(ValueError, match="planned twice: a"):
        plan_run([planned("a")], [ConceptFailure("a", "load", "no")], {})


@given(manifests_and_catalogs(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_shards_hold_all_work_once_within_their_size(inputs, size, workers, pack_size):
    plan = plan_run(*inputs)
    shards = make_shards(plan, size, workers=workers, pack_size=pack_size)
    held = Counter(concept_id for shard in shards for concept_id in shard.concept_ids)
    assert held == Counter(one.concept_id for one in (*plan.train, *plan.render_only))
    assert all(1 <= len(shard.concepts) <= size for shard in shards)
    assert len({shard.shard_id for shard in shards}) == len(shards)
    assert [shard.kind for shard in shards] == sorted((shard.kind for shard in shards), reverse=True)


@pytest.mark.parametrize(
    ("work", "size", "workers", "pack_size", "lengths"),
    [
        (48, 16, 2, 8, [8] * 6),  # small enough for three a worker, full packs
        (40, 16, 1, 8, [16, 16, 8]),  # nobody to wait for
        (1000, 16, 2, 8, [16] * 62 + [8]),  # enough for everybody
        (12, 16, 2, 8, [8, 4]),  # never less than a pack
        (12, 4, 2, 8, [4, 4, 4]),  # unless a shard is
        (100, 20, 2, 8, [16] * 6 + [4]),  # full packs
        (5, 16, 8, 1, [1] * 5),
    ],
)
def test_shards_are_full_packs_and_small_enough_to_share(work, size, workers, pack_size, lengths):
    plan = plan_run([planned(f"c{number}") for number in range(work)], [], {})
    shards = make_shards(plan, size, workers=workers, pack_size=pack_size)
    assert [len(shard.concepts) for shard in shards] == lengths


@given(manifests_and_catalogs())
def test_known_current_ids_give_the_same_plan(inputs):
    concepts, failures, held = inputs
    whole = plan_run(concepts, failures, held)
    rest = [one for one in concepts if one.concept_id not in whole.current]
    plan = plan_run(rest, failures, held, current=whole.current)
    assert plan == whole
    if whole.current:
        with pytest.raises(ValueError, match="planned twice"):
            plan_run(concepts, failures, held, current=whole.current)


@given(st.lists(ids, unique=True, min_size=2, max_size=8), st.randoms())
def test_shard_id_depends_on_contents_alone(names, random):
    concepts = [planned(name, row=row) for row, name in enumerate(names)]
    shuffled = random.sample(concepts, len(concepts))
    elsewhere = [planned(one.concept_id, row=99) for one in shuffled]
    assert Shard.of("train", concepts).shard_id == Shard.of("train", elsewhere).shard_id
    edited = [planned(names[0], training="t2"), *concepts[1:]]
    others = [Shard.of("render", concepts), Shard.of("train", concepts[1:]), Shard.of("train", edited)]
    assert Shard.of("train", concepts).shard_id not in {shard.shard_id for shard in others}


def test_appended_row_keeps_the_ids_of_full_shards():
    rows = [planned(f"c{row}", row=row) for row in range(7)]
    before = make_shards(plan_run(rows[:6], [], {}), 3)
    after = make_shards(plan_run(rows, [], {}), 3)
    assert [shard.shard_id for shard in before] == [shard.shard_id for shard in after[:2]]


@given(st.integers(2, 40))
def test_split_shard_keeps_all_concepts_in_two_halves(count):
    left, right = split_shard(Shard.of("train", [planned(f"c{row}", row=row) for row in range(count)]))
    assert left.concept_ids + right.concept_ids == tuple(f"c{row}" for row in range(count))
    assert 0 <= len(left.concepts) - len(right.concepts) <= 1


def test_split_shard_and_make_shards_check_their_arguments():
    with pytest.raises(ValueError, match="cannot be split"):
        split_shard(Shard.of("train", [planned("a")]))
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        make_shards(plan_run([planned("a")], [], {}), 0)
