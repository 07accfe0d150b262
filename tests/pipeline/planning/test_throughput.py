"""The history of how fast a catalog's runs were: what counts as the same pace, and what is read of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreError
from persres.pipeline.catalog.commit_record import Measured, ShardCommit
from persres.pipeline.catalog.index import compact
from persres.pipeline.planning.cost import RunCost
from persres.pipeline.planning.throughput import added_up, batches_of, pace_of, pack_steps, read_history
from persres.pipeline.run.summary import RunSummary
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_samples import commit, memory_store, planned, shard_of

ONE = Measured("gpu", "t", "r", 4, concepts=4, iterations=40, pack_steps=10, train_seconds=5.0, images=2, batches=1)


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 6))
def test_a_pack_is_never_faster_than_its_slots_allow(iterations, pack_size):
    """Against the least that is possible, and twice that at most: every slot takes the next concept when it is free."""
    least = max([-(-sum(iterations) // pack_size), *iterations], default=0)
    assert least <= pack_steps(iterations, pack_size) <= 2 * least


@pytest.mark.parametrize(
    ("concepts", "pack_size", "steps"), [(1, 8, 150), (8, 8, 150), (9, 8, 300), (5, 1, 750), (0, 4, 0)]
)
def test_a_short_pack_takes_as_long_as_a_full_one(concepts, pack_size, steps):
    assert pack_steps([150] * concepts, pack_size) == steps


def test_the_last_batch_is_padded_too():
    assert [batches_of(images, 8) for images in (0, 1, 8, 9)] == [0, 1, 1, 2]


@given(st.permutations([ONE, ONE, dataclasses.replace(ONE, device="cpu"), dataclasses.replace(ONE, pack_size=2)]))
def test_adding_up_keeps_apart_what_is_not_alike_in_any_order(measured):
    found = added_up(measured)
    assert [(one.device, one.pack_size, one.shards) for one in found] == [("cpu", 4, 1), ("gpu", 2, 1), ("gpu", 4, 2)]
    assert (found[-1].concepts, found[-1].pack_steps, found[-1].train_seconds) == (8, 20, 10.0)
    assert added_up(found) == found


def test_only_what_changes_the_time_of_a_step_changes_the_pace():
    spec = RunSpec()
    pace = pace_of(spec, "rev")

    def changed(group: str, **settings) -> RunSpec:
        return spec.model_copy(update={group: getattr(spec, group).model_copy(update=settings)})

    assert pace_of(changed("training", iterations=7, learning_rate=0.5, prompt="x {concept}"), "rev") == pace
    assert pace_of(changed("sampling", images_per_prompt=4, guidance_scale=3.0), "rev") == pace
    slower = pace_of(changed("training", batch_size=8), "rev")
    assert slower.training != pace.training and slower.rendering == pace.rendering
    for settings in ({"steps": 7}, {"guidance_scale": 1.0}, {"variants": ("lag", "base")}, {"width": 64}):
        other = pace_of(changed("sampling", **settings), "rev")
        assert other.training == pace.training and other.rendering != pace.rendering
    assert pace_of(changed("training", pack_size=4), "rev") == dataclasses.replace(pace, pack_size=4)
    assert pace_of(spec.model_copy(update={"scorer": None}), "rev").rendering != pace.rendering
    assert {pace_of(spec, "other").training, pace_of(spec, "other").rendering}.isdisjoint(
        {pace.training, pace.rendering}
    )


def summary(run_id: str, *measured: Measured, hours: float = 0.01) -> bytes:
    cost = RunCost(hours, devices=("gpu",))
    return RunSummary(run_id, 1, 1, (), 0, 0, measured=measured, start_seconds=9.0, cost=cost).to_json()


def test_the_history_is_the_newest_runs_summaries_and_the_records_of_runs_that_left_none():
    store = memory_store()
    for number in range(5):
        store.write(store.run_file(f"run-{number}", "summary.json"), summary(f"run-{number}", ONE))
    store.write(store.run_file("run-2", "summary.json"), b'{"run_id": "run-2", "seconds": {}}')  # an earlier version's
    store.write(store.run_file("run-1", "summary.json"), b'{"run_id": "run-1", "measured": [{"speed": 7}]}')
    record = commit(store, shard_of(planned("a"), planned("b")), run_id="run-7")
    path = store.commit_record("run-7", record.shard_id, record.attempt)
    store.write(path, dataclasses.replace(record, measured=ONE).to_json())
    commit(store, shard_of(planned("c")), run_id="run-6")  # measured nothing
    history = read_history(store)
    assert [run.run_id for run in history] == ["run-7", "run-4", "run-3", "run-0"]
    assert (history[0].measured, history[0].held_seconds, history[0].start_seconds) == ((ONE,), None, None)
    assert (history[1].measured, history[1].held_seconds, history[1].start_seconds) == ((ONE,), 36.0, 9.0)
    assert [run.run_id for run in read_history(store, runs=2)] == ["run-7", "run-4", "run-3"]
    assert [run.run_id for run in read_history(store, runs=1, records=0)] == ["run-4"]
    assert read_history(memory_store()) == []


def test_a_record_keeps_what_it_measured_and_older_ones_are_read():
    record = ShardCommit("r", "s", "1", "train", {}, (), (), {}, measured=ONE)
    assert ShardCommit.from_json(record.to_json(), path="x") == record
    raw = json.loads(record.to_json())
    raw["measured"]["added_later"] = 1
    text = (json.dumps(raw, indent=1) + "\n").encode()
    assert ShardCommit.from_json(text, path="x") == record
    del raw["measured"]
    assert ShardCommit.from_json((json.dumps(raw, indent=1) + "\n").encode(), path="x").measured is None
    raw["measured"] = {"device": "gpu"}
    with pytest.raises(StoreError, match="is damaged"):
        ShardCommit.from_json((json.dumps(raw, indent=1) + "\n").encode(), path="x")


def test_a_compaction_between_listing_and_reading_is_looked_at_again():
    store = memory_store()
    record = commit(store, shard_of(planned("a")), run_id="run-7")
    path = store.commit_record("run-7", record.shard_id, record.attempt)
    store.write(path, dataclasses.replace(record, measured=ONE).to_json())
    read_many, reads = store.read_many, []

    def compacted_first(paths):
        reads.append(list(paths))
        if len(reads) == 1:
            assert compact(store.with_patience(0)) == 1
        return read_many(reads[-1])

    store.patience_s = 0
    store.read_many = compacted_first
    assert read_history(store) == [] and len(reads) >= 2
