"""The retry policy under any sequence of events: every concept ends exactly once."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptError, ConceptFailure, StoreError, StoreRefused
from persres.jobs.driver.shard_queue import ShardAttempt, ShardQueue
from persres.pipeline.planning.plan import Shard

from ...support.catalog_factories import planned, shard_of


def shard(*names: str) -> Shard:
    return shard_of(*map(planned, names))


def take(queue: ShardQueue) -> ShardAttempt:
    attempt = queue.take()
    assert attempt is not None
    return attempt


def drain(queue: ShardQueue) -> list[tuple[str, ...]]:
    """Finish every waiting shard; returns the concepts of each attempt."""
    attempts = []
    while attempt := queue.take():
        attempts.append(attempt.shard.concept_ids)
        queue.finished(attempt, attempt.shard.concept_ids, ())
    return attempts


def waiting_concepts(queue: ShardQueue) -> list[str]:
    """The concepts of waiting shards, from a copy of the queue."""
    rest, names = copy.deepcopy(queue), []
    while attempt := rest.take():
        names += attempt.shard.concept_ids
    return names


class Workers:
    """Workers as the driver has them: up to `depth` shards in flight each, an `alone` one without others."""

    def __init__(self, queue: ShardQueue, workers: int, depth: int) -> None:
        self.queue, self.depth = queue, depth
        self.in_flight: list[list[ShardAttempt]] = [[] for _ in range(workers)]
        self.seen: set[tuple[str, str]] = set()

    def assign(self, data: st.DataObject) -> None:
        """Assign shards, to workers in any order, until no worker takes another."""
        willing = list(range(len(self.in_flight)))
        while willing:
            number = data.draw(st.sampled_from(willing), label="worker")
            attempts = self.in_flight[number]
            full = len(attempts) >= self.depth or any(attempt.alone for attempt in attempts)
            attempt = None if full else self.queue.take(beside_others=bool(attempts))
            if attempt is None:
                willing.remove(number)
                continue
            assert not (attempt.alone and attempts), "a shard that has to be alone is not"
            name = (attempt.shard.shard_id, attempt.attempt)
            assert name not in self.seen, "an attempt's name was used twice"
            self.seen.add(name)
            attempts.append(attempt)

    @property
    def busy(self) -> list[int]:
        return [number for number, attempts in enumerate(self.in_flight) if attempts]

    def end(self, number: int, attempt: ShardAttempt) -> None:
        self.in_flight[number].remove(attempt)

    def lose(self, number: int, *, preempted: bool = False) -> None:
        attempts, self.in_flight[number] = self.in_flight[number], []
        self.queue.worker_lost(attempts, "gone", preempted=preempted)

    def drain(self, number: int) -> None:
        attempts, self.in_flight[number] = self.in_flight[number], []
        for attempt in attempts:
            self.queue.returned(attempt, "the worker is draining")


EVENTS = ["finished", "partly", "lost", "preempted", "raised", "store failed"]


@given(
    sizes=st.lists(st.integers(1, 5), max_size=5),
    workers=st.integers(1, 4),
    depth=st.integers(1, 3),
    max_losses=st.integers(1, 4),
    data=st.data(),
)
def test_every_concept_ends_exactly_once_after_any_events(sizes, workers, depth, max_losses, data):
    names = [f"c{number}" for number in range(sum(sizes))]
    shards = [shard(*names[sum(sizes[:index]) : sum(sizes[: index + 1])]) for index in range(len(sizes))]
    queue = ShardQueue(shards, max_losses=max_losses)
    pool, failures = Workers(queue, workers, depth), 0
    while True:
        pool.assign(data)
        in_flight = [name for attempts in pool.in_flight for attempt in attempts for name in attempt.shard.concept_ids]
        ended = [*queue.committed, *(failure.concept_id for failure in queue.failures)]
        assert Counter([*waiting_concepts(queue), *in_flight, *ended]) == Counter(names), "each in exactly one place"
        assert queue.left == len(names) - len(ended)
        if not pool.busy:
            break
        number = data.draw(st.sampled_from(pool.busy), label="worker")
        attempt = data.draw(st.sampled_from(pool.in_flight[number]), label="attempt")
        event = data.draw(st.sampled_from(EVENTS if failures < 30 else EVENTS[:2]), label="event")
        failures += event in ("lost", "preempted", "store failed")
        ids = attempt.shard.concept_ids
        if event in ("lost", "preempted"):
            pool.lose(number, preempted=event == "preempted")
            continue
        pool.end(number, attempt)
        if event == "finished":
            queue.finished(attempt, ids, ())
        elif event == "partly":
            queue.finished(attempt, ids[1:], [ConceptFailure(ids[0], "train", "no")])
        elif event == "raised":
            queue.raised(attempt, RuntimeError("boom"))
            pool.drain(number)
        else:
            try:
                queue.store_failed(attempt, StoreError("SlowDown"))
            except StoreError:
                return  # the run ends here, and the next one does what is left
    assert queue.open_shards == queue.waiting == queue.left == 0


@given(
    size=st.integers(1, 20),
    shard_size=st.integers(1, 8),
    workers=st.integers(1, 3),
    depth=st.integers(1, 3),
    max_losses=st.integers(1, 3),
    data=st.data(),
)
def test_only_concepts_that_kill_or_raise_fail(size, shard_size, workers, depth, max_losses, data):
    """Some concepts always kill their worker, or always raise, with other shards in flight on it."""
    names = [f"c{number}" for number in range(size)]
    killers = data.draw(st.frozensets(st.sampled_from(names)), label="killers")
    raisers = data.draw(st.frozensets(st.sampled_from(names)), label="raisers")
    shards = [shard(*names[start : start + shard_size]) for start in range(0, size, shard_size)]
    queue = ShardQueue(shards, max_losses=max_losses)
    pool = Workers(queue, workers, depth)
    while pool.assign(data) or pool.busy:
        number = data.draw(st.sampled_from(pool.busy), label="worker")
        attempt = data.draw(st.sampled_from(pool.in_flight[number]), label="attempt")
        ids = set(attempt.shard.concept_ids)
        if ids & killers:
            pool.lose(number)
            continue
        pool.end(number, attempt)
        if ids & raisers:
            queue.raised(attempt, ValueError("bad shape"))
            pool.drain(number)
        else:
            queue.finished(attempt, attempt.shard.concept_ids, ())
    assert {failure.concept_id for failure in queue.failures} == killers | raisers
    assert set(queue.committed) == set(names) - killers - raisers


def test_shards_of_a_lost_worker_are_retried_alone_and_none_is_blamed():
    queue = ShardQueue([shard("a"), shard("b"), shard("c")], max_losses=1)
    in_flight = [attempt for attempt in (queue.take(), queue.take(beside_others=True)) if attempt]
    assert len(queue.worker_lost(in_flight, "killed")) == 2 and not queue.failures
    assert take(queue).shard.concept_ids == ("c",), "other shards are not delayed"
    assert queue.take(beside_others=True) is None, "the waiting shards have to be alone"
    retried = take(queue)
    assert retried.alone and retried.shard.concept_ids == ("a",)
    queue.worker_lost([retried], "killed")
    assert [failure.concept_id for failure in queue.failures] == ["a"]


def test_returned_shard_need_not_be_alone():
    queue = ShardQueue([shard("a"), shard("b")], max_losses=1)
    attempt = take(queue)
    queue.returned(attempt, "another shard spoilt the worker")
    assert drain(queue) == [("b",), ("a",)]


def test_lost_shard_goes_to_the_back_of_the_queue():
    queue = ShardQueue([shard("a"), shard("b")])
    first = take(queue)
    queue.worker_lost([first], "killed")
    assert drain(queue) == [("b",), ("a",)]


def test_shard_is_split_after_three_losses_and_then_at_every_loss():
    queue = ShardQueue([shard("a", "b", "c", "d")])
    sizes = []
    while attempt := queue.take():
        sizes.append(len(attempt.shard.concepts))
        if "a" in attempt.shard.concept_ids:
            queue.worker_lost([attempt], "killed")
        else:
            queue.finished(attempt, attempt.shard.concept_ids, ())
    assert sizes == [4, 4, 4, 2, 2, 1, 1, 1, 1]  # three attempts of a and one of b at the end
    (failure,) = queue.failures
    assert failure.concept_id == "a" and failure.stage == "quarantine" and "killed" in failure.reason


def test_preempted_worker_counts_as_no_loss():
    queue = ShardQueue([shard("a")], max_losses=1)
    for _ in range(10):
        attempt = take(queue)
        assert not attempt.alone
        queue.worker_lost([attempt], "spot", preempted=True)
    assert drain(queue) == [("a",)] and not queue.failures


def test_application_error_is_not_retried():
    queue = ShardQueue([shard("a")])
    attempt = take(queue)
    queue.raised(attempt, ValueError("bad shape"))
    (failure,) = queue.failures
    assert "ValueError: bad shape" in failure.reason and failure.fix
    assert queue.take() is None


def test_concept_error_keeps_its_stage():
    queue = ShardQueue([shard("a")])
    attempt = take(queue)
    queue.raised(attempt, ConceptError("loss is NaN", stage="train", fix="lower the learning rate"))
    assert queue.failures == [ConceptFailure("a", "train", "loss is NaN", "lower the learning rate")]


def test_store_that_stays_unavailable_raises_and_fails_no_concept():
    queue = ShardQueue([shard("a", "b")])
    for _ in range(2):
        attempt = take(queue)
        queue.store_failed(attempt, StoreError("no space"))
    attempt = take(queue)
    with pytest.raises(StoreError, match="no space"):
        queue.store_failed(attempt, StoreError("no space"))
    assert not queue.failures and queue.left == 2


def test_store_that_refuses_is_not_retried():
    queue = ShardQueue([shard("a", "b")], max_losses=3)
    attempt = take(queue)
    with pytest.raises(StoreRefused, match="no space"):
        queue.store_failed(attempt, StoreRefused("no space"))
    assert not queue.failures and queue.left == 2


def test_concept_without_result_has_failed():
    queue = ShardQueue([shard("a", "b")])
    attempt = take(queue)
    queue.finished(attempt, ["a"], ())
    assert queue.committed == ["a"] and [failure.concept_id for failure in queue.failures] == ["b"]


def test_result_for_a_concept_of_another_shard_is_rejected():
    queue = ShardQueue([shard("a")])
    attempt = take(queue)
    with pytest.raises(ValueError, match="does not hold: z"):
        queue.finished(attempt, ["z"], ())


def test_concept_in_two_shards_is_rejected():
    with pytest.raises(ValueError, match="more than one shard: a"):
        ShardQueue([shard("a", "b"), shard("a")])
