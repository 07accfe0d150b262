"""The policy, under any sequence of events: every concept ends exactly once."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptError, ConceptFailure, StoreError, StoreRefused
from persres.jobs.driver.shard_queue import ShardAttempt, ShardQueue
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard


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


def waiting_concepts(queue: ShardQueue) -> list[str]:
    """What the queue would still hand out, seen on a copy of it."""
    rest, names = copy.deepcopy(queue), []
    while attempt := rest.take():
        names += attempt.shard.concept_ids
    return names


class _Crew:
    """Workers as the driver has them: up to `depth` shards in hand each, one that must be alone by itself."""

    def __init__(self, queue: ShardQueue, workers: int, depth: int) -> None:
        self.queue, self.depth = queue, depth
        self.hands: list[list[ShardAttempt]] = [[] for _ in range(workers)]
        self.seen: set[tuple[str, str]] = set()

    def assign(self, data: st.DataObject) -> None:
        """Give out shards until nobody takes any more, to workers in any order."""
        willing = list(range(len(self.hands)))
        while willing:
            number = data.draw(st.sampled_from(willing), label="worker")
            hand = self.hands[number]
            full = len(hand) >= self.depth or any(attempt.alone for attempt in hand)
            attempt = None if full else self.queue.take(beside_others=bool(hand))
            if attempt is None:
                willing.remove(number)
                continue
            assert not (attempt.alone and hand), "a shard to be tried alone has company"
            name = (attempt.shard.shard_id, attempt.attempt)
            assert name not in self.seen, "an attempt's name was used twice"
            self.seen.add(name)
            hand.append(attempt)

    @property
    def busy(self) -> list[int]:
        return [number for number, hand in enumerate(self.hands) if hand]

    def end(self, number: int, attempt: ShardAttempt) -> None:
        self.hands[number].remove(attempt)

    def die(self, number: int, *, preempted: bool = False) -> None:
        hand, self.hands[number] = self.hands[number], []
        self.queue.lost(hand, "gone", preempted=preempted)

    def leave(self, number: int) -> None:
        hand, self.hands[number] = self.hands[number], []
        for attempt in hand:
            self.queue.returned(attempt, "the worker leaves")


EVENTS = ["finished", "partly", "lost", "preempted", "raised", "store failed"]


@given(
    sizes=st.lists(st.integers(1, 5), max_size=5),
    workers=st.integers(1, 4),
    depth=st.integers(1, 3),
    max_losses=st.integers(1, 4),
    data=st.data(),
)
def test_every_concept_ends_exactly_once_whatever_happens(sizes, workers, depth, max_losses, data):
    names = [f"c{number}" for number in range(sum(sizes))]
    shards = [shard(*names[sum(sizes[:index]) : sum(sizes[: index + 1])]) for index in range(len(sizes))]
    queue = ShardQueue(shards, max_losses=max_losses)
    crew, mishaps = _Crew(queue, workers, depth), 0
    while True:
        crew.assign(data)
        held = [name for hand in crew.hands for attempt in hand for name in attempt.shard.concept_ids]
        ended = [*queue.committed, *(failure.concept_id for failure in queue.failures)]
        assert Counter([*waiting_concepts(queue), *held, *ended]) == Counter(names), "each in exactly one place"
        assert queue.left == len(names) - len(ended)
        if not crew.busy:
            break
        number = data.draw(st.sampled_from(crew.busy), label="whose")
        attempt = data.draw(st.sampled_from(crew.hands[number]), label="which")
        event = data.draw(st.sampled_from(EVENTS if mishaps < 30 else EVENTS[:2]), label="what")
        mishaps += event in ("lost", "preempted", "store failed")
        ids = attempt.shard.concept_ids
        if event in ("lost", "preempted"):
            crew.die(number, preempted=event == "preempted")
            continue
        crew.end(number, attempt)
        if event == "finished":
            queue.finished(attempt, ids, ())
        elif event == "partly":
            queue.finished(attempt, ids[1:], [ConceptFailure(ids[0], "train", "no")])
        elif event == "raised":
            queue.raised(attempt, RuntimeError("boom"))
            crew.leave(number)
        else:
            try:
                queue.store_failed(attempt, StoreError("SlowDown"))
            except StoreError:
                return  # the run ends here, and whatever waits is for the next one
    assert queue.open_shards == queue.waiting == queue.left == 0


@given(
    size=st.integers(1, 20),
    shard_size=st.integers(1, 8),
    workers=st.integers(1, 3),
    depth=st.integers(1, 3),
    max_losses=st.integers(1, 3),
    data=st.data(),
)
def test_only_the_concepts_to_blame_fail(size, shard_size, workers, depth, max_losses, data):
    """Concepts that always kill their worker, or always raise, with innocent shards in the same hands."""
    names = [f"c{number}" for number in range(size)]
    killers = data.draw(st.frozensets(st.sampled_from(names)), label="killers")
    raisers = data.draw(st.frozensets(st.sampled_from(names)), label="raisers")
    shards = [shard(*names[start : start + shard_size]) for start in range(0, size, shard_size)]
    queue = ShardQueue(shards, max_losses=max_losses)
    crew = _Crew(queue, workers, depth)
    while crew.assign(data) or crew.busy:
        number = data.draw(st.sampled_from(crew.busy), label="whose")
        attempt = data.draw(st.sampled_from(crew.hands[number]), label="which")
        ids = set(attempt.shard.concept_ids)
        if ids & killers:
            crew.die(number)
            continue
        crew.end(number, attempt)
        if ids & raisers:
            queue.raised(attempt, ValueError("bad shape"))
            crew.leave(number)
        else:
            queue.finished(attempt, attempt.shard.concept_ids, ())
    assert {failure.concept_id for failure in queue.failures} == killers | raisers
    assert set(queue.committed) == set(names) - killers - raisers


def test_shards_that_a_worker_died_with_are_tried_again_alone_and_none_is_blamed():
    queue = ShardQueue([shard("a"), shard("b"), shard("c")], max_losses=1)
    in_hand = [attempt for attempt in (queue.take(), queue.take(beside_others=True)) if attempt]
    assert len(queue.lost(in_hand, "killed")) == 2 and not queue.failures
    third = queue.take()
    assert third is not None and third.shard.concept_ids == ("c",), "the others are not kept waiting"
    assert queue.take(beside_others=True) is None, "what waits has to be alone"
    again = queue.take()
    assert again is not None and again.alone and again.shard.concept_ids == ("a",)
    queue.lost([again], "killed")
    assert [failure.concept_id for failure in queue.failures] == ["a"]


def test_a_machine_taken_back_says_nothing_about_its_shards():
    queue = ShardQueue([shard("a")], max_losses=1)
    for _ in range(5):
        attempt = queue.take()
        assert attempt is not None and not attempt.alone
        queue.lost([attempt], "spot instance", preempted=True)
    assert drain(queue) == [("a",)]


def test_a_shard_that_was_given_back_may_have_company_again():
    queue = ShardQueue([shard("a"), shard("b")], max_losses=1)
    attempt = queue.take()
    assert attempt is not None
    queue.returned(attempt, "another shard spoilt the worker")
    assert drain(queue) == [("b",), ("a",)]


def test_a_lost_shard_goes_behind_the_others():
    queue = ShardQueue([shard("a"), shard("b")])
    first = queue.take()
    assert first is not None
    queue.lost([first], "killed")
    assert drain(queue) == [("b",), ("a",)]


def test_after_three_losses_a_shard_is_split_and_then_at_every_loss():
    queue = ShardQueue([shard("a", "b", "c", "d")])
    sizes = []
    while attempt := queue.take():
        sizes.append(len(attempt.shard.concepts))
        if "a" in attempt.shard.concept_ids:
            queue.lost([attempt], "killed")
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
        queue.lost([attempt], "spot", preempted=True)
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


def test_a_store_that_refuses_is_not_asked_again():
    queue = ShardQueue([shard("a", "b")], max_losses=3)
    attempt = queue.take()
    assert attempt is not None
    with pytest.raises(StoreRefused, match="no space"):
        queue.store_failed(attempt, StoreRefused("no space"))
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
