"""The policy, under any sequence of events: every concept ends exactly once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptError, ConceptFailure, StoreError
from persres.jobs.shard_queue import ShardQueue
from persres.pipeline.fingerprint import Fingerprints
from persres.pipeline.manifest_row import ManifestRow, ReferenceSource
from persres.pipeline.plan import PlannedConcept, Shard


def planned(name: str) -> PlannedConcept:
    row = ManifestRow(0, name, "mug", (ReferenceSource("a.png"),), ("a {concept}",))
    return PlannedConcept(row, Fingerprints("t" * 32, "r" * 32))


def shard(*names: str) -> Shard:
    return Shard.of("train", [planned(name) for name in names])


def drain(queue: ShardQueue) -> list[tuple[str, ...]]:
    """Finish everything that waits; returns what each attempt held."""
    held = []
    while attempt := queue.take():
        held.append(attempt.shard.concept_ids)
        queue.finished(attempt, attempt.shard.concept_ids, ())
    return held


@given(
    sizes=st.lists(st.integers(1, 5), max_size=5),
    workers=st.integers(1, 4),
    max_losses=st.integers(1, 4),
    data=st.data(),
)
def test_every_concept_ends_exactly_once_whatever_happens(sizes, workers, max_losses, data):
    names = [f"c{number}" for number in range(sum(sizes))]
    shards = [shard(*names[sum(sizes[:index]) : sum(sizes[: index + 1])]) for index in range(len(sizes))]
    queue = ShardQueue(shards, max_losses=max_losses)
    in_flight, seen = [], set()
    for _ in range(200 * (len(names) + 1)):
        while len(in_flight) < workers and (attempt := queue.take()):
            in_flight.append(attempt)
            assert (attempt.shard.shard_id, attempt.attempt) not in seen, "an attempt's name was used twice"
            seen.add((attempt.shard.shard_id, attempt.attempt))
        assert queue.left + len(queue.committed) + len(queue.failures) == len(names)
        if not in_flight:
            break
        attempt = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
        event = data.draw(st.sampled_from(["finished", "partly", "lost", "raised"]))
        ids = attempt.shard.concept_ids
        if event == "finished":
            queue.finished(attempt, ids, ())
        elif event == "partly":
            queue.finished(attempt, ids[1:], [ConceptFailure(ids[0], "train", "no")])
        elif event == "lost":
            queue.lost(attempt, "gone")
        else:
            queue.raised(attempt, RuntimeError("boom"))
    ended = Counter([*queue.committed, *(failure.concept_id for failure in queue.failures)])
    assert ended == Counter(names)
    assert queue.open_shards == queue.left == 0


@dataclass
class _World:
    """Concepts that always kill their worker, and concepts that always raise."""

    killers: frozenset[str]
    raisers: frozenset[str]


@given(
    size=st.integers(1, 20),
    shard_size=st.integers(1, 8),
    data=st.data(),
)
def test_only_the_concepts_to_blame_fail(size, shard_size, data):
    names = [f"c{number}" for number in range(size)]
    world = _World(data.draw(st.frozensets(st.sampled_from(names))), data.draw(st.frozensets(st.sampled_from(names))))
    queue = ShardQueue([shard(*names[start : start + shard_size]) for start in range(0, size, shard_size)])
    while attempt := queue.take():
        ids = set(attempt.shard.concept_ids)
        if ids & world.killers:
            queue.lost(attempt, "killed")
        elif ids & world.raisers:
            queue.raised(attempt, ValueError("bad shape"))
        else:
            queue.finished(attempt, ids, ())
    assert {failure.concept_id for failure in queue.failures} == world.killers | world.raisers
    assert set(queue.committed) == set(names) - world.killers - world.raisers


def test_a_lost_shard_goes_behind_the_others():
    queue = ShardQueue([shard("a"), shard("b")])
    first = queue.take()
    assert first is not None
    queue.lost(first, "killed")
    assert drain(queue) == [("b",), ("a",)]


def test_after_three_losses_a_shard_is_split_and_then_at_every_loss():
    queue = ShardQueue([shard("a", "b", "c", "d")])
    sizes = []
    while attempt := queue.take():
        sizes.append(len(attempt.shard.concepts))
        if "a" in attempt.shard.concept_ids:
            queue.lost(attempt, "killed")
        else:
            queue.finished(attempt, attempt.shard.concept_ids, ())
    assert sizes == [4, 4, 4, 2, 2, 1, 1, 1, 1]  # a's three tries and b's one at the end
    (failure,) = queue.failures
    assert failure.concept_id == "a" and failure.stage == "quarantine" and "killed" in failure.reason


def test_a_preempted_machine_is_no_ones_fault():
    queue = ShardQueue([shard("a")], max_losses=2)
    for _ in range(10):
        attempt = queue.take()
        assert attempt is not None
        queue.lost(attempt, "spot", preempted=True)
    assert drain(queue) == [("a",)] and not queue.failures


def test_an_application_error_is_never_retried_blindly():
    queue = ShardQueue([shard("a")])
    attempt = queue.take()
    assert attempt is not None
    queue.raised(attempt, ValueError("bad shape"))
    (failure,) = queue.failures
    assert "ValueError: bad shape" in failure.reason and failure.fix
    assert queue.take() is None


def test_a_concept_error_keeps_its_stage():
    queue = ShardQueue([shard("a")])
    attempt = queue.take()
    assert attempt is not None
    queue.raised(attempt, ConceptError("loss is NaN", stage="train", fix="lower the learning rate"))
    assert queue.failures == [ConceptFailure("a", "train", "loss is NaN", "lower the learning rate")]


def test_a_store_that_stays_down_ends_the_run_and_blames_no_concept():
    queue = ShardQueue([shard("a", "b")])
    for _ in range(2):
        attempt = queue.take()
        assert attempt is not None
        queue.store_failed(attempt, StoreError("no space"))
    attempt = queue.take()
    assert attempt is not None
    with pytest.raises(StoreError, match="no space"):
        queue.store_failed(attempt, StoreError("no space"))
    assert not queue.failures and queue.left == 2


def test_a_concept_the_worker_forgot_has_failed():
    queue = ShardQueue([shard("a", "b")])
    attempt = queue.take()
    assert attempt is not None
    queue.finished(attempt, ["a"], ())
    assert queue.committed == ["a"] and [failure.concept_id for failure in queue.failures] == ["b"]


def test_a_report_about_someone_elses_concept_is_refused():
    queue = ShardQueue([shard("a")])
    attempt = queue.take()
    assert attempt is not None
    with pytest.raises(ValueError, match="does not hold: z"):
        queue.finished(attempt, ["z"], ())


def test_a_concept_in_two_shards_is_refused():
    with pytest.raises(ValueError, match="more than one shard: a"):
        ShardQueue([shard("a", "b"), shard("a")])
