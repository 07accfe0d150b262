"""Compaction changes nothing that a reader sees, even if it is killed or runs during the reading."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from persres.core.errors import ConceptFailure, StoreError
from persres.pipeline.catalog import layout
from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit, VariantScores
from persres.pipeline.catalog.index import (
    compact,
    read_committed,
    read_records,
    rewrite_index,
    unused_objects,
)
from persres.pipeline.catalog.index_version import Overtaken
from persres.pipeline.catalog.layout import AttemptPaths, RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.storage.stored_object import StoredObject

from ...support.catalog_digest import catalog_digest
from ...support.catalog_factories import commit, memory_store, planned, shard_of
from ...support.commit_reference import expected_concepts

RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-000000", "20260103T000000Z-bbbbbb")


def record(run: int, attempt: int, names: str, *, shard: str = "train-1") -> ShardCommit:
    """A commit of concepts, each a letter of `names`; all fields of a concept depend on the commit."""
    path = AttemptPaths(RUNS[run], shard, f"{attempt:03}").residuals("0" * 32)
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
    store.write(AttemptPaths(one.run_id, one.shard_id, one.attempt).record, one.to_json())


def catalog(*records: ShardCommit) -> CatalogStore:
    store = memory_store()
    for one in records:
        put(store, one)
    return store


class ObservedStore(CatalogStore):
    """A store that calls `before(operation number)` before each operation."""

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

    def create(self, path: str, data: bytes) -> bool:
        self._count()
        return super().create(path, data)

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)


class Crash(Exception):
    pass


def crash_at(store: CatalogStore, operation: int, act: Callable[[CatalogStore], Any] = compact) -> bool:
    """Crash before the n-th operation of a compaction or of `act`; False if it has fewer."""

    def before(number: int) -> None:
        if number == operation:
            raise Crash

    try:
        act(ObservedStore(store, before))
    except Crash:
        return True
    return False


def stride(store: CatalogStore) -> int:
    """The distance of the operations to crash at: all on disk and in memory, every fifth on the slow S3 server."""
    return 5 if store.uri.startswith("s3") else 1


def snapshots(store: CatalogStore) -> list[str]:
    return [path for path in store.list(layout.INDEX) if path.endswith(".parquet")]


def versions(store: CatalogStore) -> list[str]:
    return [path for path in store.list(layout.INDEX) if layout.index_version_number(path)]


HISTORY = (record(0, 1, "abc"), record(1, 2, "bc"), record(1, 1, "b", shard="train-2"), record(2, 1, "d"))


@pytest.fixture(name="store")
def store_with_history(store):
    for one in HISTORY:
        put(store, one)
    return store


def test_compacted_catalog_reads_the_same_from_one_object(store):
    before = read_committed(store)

    assert compact(store) == 4

    after = read_committed(store)
    assert list(after.items()) == list(before.items()) == list(expected_concepts(HISTORY).items())
    assert store.list(layout.COMMITS) == [] and len(snapshots(store)) == len(versions(store)) == 1
    assert after.concepts_of_run(RUNS[1]) == {"b", "c"} == before.concepts_of_run(RUNS[1])
    assert store.run_ids() == [RUNS[2]], "the next run's id must sort after all in the index"


def test_compact_again_without_new_records_changes_nothing(store):
    compact(store)
    objects = store.list("")
    assert compact(store) == 0 and store.list("") == objects
    put(store, record(2, 2, "ab"))
    assert compact(store) == 1
    assert len(store.list(layout.INDEX)) == 2 and store.list(layout.INDEX) != objects
    assert read_committed(store) == expected_concepts([*HISTORY, record(2, 2, "ab")])


def test_compact_waits_for_more_records(store):
    assert compact(store, after=100) == 4, "the first snapshot is always written"
    for attempt in range(5, 9):
        put(store, record(2, attempt, "a"))
    assert compact(store, after=4) == 0 and len(store.list(layout.COMMITS)) == 4
    assert compact(store, after=3) == 4


def test_compact_of_nothing_or_failures_alone_writes_no_snapshot():
    assert compact(memory_store()) == 0
    store = catalog(replace(HISTORY[0], concepts=()))
    assert compact(store) == 1 and store.list("") == versions(store)


def test_compact_keeps_the_catalog_digest():
    store = memory_store()
    commit(store, shard_of(planned("a"), planned("b")), run_id="run-1")
    commit(store, shard_of(planned("b", training="t2")), run_id="run-2")
    digest = catalog_digest(store)
    compact(store)
    assert catalog_digest(store) == digest


def test_read_records_by_run(store):
    assert [one.run_id for one in read_records(store)] == [RUNS[0], RUNS[1], RUNS[1], RUNS[2]]
    assert [one.attempt for one in read_records(store, RUNS[1])] == ["002", "001"]
    compact(store)
    assert read_records(store) == []


@pytest.mark.parametrize("late", [record(0, 2, "ad"), record(1, 1, "c"), record(1, 3, "bc"), record(2, 2, "ad")])
def test_record_written_after_a_compaction_has_the_same_precedence(store, late):
    compact(store)
    put(store, late)
    assert read_committed(store) == expected_concepts([*HISTORY, late])
    compact(store)
    assert read_committed(store) == expected_concepts([*HISTORY, late])


def test_compact_killed_anywhere_loses_nothing_and_the_next_one_finishes(store):
    operation = 1
    while crash_at(store, operation):
        assert read_committed(store) == expected_concepts(HISTORY)
        put(store, HISTORY[0])  # a retried request writes a deleted record again
        compact(store)
        assert read_committed(store) == expected_concepts(HISTORY)
        assert (
            len(snapshots(store)) - len([path for path in unused_objects(store).replaced if path.endswith(".parquet")])
            == 1
        )
        for path in store.list(""):
            store.delete(path)
        for one in HISTORY:
            put(store, one)
        operation += stride(store)
    assert operation > 10


def test_compact_removes_nothing_if_the_snapshot_cannot_be_read_back(store):
    class Corrupting(CatalogStore):
        def write(self, path: str, data: bytes) -> None:
            super().write(path, data[:-1] + b"x" if path.endswith(".parquet") else data)

    corrupting = Corrupting.__new__(Corrupting)
    corrupting.__dict__.update(store.__dict__)
    with pytest.raises(StoreError, match="does not hold what was written"):
        compact(corrupting)
    assert len(store.list(layout.COMMITS)) == len(HISTORY)


@pytest.mark.parametrize("damage", ["cut", "flipped", "newer", "other columns"])
def test_damaged_snapshot_is_named_with_a_fix(store, damage):
    compact(store)
    [path] = snapshots(store)
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
    with pytest.raises(StoreError, match=f"{path} is damaged.*Fix: restore"):
        read_committed(store)
    assert compact_fails_and_keeps_everything(store)


def compact_fails_and_keeps_everything(store: CatalogStore) -> bool:
    objects = store.list("")
    with pytest.raises(StoreError):
        compact(store)
    return store.list("") == objects


def earlier_release(store: CatalogStore, **metadata: bytes) -> str:
    """Turn a compacted catalog into one of an earlier release: a snapshot without digest and no version."""
    [path] = snapshots(store)
    table = pq.read_table(io.BytesIO(store.read(path)))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata or None), buffer)
    for one in store.list(layout.INDEX):
        store.delete(one)
    old = f"{layout.INDEX}{RUNS[2]}_0123abcd.parquet"
    store.write(old, buffer.getvalue())
    return old


def test_catalog_of_an_earlier_release_is_read_and_gets_a_version_with_the_next_compaction(store):
    compact(store)
    old = earlier_release(store)
    assert read_committed(store) == expected_concepts(HISTORY)
    put(store, record(0, 2, "ax"))
    compact(store, after=100)
    assert old not in store.list("") and len(versions(store)) == len(snapshots(store)) == 1
    assert read_committed(store) == expected_concepts([*HISTORY, record(0, 2, "ax")])


@pytest.mark.parametrize("damage", ["cut", "newer"])
def test_damaged_snapshot_of_an_earlier_release_is_an_error_whatever_was_committed_since(store, damage):
    compact(store)
    old = earlier_release(store, **({"persres.schema_version": b"9"} if damage == "newer" else {}))
    if damage == "cut":
        store.write(old, store.read(old)[:-20])
    put(store, replace(record(2, 2, "ax"), run_id="20260109T000000Z-dddddd"))
    with pytest.raises(StoreError, match="has version 9" if damage == "newer" else f"{old} is damaged.*repair"):
        read_committed(store)


def test_torn_record_is_ignored_and_kept(store):
    path, one = AttemptPaths(RUNS[2], "torn", "001").record, record(2, 1, "ax", shard="torn")
    store.write(path, one.to_json()[:-40])
    assert read_committed(store) == expected_concepts(HISTORY)
    assert (len(read_records(store)), unused_objects(store).torn) == (len(HISTORY), (path,))
    assert compact(store) == len(HISTORY)
    assert store.list(layout.COMMITS) == list(unused_objects(store).torn) == [path]

    put(store, one)  # its writer was slow
    assert unused_objects(store).torn == ()
    assert read_committed(store) == expected_concepts([*HISTORY, one])


@pytest.mark.parametrize("lost", ["named record", "snapshot", "version", "index", "index and records"])
def test_lost_part_of_the_index_is_an_error_that_names_it(store, lost):
    compact(store)
    put(store, replace(record(2, 2, "a"), index_version=2))
    compact(store, after=100)  # names the record
    store.write(RunPaths(RUNS[2]).summary, b'{"committed": 1}')
    [snapshot], [version] = snapshots(store), versions(store)
    removed = {
        "named record": store.list(layout.COMMITS),
        "snapshot": [snapshot],
        "version": [version],
        "index": [snapshot, version],
        "index and records": [snapshot, version, *store.list(layout.COMMITS)],
    }[lost]
    for path in removed:
        store.delete(path)
    names = {"version": "index/", "index": "index/00000002.json", "index and records": "index/"}
    expected = re.escape(names.get(lost, removed[0]))
    for read in (read_committed, compact, unused_objects):
        with pytest.raises(StoreError, match=f"{expected}.* is missing: .*persres-batch repair"):
            read(store)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "of another"])
def test_named_record_that_is_not_whole_is_an_error(store, damage):
    compact(store, after=100)
    put(store, record(2, 2, "a"))
    compact(store, after=100)
    [path] = store.list(layout.COMMITS)
    data = store.read(path)
    content = {
        "cut": data[:-30],
        "empty": b"",
        "flipped": data.replace(b'"a"', b'"b"'),
        "of another": record(2, 3, "a").to_json(),
    }[damage]
    store.write(path, content)
    with pytest.raises(StoreError, match=re.escape(path)):
        read_committed(store)


def test_damaged_version_is_an_error(store):
    compact(store)
    [path] = versions(store)
    data = store.read(path)
    for content in (b"", data[:-3], b"[]", data.replace(b'"fence": 0', b'"fence": 1'), b"[" * 100_000):
        store.write(path, content)
        with pytest.raises(StoreError, match=f"{path} is damaged.*repair"):
            read_committed(store)


def test_snapshot_without_digests_is_read_and_rewritten_with_them(store):
    compact(store)
    path = earlier_release(store)
    buffer = io.BytesIO()
    old = pq.read_table(io.BytesIO(store.read(path))).drop_columns(["residual_digest", "renderings_digest"])
    pq.write_table(old, buffer)
    store.write(path, buffer.getvalue())
    assert read_committed(store) == expected_concepts(HISTORY)
    assert {one.residual_digest for one in read_committed(store).values()} == {""}
    put(store, replace(HISTORY[0], run_id="20260104T000000Z-dddddd"))
    compact(store)
    assert read_committed(store).keys() == {"a", "b", "c", "d"}


def test_rewrite_index_changes_what_is_committed(store):
    expected = expected_concepts(HISTORY)
    rewrite_index(store, lambda table: table.slice(1))
    assert store.list(layout.COMMITS) == [] and len(snapshots(store)) == 1
    assert read_committed(store) == {name: one for name, one in expected.items() if name != "a"}
    assert store.run_ids() == [RUNS[2]]
    rewrite_index(store, lambda table: table.slice(0, 0))
    assert store.list("") == versions(store) and read_committed(store) == {}


def test_rewrite_index_killed_anywhere_leaves_the_old_or_the_new(store):
    before, after = read_committed(store), dict(list(expected_concepts(HISTORY).items())[1:])
    operation, crashed = 0, True
    while crashed:
        operation += stride(store)
        crashed = crash_at(store, operation, lambda other: rewrite_index(other, lambda table: table.slice(1)))
        held = read_committed(store)
        assert {name: one for name, one in held.items() if name != "a"} == after
        assert held.get("a") in (before["a"], None)
        for path in store.list(""):
            store.delete(path)
        for one in HISTORY:
            put(store, one)
    assert operation > 10


def test_damaged_record_is_an_error_at_once(store):
    store.write(AttemptPaths("r", "s", "1").record, b"{\n{}\n}\n")
    for read in (read_committed, read_records, compact):
        with pytest.raises(StoreError, match=r"r_s_1\.json is damaged"):
            read(store)
    assert len(store.list(layout.COMMITS)) == len(HISTORY) + 1


class PausedCompaction:
    """A compaction in a thread, paused before each operation until `advance` is called."""

    def __init__(self, store: CatalogStore) -> None:
        self._resume, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(store,), daemon=True)
        self._thread.start()
        self._paused.acquire()

    def _run(self, store: CatalogStore) -> None:
        def before(_: int) -> None:
            self._paused.release()
            self._resume.acquire()

        with suppress(Overtaken):
            compact(ObservedStore(store, before))
        self._ended = True
        self._paused.release()

    def advance(self, operations: int) -> None:
        for _ in range(operations):
            if not self._ended:
                self._resume.release()
                self._paused.acquire()

    def finish(self) -> None:
        while not self._ended:
            self.advance(1)
        self._thread.join()


@settings(max_examples=100)
@given(
    compacted_before=st.booleans(),
    moves=st.lists(st.integers(0, 5), max_size=30),
    late=st.one_of(st.none(), st.tuples(st.integers(1, 12), st.integers(0, 2), st.integers(1, 3), st.just("ae"))),
)
def test_reader_racing_a_compaction_sees_everything_committed_before(compacted_before, moves, late):
    """Before each operation of the reader the compaction advances by any number of its own, and a commit may happen."""
    store = catalog(*HISTORY)
    if compacted_before:
        compact(store)
        put(store, record(0, 2, "ax"))
    before = expected_concepts([*HISTORY, record(0, 2, "ax")] if compacted_before else HISTORY)
    new = record(late[1], late[2], late[3], shard="late") if late else None
    compaction, steps = PausedCompaction(store), iter(moves)

    def between(operation: int) -> None:
        compaction.advance(next(steps, 0))
        if late and new and operation == late[0]:
            put(store, new)

    seen = dict(read_committed(ObservedStore(store, between)))
    compaction.finish()

    after = dict(read_committed(store))
    assert {name: one for name, one in seen.items() if one in (before.get(name), after.get(name))} == seen
    assert seen.keys() >= before.keys()
    if not new:
        assert seen == after == before


class Histories(RuleBasedStateMachine):
    """Commits of any run, and compactions that complete, crash or run concurrently, against all records."""

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
        put(self.store, one)  # the second time as a retried request

    @rule()
    def compact(self) -> None:
        compact(self.store)
        assert self.store.list(layout.COMMITS) == []

    @rule()
    def name_records(self) -> None:
        compact(self.store, after=1000)

    @rule(operation=st.integers(1, 12))
    def compact_and_crash(self, operation: int) -> None:
        crash_at(self.store, operation)

    @rule(moves=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=10))
    def two_concurrent_compactions(self, moves: list[tuple[bool, int]]) -> None:
        both = PausedCompaction(self.store), PausedCompaction(self.store)
        for second, operations in moves:
            both[second].advance(operations)
        for one in both:
            one.finish()

    @invariant()
    def concepts_equal_the_reference_for_all_records_ever_written(self) -> None:
        held = read_committed(self.store)
        assert list(held.items()) == list(expected_concepts(self.written.values()).items())
        for run_id in RUNS:
            expected = {name for name, one in held.items() if RUNS.index(run_id) == int(one.training_fingerprint[1])}
            assert held.concepts_of_run(run_id) == expected


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=20, stateful_step_count=10, deadline=None)


def test_listing_that_shows_no_snapshot_is_repeated(store):
    """A listing of a folder while a file is replaced may contain neither the old nor the new one."""
    compact(store)
    incomplete: Iterator[bool] = iter([True])

    class Incomplete(CatalogStore):
        def list(self, prefix: str) -> list[str]:
            return [] if prefix == layout.INDEX and next(incomplete, False) else super().list(prefix)

    reader = Incomplete.__new__(Incomplete)
    reader.__dict__.update(store.__dict__)
    assert read_committed(reader) == expected_concepts(HISTORY)
