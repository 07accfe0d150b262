from __future__ import annotations

import dataclasses
import io
import os

import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from persres.core.errors import ConceptFailure, StoreError
from persres.pipeline.catalog.commit_record import blob_digest, rendering_digest
from persres.pipeline.catalog.index import read_committed, read_records
from persres.pipeline.catalog.layout import AttemptPaths
from persres.pipeline.catalog.results import read_renderings, read_residual, read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.planning.plan import Shard

from ...support.catalog_factories import (
    commit,
    memory_store,
    planned,
    rendering_rows_of,
    residual_row,
    shard_of,
    unscored,
)
from ...support.faulty_stores import Fault, faulty


def test_committed_results_are_read_back(store):
    assert read_committed(store) == {}
    a, b = planned("a"), planned("b")
    record = commit(store, shard_of(b, a))
    assert read_records(store) == [record]
    held = read_committed(store)
    assert list(held) == ["a", "b"]
    for concept in (a, b):
        one = held[concept.concept_id]
        assert read_residual(store, one) == residual_row(concept).residual
        assert read_residual_row(store, one) == residual_row(concept, seconds=1.0)
        expected = sorted(rendering_rows_of(concept), key=lambda row: (row.prompt_index, row.variant))
        assert read_renderings(store, one) == expected
        assert (one.training_fingerprint, one.rendering_fingerprint, one.macro_class) == ("t1", "r1", "mug")


def test_record_has_the_mean_scores_of_every_variant(store):
    commit(store, shard_of(planned("a")), score=0.5)
    scores = read_committed(store)["a"].scores
    assert set(scores) == {"base", "lag"}
    assert dataclasses.astuple(scores["lag"]) == (2, 0.5, 0.25, 2)


def test_unscored_renderings_have_no_mean_score(store):
    concept = planned("a")
    commit(store, shard_of(concept), renderings=unscored(rendering_rows_of(concept)))
    assert dataclasses.astuple(read_committed(store)["a"].scores["lag"]) == (2, None, None, None)


def test_record_has_digests_of_residuals_and_renderings(store):
    a, b = planned("a"), planned("b")
    commit(store, shard_of(b, a))
    for concept in (a, b):
        one = read_committed(store)[concept.concept_id]
        assert one.residual_digest == blob_digest(residual_row(concept).residual)
        assert one.renderings_digest == rendering_digest(row.image for row in read_renderings(store, one))
    again = planned("a", rendering="r2", committed=(first := read_committed(store)["a"]))
    commit(store, shard_of(again, kind="render"), run_id="run-2")
    second = read_committed(store)["a"]
    assert second.residual_digest == first.residual_digest
    assert second.renderings_digest != first.renderings_digest


def test_deleted_residual_is_not_referred_to_by_a_record(store):
    commit(store, shard_of(planned("a")))
    held = read_committed(store)["a"]
    store.delete(held.residual_file)
    with pytest.raises(StoreError, match=f"{held.residual_file} is gone"):
        commit(store, shard_of(planned("a", rendering="r2", committed=held), kind="render"), run_id="run-2")
    assert read_committed(store)["a"] == held


def test_first_of_two_attempts_wins_in_either_order(tmp_path):
    shard = shard_of(planned("a"))
    for order in (("001", "002"), ("002", "001")):
        store = CatalogStore(str(tmp_path / order[0]))
        for attempt in order:
            commit(store, shard, attempt=attempt)
        held = AttemptPaths.parse(read_committed(store)["a"].residual_file)
        assert held == AttemptPaths("run-1", shard.shard_id, "001")


def test_record_of_an_older_run_loses_even_if_written_later(store):
    commit(store, shard_of(planned("a", training="new", rendering="new")), run_id="20260102T000000Z-000000")
    commit(store, shard_of(planned("a", training="old"), planned("b")), run_id="20260101T000000Z-ffffff")
    held = read_committed(store)
    assert held["a"].training_fingerprint == "new"
    assert read_renderings(store, held["a"])[0].rendering_fingerprint == "new"
    assert held["b"].training_fingerprint == "t1"


def test_render_shard_refers_to_the_committed_residual(store):
    commit(store, shard_of(planned("a"), planned("b")), run_id="run-1")
    first = read_committed(store)["b"]
    commit(store, shard_of(planned("b", rendering="r2", committed=first), kind="render"), run_id="run-2")
    second = read_committed(store)["b"]
    assert (second.residual_file, second.residual_row) == (first.residual_file, first.residual_row)
    assert read_residual(store, second) == read_residual(store, first)
    assert second.rendering_fingerprint == "r2"
    assert {row.rendering_fingerprint for row in read_renderings(store, second)} == {"r2"}
    assert len(store.list("residuals")) == 1


def test_failed_concept_keeps_its_earlier_result_and_its_shard_mates_are_committed(store):
    commit(store, shard_of(planned("a")), run_id="run-1")
    a, b = planned("a", training="t2"), planned("b")
    failure = ConceptFailure("a", "train", "the loss is not a number", "lower training.learning_rate")
    record = commit(
        store,
        shard_of(a, b),
        residuals=[residual_row(b)],
        renderings=rendering_rows_of(b),
        failures=(failure,),
        run_id="run-2",
    )
    assert record.failures == (failure,)
    assert {name: one.training_fingerprint for name, one in read_committed(store).items()} == {"a": "t1", "b": "t1"}


def test_shard_of_failed_concepts_is_a_record_without_files(store):
    failures = [ConceptFailure("a", "load", "no references")]
    commit(store, shard_of(planned("a")), residuals=[], renderings=[], failures=tuple(failures))
    assert read_committed(store) == {}
    assert store.list("residuals") == store.list("renderings") == []


