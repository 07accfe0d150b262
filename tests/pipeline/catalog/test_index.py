"""Compaction changes nothing that a reader can see, wherever it is cut off and whoever reads meanwhile."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from persres.core.errors import ConceptFailure, StoreError
from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit, VariantScores, newest_per_concept
from persres.pipeline.catalog.index import (
    compact,
    read_committed,
    read_records,
    rewrite_index,
    torn_records,
    torn_snapshots,
)
from persres.pipeline.catalog.store import CatalogStore, StoredObject

from ...support.catalog_digest import catalog_digest
from ...support.catalog_samples import commit, memory_store, planned, shard_of

RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-000000", "20260103T000000Z-bbbbbb")


def record(run: int, attempt: int, names: str, *, shard: str = "train-1") -> ShardCommit:
    """A commit of some concepts, each a letter, that says in every field which commit it was."""
    path = f"residuals/{RUNS[run]}_{shard}_{attempt:03}.parquet"
    concepts = tuple(
        CommittedConcept(
            name,
            "mug",
            f"t{run}{attempt}",
            f"r{run}{attempt}{shard}",
            path,
            row,
            path if row else None,
            (row, 4) if row else (0, 0),
            {"lag": VariantScores(4, 0.1 + row, None, 3), "base": VariantScores(4)} if row else {},
        )
        for row, name in enumerate(names)
    )
    failed = (ConceptFailure("z", "load", "cannot be read"),)
    return ShardCommit(
        RUNS[run], shard, f"{attempt:03}", "train", {"residuals": path}, concepts, failed, {"train": 1.0}
    )


def put(store: CatalogStore, one: ShardCommit) -> None:
    store.write(store.commit_record(one.run_id, one.shard_id, one.attempt), one.to_json())


def catalog(*records: ShardCommit) -> CatalogStore:
    store = memory_store()
    for one in records:
        put(store, one)
    return store


class Interrupted(CatalogStore):
    """A store that calls `before(number of the operation)` before each of its operations."""

    def __init__(self, store: CatalogStore, before: Callable[[int], None]) -> None:
        self.__dict__.update(store.__dict__)
        self.operations = 0
        self._before = before

    def _count(self) -> None:
        self.operations += 1
        self._before(self.operations)

    def read(self, path: str) -> bytes:
        self._count()
        return super().read(path)

    def read_many(self, paths: Any) -> dict[str, bytes]:
        self._count()
        return super().read_many(paths)

    def stat_all(self, prefix: str = "", *, hidden: bool = False) -> dict[str, StoredObject]:
        self._count()
        return super().stat_all(prefix, hidden=hidden)

    def write(self, path: str, data: bytes) -> None:
        self._count()
        super().write(path, data)

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)


class PowerCut(Exception):
    pass


def cut_off(store: CatalogStore, operation: int, what: Callable[[CatalogStore], Any] = compact) -> bool:
    """A compaction that dies before its n-th operation; False if it had no so many."""

    def before(number: int) -> None:
        if number == operation:
            raise PowerCut

    try:
        what(Interrupted(store, before))
    except PowerCut:
        return True
    return False


def stride(store: CatalogStore) -> int:
    """Every operation is cut off on disk and in memory, every fifth on a server, which takes its time."""
    return 5 if store.uri.startswith("s3") else 1


HISTORY = (record(0, 1, "abc"), record(1, 2, "bc"), record(1, 1, "b", shard="train-2"), record(2, 1, "d"))


@pytest.fixture(name="store")
def store_with_history(store):
    for one in HISTORY:
        put(store, one)
    return store


def test_a_compacted_catalog_reads_the_same_from_one_object(store):
    before = read_committed(store)

    assert compact(store) == 4

    after = read_committed(store)
    assert list(after.items()) == list(before.items()) == list(newest_per_concept(HISTORY).items())
    assert store.list(store.COMMITS) == [] and len(store.list(store.INDEX)) == 1
    assert after.of_run(RUNS[1]) == {"b", "c"} == before.of_run(RUNS[1])
    assert store.run_ids() == [RUNS[2]], "the next run's name has to sort after every one in the index"


def test_compacting_again_changes_nothing_until_there_is_something_new(store):
    compact(store)
    objects = store.list("")
    assert compact(store) == 0 and store.list("") == objects
    put(store, record(2, 2, "ab"))
    assert compact(store) == 1
    assert len(store.list(store.INDEX)) == 1 and store.list(store.INDEX) != objects
    assert read_committed(store) == newest_per_concept([*HISTORY, record(2, 2, "ab")])


def test_few_records_are_left_alone(store):
    assert compact(store, after=100) == 4, "the first snapshot is made in any case"
    for one in HISTORY:
        put(store, one)
    assert compact(store, after=4) == 0 and len(store.list(store.COMMITS)) == 4
    assert compact(store, after=3) == 4


def test_nothing_and_failures_alone_need_no_snapshot():
    assert compact(memory_store()) == 0
    store = catalog(replace(HISTORY[0], concepts=()))
    assert compact(store) == 1 and store.list("") == []


def test_the_content_of_a_catalog_keeps_its_digest():
    store = memory_store()
    commit(store, shard_of(planned("a"), planned("b")), run_id="run-1")
    commit(store, shard_of(planned("b", training="t2")), run_id="run-2")
    digest = catalog_digest(store)
    compact(store)
    assert catalog_digest(store) == digest


def test_records_that_are_still_loose_can_be_read_by_run(store):
    assert [one.run_id for one in read_records(store)] == [RUNS[0], RUNS[1], RUNS[1], RUNS[2]]
    assert [one.attempt for one in read_records(store, RUNS[1])] == ["002", "001"]
    compact(store)
    assert read_records(store) == []


@pytest.mark.parametrize("late", [record(0, 2, "ad"), record(1, 1, "c"), record(1, 3, "bc"), record(2, 2, "ad")])
def test_a_record_that_comes_after_the_compaction_counts_as_if_it_had_come_before(store, late):
    compact(store)
    put(store, late)
    assert read_committed(store) == newest_per_concept([*HISTORY, late])
    compact(store)
    assert read_committed(store) == newest_per_concept([*HISTORY, late])


def test_a_compaction_cut_off_anywhere_loses_nothing_and_the_next_one_cleans_up(store):
    operation = 1
    while cut_off(store, operation):
        assert read_committed(store) == newest_per_concept(HISTORY)
        put(store, HISTORY[0])  # a retried request brings back what was removed
        compact(store)
        assert read_committed(store) == newest_per_concept(HISTORY)
        assert len(store.list("")) == 1
        for path in store.list(""):
            store.delete(path)
        for one in HISTORY:
            put(store, one)
        operation += stride(store)
    assert operation > 10


def test_a_snapshot_that_cannot_be_written_or_read_back_removes_nothing(store):
    class Forgetful(CatalogStore):
        def write(self, path: str, data: bytes) -> None:
            super().write(path, data[:-1] + b"x")

    forgetful = Forgetful.__new__(Forgetful)
    forgetful.__dict__.update(store.__dict__)
    with pytest.raises(StoreError, match="does not hold what was written"):
        compact(forgetful)
    assert len(store.list(store.COMMITS)) == len(HISTORY)


@pytest.mark.parametrize("damage", ["cut", "flipped", "newer", "other columns"])
def test_a_damaged_snapshot_is_named_with_what_to_do(store, damage):
    compact(store)
    [path] = store.list(store.INDEX)
    data = bytearray(store.read(path))
    table = pq.read_table(io.BytesIO(bytes(data)))
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[100] ^= 0xFF
    else:
        table = table.drop_columns("run_id") if damage == "other columns" else table
        version = {b"persres.schema_version": b"2" if damage == "newer" else b"1"}
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(version), buffer)
        data = buffer.getvalue()
    store.write(path, bytes(data))
    with pytest.raises(StoreError, match="has version 2" if damage == "newer" else f"{path} is damaged.*Fix: restore"):
        read_committed(store)


def test_a_torn_record_counts_for_nothing_and_is_left_where_it_is(store):
    path, one = store.commit_record(RUNS[2], "torn", "001"), record(2, 1, "ax", shard="torn")
    store.write(path, one.to_json()[:-40])
    assert read_committed(store) == newest_per_concept(HISTORY)
    assert (len(read_records(store)), torn_records(store)) == (len(HISTORY), [path])
    assert compact(store) == len(HISTORY)
    assert store.list(store.COMMITS) == torn_records(store) == [path]

    put(store, one)  # its writer was only slow
    assert torn_records(store) == []
    assert read_committed(store) == newest_per_concept([*HISTORY, one])


def test_a_snapshot_that_was_cut_off_while_it_was_made_covers_nothing(store):
    """Whatever it was made of is still there."""
    compact(store)
    [whole] = store.list(store.INDEX)
    torn = store.index_file(RUNS[2], "torn")
    store.write(torn, store.read(whole)[:100])
    assert read_committed(store) == newest_per_concept(HISTORY)
    assert torn_snapshots(store) == [torn]
    put(store, record(2, 2, "ab"))
    compact(store)
    assert torn_snapshots(store) == [torn] and len(store.list(store.INDEX)) == 2
    assert read_committed(store) == newest_per_concept([*HISTORY, record(2, 2, "ab")])


def test_a_snapshot_without_digests_is_read_and_written_again_with_them(store):
    compact(store)
    [path] = store.list(store.INDEX)
    buffer = io.BytesIO()
    old = pq.read_table(io.BytesIO(store.read(path))).drop_columns(["residual_digest", "renderings_digest"])
    pq.write_table(old, buffer)
    store.write(path, buffer.getvalue())
    assert read_committed(store) == newest_per_concept(HISTORY)
    assert {one.residual_digest for one in read_committed(store).values()} == {""}
    put(store, replace(HISTORY[0], run_id="20260104T000000Z-dddddd"))
    compact(store)
    assert read_committed(store).keys() == {"a", "b", "c", "d"}


def test_the_index_can_be_rewritten(store):
    expected = newest_per_concept(HISTORY)
    rewrite_index(store, lambda table: table.slice(1))
    assert store.list(store.COMMITS) == [] and len(store.list(store.INDEX)) == 1
    assert read_committed(store) == {name: one for name, one in expected.items() if name != "a"}
    assert store.run_ids() == [RUNS[2]]
    rewrite_index(store, lambda table: table.slice(0, 0))
    assert store.list("") == []


def test_a_rewriting_cut_off_anywhere_leaves_what_was_or_what_is_to_be(store):
    before, after, cut = read_committed(store), dict(list(newest_per_concept(HISTORY).items())[1:]), True
    operation = 0
    while cut:
        operation += stride(store)
        cut = cut_off(store, operation, lambda interrupted: rewrite_index(interrupted, lambda table: table.slice(1)))
        held = read_committed(store)
        assert {name: one for name, one in held.items() if name != "a"} == after
        assert held.get("a") in (before["a"], None)
        for path in store.list(""):
            store.delete(path)
        for one in HISTORY:
            put(store, one)
    assert operation > 10


def test_a_damaged_record_is_an_error_and_not_waited_for(store):
    store.write(store.commit_record("r", "s", "1"), b"{\n{}\n}\n")
    for read in (read_committed, read_records, compact):
        with pytest.raises(StoreError, match=r"r_s_1\.json is damaged"):
            read(store)
    assert len(store.list(store.COMMITS)) == len(HISTORY) + 1


class Racing:
    """A compaction in a thread of its own, which does its next operations only when it is told to."""

    def __init__(self, store: CatalogStore) -> None:
        self._may, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(store,), daemon=True)
        self._thread.start()
        self._waits.acquire()

    def _run(self, store: CatalogStore) -> None:
        def before(_: int) -> None:
            self._waits.release()
            self._may.acquire()

        compact(Interrupted(store, before))
        self._ended = True
        self._waits.release()

    def do(self, operations: int) -> None:
        for _ in range(operations):
            if not self._ended:
                self._may.release()
                self._waits.acquire()

    def finish(self) -> None:
        while not self._ended:
            self.do(1)
        self._thread.join()


@settings(max_examples=100)
@given(
    compacted_before=st.booleans(),
    moves=st.lists(st.integers(0, 5), max_size=30),
    late=st.one_of(st.none(), st.tuples(st.integers(1, 12), st.integers(0, 2), st.integers(1, 3), st.just("ae"))),
)
def test_a_reader_racing_a_compaction_sees_everything_that_was_committed_before_it_began(compacted_before, moves, late):
    """Between any two operations of the reader the compaction does any number of its own, and a commit may land."""
    store = catalog(*HISTORY)
    if compacted_before:
        compact(store)
        put(store, record(0, 2, "ax"))
    before = newest_per_concept([*HISTORY, record(0, 2, "ax")] if compacted_before else HISTORY)
    new = record(late[1], late[2], late[3], shard="late") if late else None
    compaction, steps = Racing(store), iter(moves)

    def between(operation: int) -> None:
        compaction.do(next(steps, 0))
        if late and new and operation == late[0]:
            put(store, new)

    seen = dict(read_committed(Interrupted(store, between)))
    compaction.finish()

    after = dict(read_committed(store))
    assert {name: one for name, one in seen.items() if one in (before.get(name), after.get(name))} == seen
    assert seen.keys() >= before.keys()
    if not new:
        assert seen == after == before


class Histories(RuleBasedStateMachine):
    """Commits of any run at any time, and compactions whole, cut off and two at a time, against the plain records."""

    def __init__(self) -> None:
        super().__init__()
        self.store = memory_store()
        self.written: dict[tuple[str, str, str], ShardCommit] = {}

    @rule(
        run=st.integers(0, 2),
        attempt=st.integers(1, 3),
        shard=st.sampled_from(["train-1", "train-2"]),
        names=st.sets(st.sampled_from("abcd")).map(lambda names: "".join(sorted(names))),
    )
    def commit(self, run: int, attempt: int, shard: str, names: str) -> None:
        one = record(run, attempt, names, shard=shard)
        one = self.written.setdefault((one.run_id, one.shard_id, one.attempt), one)
        put(self.store, one)  # a second time is a retried request

    @rule()
    def compact(self) -> None:
        compact(self.store)
        assert self.store.list(self.store.COMMITS) == []

    @rule(operation=st.integers(1, 12))
    def compact_and_die(self, operation: int) -> None:
        cut_off(self.store, operation)

    @rule(moves=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=10))
    def two_compactions_at_a_time(self, moves: list[tuple[bool, int]]) -> None:
        both = Racing(self.store), Racing(self.store)
        for second, operations in moves:
            both[second].do(operations)
        for one in both:
            one.finish()

    @invariant()
    def the_winners_are_those_of_all_records_ever_written(self) -> None:
        held = read_committed(self.store)
        assert list(held.items()) == list(newest_per_concept(self.written.values()).items())
        for run_id in RUNS:
            expected = {name for name, one in held.items() if RUNS.index(run_id) == int(one.training_fingerprint[1])}
            assert held.of_run(run_id) == expected


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=20, stateful_step_count=10, deadline=None)


def test_a_listing_that_catches_neither_snapshot_is_not_believed(store):
    """A folder that is listed while one file takes another's place may show none of them."""
    compact(store)
    blind: Iterator[bool] = iter([True])

    class Blind(CatalogStore):
        def list(self, prefix: str) -> list[str]:
            return [] if prefix == self.INDEX and next(blind, False) else super().list(prefix)

    reader = Blind.__new__(Blind)
    reader.__dict__.update(store.__dict__)
    assert read_committed(reader) == newest_per_concept(HISTORY)
