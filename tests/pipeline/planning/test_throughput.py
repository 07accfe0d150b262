"""Measured throughput: which measurements are comparable, and how they are read."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import StoreError
from persres.pipeline.catalog.commit_record import Measured, ShardCommit
from persres.pipeline.catalog.index import compact
from persres.pipeline.catalog.layout import AttemptPaths, RunPaths
from persres.pipeline.catalog.sealed_json import seal, unseal
from persres.pipeline.planning.cost import RunCost
from persres.pipeline.planning.throughput import (
    batch_count,
    pack_steps,
    read_measured_runs,
    sum_measured,
    throughput_key,
)
from persres.pipeline.run.summary import RunSummary
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import commit, memory_store, planned, shard_of

ONE = Measured("gpu", "t", "r", 4, concepts=4, iterations=40, pack_steps=10, train_seconds=5.0, images=2, batches=1)


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 6))
def test_pack_steps_are_within_twice_the_least_possible(iterations, pack_size):
    """Greedy scheduling, where a free slot takes the next concept, takes at most twice the minimum."""
    minimum = max([math.ceil(sum(iterations) / pack_size), *iterations], default=0)
    assert minimum <= pack_steps(iterations, pack_size) <= 2 * minimum


@pytest.mark.parametrize(
    ("concepts", "pack_size", "steps"), [(1, 8, 150), (8, 8, 150), (9, 8, 300), (5, 1, 750), (0, 4, 0)]
)
def test_short_pack_takes_as_many_steps_as_a_full_one(concepts, pack_size, steps):
    assert pack_steps([150] * concepts, pack_size) == steps


def test_batch_count_includes_the_padded_last_batch():
    assert [batch_count(images, 8) for images in (0, 1, 8, 9)] == [0, 1, 1, 2]


@given(st.permutations([ONE, ONE, dataclasses.replace(ONE, device="cpu"), dataclasses.replace(ONE, pack_size=2)]))
def test_sum_measured_groups_by_device_and_pack_size_in_any_order(measured):
    found = sum_measured(measured)
    assert [(one.device, one.pack_size, one.shards) for one in found] == [("cpu", 4, 1), ("gpu", 2, 1), ("gpu", 4, 2)]
    assert (found[-1].concepts, found[-1].pack_steps, found[-1].train_seconds) == (8, 20, 10.0)
    assert sum_measured(found) == found


def test_throughput_key_depends_only_on_what_affects_times():
    spec = RunSpec()
    key = throughput_key(spec, "rev")

    def changed(group: str, **settings) -> RunSpec:
        return spec.model_copy(update={group: getattr(spec, group).model_copy(update=settings)})

    assert throughput_key(changed("training", iterations=7, learning_rate=0.5, prompt="x {concept}"), "rev") == key
    assert throughput_key(changed("sampling", images_per_prompt=4, guidance_scale=3.0), "rev") == key
    slower = throughput_key(changed("training", batch_size=8), "rev")
    assert slower.training != key.training and slower.rendering == key.rendering
    for settings in ({"steps": 7}, {"guidance_scale": 1.0}, {"variants": ("lag", "base")}, {"width": 64}):
        other = throughput_key(changed("sampling", **settings), "rev")
        assert other.training == key.training and other.rendering != key.rendering
    assert throughput_key(changed("training", pack_size=4), "rev") == dataclasses.replace(key, pack_size=4)
    assert throughput_key(spec.model_copy(update={"scorer": None}), "rev").rendering != key.rendering
    assert {throughput_key(spec, "other").training, throughput_key(spec, "other").rendering}.isdisjoint(
        {key.training, key.rendering}
    )


@pytest.mark.parametrize(
    ("training", "digest"),
    [
        ({}, "03e2998f6c31b59260ffbc6152085d1d"),
        (
            {"rank_fraction": 0.25, "train_identifier": True, "early_stopping": {}},
            "01968b7fd5c7b8d7eedc4fad03e51ff2",
        ),
    ],
)
def test_measurements_from_before_settings_were_added_are_still_found(training: dict[str, Any], digest: str):
    """The digests of version 0.1.0; settings that do not affect the time of a step leave them alone."""
    spec = RunSpec.model_validate({"training": training})
    assert throughput_key(spec, "rev").training == digest
    free = {"timesteps": "stratified", "max_gradient_norm": 1.0, "averaging": "ema", "min_snr_gamma": 5.0}
    assert throughput_key(RunSpec.model_validate({"training": training | free}), "rev").training == digest
    higher_rank = RunSpec.model_validate({"training": {"rank": 8}})
    assert throughput_key(higher_rank, "rev").training != digest


def summary(run_id: str, *measured: Measured, hours: float = 0.01) -> bytes:
    cost = RunCost(hours, devices=("gpu",))
    return RunSummary(run_id, 1, 1, (), 0, 0, measured=measured, start_seconds=9.0, cost=cost).to_json()


def test_measured_runs_come_from_summaries_and_from_records_of_runs_without_one():
    store = memory_store()
    for number in range(5):
        store.write(RunPaths(f"run-{number}").summary, summary(f"run-{number}", ONE))
    store.write(RunPaths("run-2").summary, b'{"run_id": "run-2", "seconds": {}}')  # an earlier version's
    store.write(RunPaths("run-1").summary, b'{"run_id": "run-1", "measured": [{"speed": 7}]}')
    record = commit(store, shard_of(planned("a"), planned("b")), run_id="run-7")
    path = AttemptPaths("run-7", record.shard_id, record.attempt).record
    store.write(path, dataclasses.replace(record, measured=ONE).to_json())
    commit(store, shard_of(planned("c")), run_id="run-6")  # measured nothing
    runs = read_measured_runs(store)
    assert [run.run_id for run in runs] == ["run-7", "run-4", "run-3", "run-0"]
    assert (runs[0].measured, runs[0].worker_seconds, runs[0].start_seconds) == ((ONE,), None, None)
    assert (runs[1].measured, runs[1].worker_seconds, runs[1].start_seconds) == ((ONE,), 36.0, 9.0)
    assert [run.run_id for run in read_measured_runs(store, runs=2)] == ["run-7", "run-4", "run-3"]
    assert [run.run_id for run in read_measured_runs(store, runs=1, records=0)] == ["run-4"]
    assert read_measured_runs(memory_store()) == []


def test_commit_record_keeps_its_measurement_and_may_have_none():
    record = ShardCommit("r", "s", "1", "train", {}, (), (), {}, measured=ONE)
    assert ShardCommit.from_json(record.to_json(), path="x") == record
    raw = unseal(record.to_json(), sealed_since=2)
    raw["measured"]["added_later"] = 1
    assert ShardCommit.from_json(seal(raw), path="x") == record
    del raw["measured"]
    assert ShardCommit.from_json(seal(raw), path="x").measured is None
    raw["measured"] = {"device": "gpu"}
    with pytest.raises(StoreError, match="is damaged"):
        ShardCommit.from_json(seal(raw), path="x")


def test_compaction_between_listing_and_reading_is_retried():
    store = memory_store()
    record = commit(store, shard_of(planned("a")), run_id="run-7")
    path = AttemptPaths("run-7", record.shard_id, record.attempt).record
    store.write(path, dataclasses.replace(record, measured=ONE).to_json())
    read_many, reads = store.read_many, []

    def compacted_first(paths):
        reads.append(list(paths))
        if len(reads) == 1:
            assert compact(store.with_retry(0)) == 1
        return read_many(reads[-1])

    store.retry_s = 0
    store.read_many = compacted_first
    assert read_measured_runs(store) == [] and len(reads) >= 2
