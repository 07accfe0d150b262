"""Cost estimates from measurements on simulated devices of known speed."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from persres.core.training.convergence import EarlyStopping
from persres.core.training.settings import TrainingSettings, WarmStart
from persres.pipeline.catalog.commit_record import CommittedConcept, Measured
from persres.pipeline.planning.cost import RunCost, estimate_cost, workload_of
from persres.pipeline.planning.plan import PlannedConcept
from persres.pipeline.planning.throughput import MeasuredRun, batch_count, pack_steps, throughput_key
from persres.pipeline.spec.prices import Prices
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.storage.json_document import as_document

from ...support.catalog_factories import PROMPTS, planned, shard_of

GPU, CPU = "NVIDIA H100 80GB HBM3", "cpu, 1 thread"
SPEC = RunSpec(training=TrainingSettings(iterations=100, pack_size=4))
STEP_S, BATCH_S = 0.5, 3.0
COMMITTED = CommittedConcept("a", "mug", "t0", "r0", "residuals/x.parquet", 0)


def concepts(count: int, *, committed: CommittedConcept | None = None) -> list[PlannedConcept]:
    return [planned(f"c{number}", committed=committed) for number in range(count)]


def measured(trained: int, images: int, spec: RunSpec = SPEC, device: str = GPU, **changes) -> Measured:
    """The measurement of a shard on a device that takes `STEP_S` for a pack step and `BATCH_S` for a batch."""
    key, iterations = throughput_key(spec, "rev"), [spec.training.iterations] * trained
    pack_size = changes.pop("pack_size", spec.training.pack_size)
    steps, batches = pack_steps(iterations, pack_size), batch_count(images, spec.sampling.batch_size)
    one = Measured(device, key.training, key.rendering, pack_size, 1, trained, sum(iterations), steps)
    one = dataclasses.replace(one, train_seconds=STEP_S * steps, images=images, batches=batches)
    return dataclasses.replace(one, render_seconds=BATCH_S * batches, **changes)


def run(*found: Measured, run_id: str = "run-1", busy: float = 1.0, start: float | None = 0.0) -> MeasuredRun:
    return MeasuredRun(run_id, found, sum(one.device_seconds for one in found) / busy, start)


def estimate(shards, runs, spec: RunSpec = SPEC, prices: Prices | None = None, workers: int = 1, **options):
    return estimate_cost(workload_of(shards, spec, "rev"), runs, prices or Prices(), workers, **options)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_estimate_equals_the_time_on_a_device_of_constant_speed(sizes, more, trained_before):
    """However full earlier packs were, a pack of one concept costs as much as a full one."""
    shards = [shard_of(*concepts(sizes)), shard_of(*concepts(more))]
    found = estimate(shards, [run(measured(trained_before, 2 * trained_before))])
    expected = sum(STEP_S * 100 * math.ceil(size / 4) + BATCH_S * batch_count(2 * size, 8) for size in (sizes, more))
    assert found.missing is None and found.device == GPU
    assert found.device_hours * 3600 == pytest.approx(expected, abs=0.01)
    assert found.wall_seconds == pytest.approx(expected, abs=0.01)
    assert (found.concepts, found.images) == (sizes + more, 2 * (sizes + more))
    assert (found.runs, found.measured_concepts, found.measured_images) == (1, trained_before, 2 * trained_before)


def test_rendering_shard_costs_no_training():
    shard = shard_of(*concepts(4, committed=COMMITTED), kind="render")
    found = estimate([shard], [run(measured(4, 8))])
    assert found.device_hours * 3600 == pytest.approx(BATCH_S, abs=0.01)
    assert (found.seconds_per_concept, found.measured_concepts, found.concepts) == (None, 0, 0)
    assert found.seconds_per_image == pytest.approx(BATCH_S / 8)


def test_workers_share_shards_and_idle_time_is_included():
    shards = [shard_of(*concepts(4)) for _ in range(4)]
    runs = [run(measured(4, 8), busy=0.5, start=30.0)]
    one, four, forty = (estimate(shards, runs, workers=workers) for workers in (1, 4, 40))
    work_seconds = 4 * (100 * STEP_S + BATCH_S)
    assert one.device_hours * 3600 == pytest.approx(2 * work_seconds, abs=0.01) == four.device_hours * 3600
    assert one.wall_seconds == pytest.approx(30 + 2 * work_seconds)
    assert four.wall_seconds == forty.wall_seconds == pytest.approx(30 + 2 * work_seconds / 4)


def test_amount_is_given_only_with_a_price():
    shards, runs = [shard_of(*concepts(4))], [run(measured(4, 8))]
    assert (estimate(shards, runs).amount, estimate(shards, runs).currency) == (None, None)
    found = estimate(shards, runs, prices=Prices(device_hour=3600, currency="EUR"))
    assert (found.amount, found.currency) == (pytest.approx(53, abs=0.1), "EUR")


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run(measured(4, 0))],  # never rendered
        [run(measured(4, 8, SPEC.model_copy(update={"scorer": None})))],
        [run(measured(4, 8, training="another"))],
        [run(measured(4, 8, pack_size=8))],
        [run(measured(4, 0)), run(measured(0, 8, device=CPU))],  # no device with both measurements
    ],
)
def test_estimate_is_missing_without_comparable_measurements(runs):
    found = estimate([shard_of(*concepts(4))], runs)
    assert (
        found.missing and "no recent run of this catalog" in found.missing and "trained and rendered" in found.missing
    )
    assert (found.device_hours, found.wall_seconds, found.amount) == (None, None, None)
    assert (found.concepts, found.images) == (4, 8)


def test_estimate_may_combine_two_runs():
    runs = [run(measured(0, 8), run_id="run-2"), run(measured(4, 0), run_id="run-1")]
    found = estimate([shard_of(*concepts(4))], runs)
    assert found.device_hours * 3600 == pytest.approx(100 * STEP_S + BATCH_S, abs=0.01) and found.runs == 2


def test_estimate_uses_the_newest_device_unless_one_is_given():
    slow = measured(4, 8, device=CPU, train_seconds=5000.0)
    runs = [run(measured(4, 8), run_id="run-2"), run(slow, run_id="run-1")]
    shards = [shard_of(*concepts(4))]
    assert estimate(shards, runs).device == estimate(shards, runs, device="cuda").device == GPU
    found = estimate(shards, runs, device="cpu")
    assert found.device == CPU and found.device_hours * 3600 == pytest.approx(5000 + BATCH_S, abs=0.01)
    assert "on a GPU" in (estimate(shards, [run(slow)], device="cuda").missing or "")


def test_measured_pack_size_is_that_of_the_newest_run():
    auto = SPEC.model_copy(update={"training": TrainingSettings(iterations=100)})
    runs = [run(measured(8, 16, auto, pack_size=8)), run(measured(4, 8, auto, pack_size=4), run_id="run-0")]
    found = estimate([shard_of(*concepts(8))], runs, auto)
    assert found.device_hours * 3600 == pytest.approx(100 * STEP_S + 2 * BATCH_S, abs=0.01)
    assert found.measured_concepts == 8, "a pack of another size has another speed"


def test_warm_starts_and_early_stopping_take_fewer_iterations():
    warm = RunSpec(training=TrainingSettings(iterations=100, pack_size=4, warm_start=WarmStart(iterations=10)))
    runs = [run(measured(4, 8, warm))]
    again, new = (
        estimate([shard_of(*concepts(4, committed=committed))], runs, warm) for committed in (COMMITTED, None)
    )
    assert again.device_hours * 3600 == pytest.approx(10 * STEP_S + BATCH_S, abs=0.01)
    assert new.device_hours * 3600 == pytest.approx(100 * STEP_S + BATCH_S, abs=0.01)

    early = RunSpec(training=TrainingSettings(iterations=100, pack_size=4, early_stopping=EarlyStopping()))
    stopped = dataclasses.replace(measured(4, 8, early), iterations=4 * 60, pack_steps=60, train_seconds=60 * STEP_S)
    found = estimate([shard_of(*concepts(4))], [run(stopped)], early)
    assert found.device_hours * 3600 == pytest.approx(60 * STEP_S + BATCH_S, abs=0.01)


def test_plan_without_work_costs_nothing():
    found = estimate([], [], prices=Prices(device_hour=1.0))
    assert (found.missing, found.device_hours, found.wall_seconds, found.amount) == (None, 0.0, 0.0, 0.0)


def test_workload_counts_every_image():
    sampling = SPEC.sampling.model_copy(update={"images_per_prompt": 3, "variants": ("base", "lag")})
    work = workload_of([shard_of(*concepts(2))], SPEC.model_copy(update={"sampling": sampling}), "rev")
    assert (work.concepts, work.images) == (2, 2 * len(PROMPTS) * 3 * 2)


def test_run_cost_has_hours_amount_and_devices():
    ones = [measured(4, 8), measured(4, 8, device=CPU), measured(2, 4)]
    assert RunCost.of(7200, ones, Prices()) == RunCost(2.0, None, None, (GPU, CPU))
    cost = RunCost.of(7200, ones, Prices(device_hour=1.2))
    assert (cost.amount, cost.currency) == (2.4, "USD")
    assert as_document(dataclasses.asdict(cost) | {"added_later": 1}, RunCost, name="", fix="") == cost


def test_prices_are_validated_and_not_fingerprinted():
    assert "prices" in RunSpec.not_fingerprinted()
    spec = RunSpec.from_yaml("prices: {device_hour: 1.2, currency: EUR}")
    assert throughput_key(spec, "rev") == throughput_key(RunSpec(), "rev")
    for wrong in ({"device_hour": -1}, {"currency": "euro"}, {"device_hour": float("inf")}):
        with pytest.raises(ValidationError):
            Prices(**wrong)