@pytest.mark.parametrize(
    "fault", ["lost", "twice", "foreign", "failed and done", "no images", "strange images", "failed twice"]
)
def test_rows_that_do_not_cover_the_shard_are_refused(fault):
    store, a, b = memory_store(), planned("a"), planned("b")
    residuals, images, failures = [residual_row(a), residual_row(b)], [*rendering_rows_of(a), *rendering_rows_of(b)], []
    match fault:
        case "lost":
            residuals, images = residuals[:1], images[:4]
        case "twice":
            residuals = [*residuals, residuals[0]]
        case "foreign":
            residuals = [*residuals, residual_row(planned("c"))]
        case "failed and done":
            failures = [ConceptFailure("a", "score", "no")]
        case "no images":
            images = images[:4]
        case "strange images":
            images = [*images, *rendering_rows_of(planned("c"))]
        case "failed twice":
            residuals, images = residuals[1:], images[4:]
            failures = [ConceptFailure("a", "score", "no")] * 2
    with pytest.raises(ValueError, match="expected of"):
        commit(store, shard_of(a, b), residuals=residuals, renderings=images, failures=tuple(failures))
    assert store.list("") == []


def test_render_shard_without_a_committed_residual_is_refused():
    with pytest.raises(ValueError, match="no committed residual"):
        commit(memory_store(), shard_of(planned("a"), kind="render"))


def test_reading_one_concept_takes_few_requests_and_bytes(tmp_path, monkeypatch):
    """Two range reads, and no more bytes than its own row and the file's footer."""
    store = CatalogStore(str(tmp_path))
    concepts = [planned(f"c{number:02}") for number in range(16)]
    blobs = {one.concept_id: bytes([number]) + os.urandom(200_000) for number, one in enumerate(concepts)}
    commit(
        store,
        shard_of(*concepts),
        residuals=[residual_row(one, residual=blobs[one.concept_id]) for one in concepts],
        renderings=[row for one in concepts for row in rendering_rows_of(one)],
    )
    reads: list[int] = []

    def fetched(_path: str, start: int, end: int) -> bytes:
        reads.append(end - start)
        return whole[start:end]

    held = read_committed(store)["c07"]
    whole = store.read(held.residual_file)
    monkeypatch.setattr(store._fs, "cat_file", fetched)
    assert read_residual(store, held) == blobs["c07"]
    assert len(reads) == 2
    assert sum(reads) < 300_000 < len(whole) / 10
    assert pq.ParquetFile(io.BytesIO(whole)).metadata.num_row_groups == 16


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "swapped"])
def test_damaged_data_file_is_named(tmp_path, damage):
    store = CatalogStore(str(tmp_path))
    commit(store, shard_of(planned("a"), planned("b")))
    held = read_committed(store)["a"]
    assert held.rendering_file is not None
    data = bytearray(store.read(held.rendering_file))
    match damage:
        case "cut":
            store.write(held.rendering_file, bytes(data[: len(data) // 2]))
        case "flipped":
            data[data.index(b"\x89PNG") + 40] ^= 1
            store.write(held.rendering_file, bytes(data))
        case "gone":
            store.delete(held.rendering_file)
        case "swapped":
            held = dataclasses.replace(held, rendering_rows=(2, 4))
    with pytest.raises(StoreError, match=held.rendering_file):
        read_renderings(store, held)


_AS_FAR_AS_THE_RECORD = ["find", "pipe_file", "info", "pipe_file", "info", "pipe_file"]


class AttemptsInAnyOrder(RuleBasedStateMachine):
    """Runs, attempts and crashes in any order, compared with a dictionary of what a reader must see."""

    def __init__(self) -> None:
        super().__init__()
        self.store = memory_store()
        self.attempts = 0
        self.expected: dict[str, int] = {}  # concept -> the latest run that committed it

    @rule(
        run=st.integers(1, 4),
        names=st.sets(st.sampled_from("abc"), min_size=1),
        cut=st.integers(1, 9),
        fault=st.sampled_from(["before", "after", "truncated", "shortened"]),
    )
    def attempt(self, run: int, names: set[str], cut: int, fault: Fault) -> None:
        self.attempts += 1
        shard = Shard.of("train", [planned(name, training=f"t{run}") for name in sorted(names)])
        with pytest.MonkeyPatch.context() as patched:
            broken, faults = faulty(self.store, lambda number: fault if number == cut else None, patched)
            try:
                commit(broken, shard, run_id=f"run-{run}", attempt=f"{self.attempts:03}")
            except StoreError:
                record_is_there = (faults.operations, fault) == (_AS_FAR_AS_THE_RECORD, "after") or cut in (7, 8)
                if not record_is_there:
                    return
        for name in names:
            self.expected[name] = max(run, self.expected.get(name, 0))

    @invariant()
    def a_reader_sees_the_latest_run_in_full(self) -> None:
        held = read_committed(self.store)
        assert {name: one.training_fingerprint for name, one in held.items()} == {
            name: f"t{run}" for name, run in self.expected.items()
        }
        for name, one in held.items():
            concept = planned(name, training=one.training_fingerprint)
            assert read_residual(self.store, one) == residual_row(concept).residual
            assert len(read_renderings(self.store, one)) == 4


TestAttemptsInAnyOrder = AttemptsInAnyOrder.TestCase
TestAttemptsInAnyOrder.settings = settings(max_examples=10, stateful_step_count=6, deadline=None)
