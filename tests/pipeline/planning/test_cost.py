"""What a run would cost: arithmetic over what earlier runs measured, against made-up devices whose speed is known."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from persres.core.training.convergence import EarlyStopping
from persres.core.training.settings import TrainingSettings, WarmStart
from persres.pipeline.catalog.commit_record import CommittedConcept, Measured
from persres.pipeline.planning.cost import RunCost, estimate_cost, workload_of
from persres.pipeline.planning.plan import PlannedConcept
from persres.pipeline.planning.throughput import MeasuredRun, batches_of, pace_of, pack_steps
from persres.pipeline.spec.prices import Prices
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_samples import PROMPTS, planned, shard_of

GPU, CPU = "NVIDIA H100 80GB HBM3", "cpu, 1 thread"
SPEC = RunSpec(training=TrainingSettings(iterations=100, pack_size=4))
A_STEP, A_BATCH = 0.5, 3.0  # seconds
HELD = CommittedConcept("a", "mug", "t0", "r0", "residuals/x.parquet", 0)


def concepts(count: int, *, committed: CommittedConcept | None = None) -> list[PlannedConcept]:
    return [planned(f"c{number}", committed=committed) for number in range(count)]


def measured(trained: int, images: int, spec: RunSpec = SPEC, device: str = GPU, **changes) -> Measured:
    """What a shard takes on a device that needs `A_STEP` for a pack step and `A_BATCH` for a batch."""
    pace, iterations = pace_of(spec, "rev"), [spec.training.iterations] * trained
    pack_size = changes.pop("pack_size", spec.training.pack_size)
    steps, batches = pack_steps(iterations, pack_size), batches_of(images, spec.sampling.batch_size)
    one = Measured(device, pace.training, pace.rendering, pack_size, 1, trained, sum(iterations), steps)
    one = dataclasses.replace(one, train_seconds=A_STEP * steps, images=images, batches=batches)
    return dataclasses.replace(one, render_seconds=A_BATCH * batches, **changes)


def run(*found: Measured, run_id: str = "run-1", busy: float = 1.0, start: float | None = 0.0) -> MeasuredRun:
    return MeasuredRun(run_id, found, sum(one.device_seconds for one in found) / busy, start)


def estimate(shards, history, spec: RunSpec = SPEC, prices: Prices | None = None, workers: int = 1, **options):
    return estimate_cost(workload_of(shards, spec, "rev"), history, prices or Prices(), workers, **options)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_on_a_device_of_even_speed_the_estimate_is_what_the_work_takes(sizes, more, trained_before):
    """Whatever was trained before in packs however full: one new concept costs a whole pack, and so does the next."""
    shards = [shard_of(*concepts(sizes)), shard_of(*concepts(more))]
    found = estimate(shards, [run(measured(trained_before, 2 * trained_before))])
    expected = sum(A_STEP * 100 * -(-size // 4) + A_BATCH * batches_of(2 * size, 8) for size in (sizes, more))
    assert found.missing is None and found.device == GPU
    assert found.device_hours * 3600 == pytest.approx(expected, abs=0.01)
    assert found.wall_seconds == pytest.approx(expected, abs=0.01)
    assert (found.concepts, found.images) == (sizes + more, 2 * (sizes + more))
    assert (found.runs, found.measured_concepts, found.measured_images) == (1, trained_before, 2 * trained_before)


def test_rendering_alone_costs_rendering_alone():
    shard = shard_of(*concepts(4, committed=HELD), kind="render")
    found = estimate([shard], [run(measured(4, 8))])
    assert found.device_hours * 3600 == pytest.approx(A_BATCH, abs=0.01)
    assert (found.seconds_per_concept, found.measured_concepts, found.concepts) == (None, 0, 0)
    assert found.seconds_per_image == pytest.approx(A_BATCH / 8)


def test_workers_share_the_work_but_not_a_shard_and_time_without_work_is_paid_for():
    shards = [shard_of(*concepts(4)) for _ in range(4)]
    history = [run(measured(4, 8), busy=0.5, start=30.0)]
    one, four, forty = (estimate(shards, history, workers=workers) for workers in (1, 4, 40))
    work = 4 * (100 * A_STEP + A_BATCH)
    assert one.device_hours * 3600 == pytest.approx(2 * work, abs=0.01) == four.device_hours * 3600
    assert one.wall_seconds == pytest.approx(30 + 2 * work)
    assert four.wall_seconds == forty.wall_seconds == pytest.approx(30 + 2 * work / 4)


def test_money_is_shown_where_there_is_a_price():
    shards, history = [shard_of(*concepts(4))], [run(measured(4, 8))]
    assert (estimate(shards, history).amount, estimate(shards, history).currency) == (None, None)
    found = estimate(shards, history, prices=Prices(device_hour=3600, currency="EUR"))
    assert (found.amount, found.currency) == (pytest.approx(53, abs=0.1), "EUR")


@pytest.mark.parametrize(
    "history",
    [
        [],
        [run(measured(4, 0))],  # never rendered
        [run(measured(4, 8, SPEC.model_copy(update={"scorer": None})))],
        [run(measured(4, 8, training="another"))],
        [run(measured(4, 8, pack_size=8))],
        [run(measured(4, 0)), run(measured(0, 8, device=CPU))],  # no device of which all is known
    ],
)
def test_what_was_never_measured_like_this_cannot_be_told(history):
    found = estimate([shard_of(*concepts(4))], history)
    assert (
        found.missing and "no recent run of this catalog" in found.missing and "trained and rendered" in found.missing
    )
    assert (found.device_hours, found.wall_seconds, found.amount) == (None, None, None)
    assert (found.concepts, found.images) == (4, 8)


def test_two_runs_may_know_it_together():
    history = [run(measured(0, 8), run_id="run-2"), run(measured(4, 0), run_id="run-1")]
    found = estimate([shard_of(*concepts(4))], history)
    assert found.device_hours * 3600 == pytest.approx(100 * A_STEP + A_BATCH, abs=0.01) and found.runs == 2


def test_it_is_reckoned_by_the_kind_of_device_that_was_used_last_unless_one_is_asked_for():
    slow = measured(4, 8, device=CPU, train_seconds=5000.0)
    history = [run(measured(4, 8), run_id="run-2"), run(slow, run_id="run-1")]
    shards = [shard_of(*concepts(4))]
    assert estimate(shards, history).device == estimate(shards, history, device="cuda").device == GPU
    found = estimate(shards, history, device="cpu")
    assert found.device == CPU and found.device_hours * 3600 == pytest.approx(5000 + A_BATCH, abs=0.01)
    assert "on a GPU" in (estimate(shards, [run(slow)], device="cuda").missing or "")


def test_a_pack_size_that_was_measured_is_that_of_the_newest_run():
    auto = SPEC.model_copy(update={"training": TrainingSettings(iterations=100)})
    history = [run(measured(8, 16, auto, pack_size=8)), run(measured(4, 8, auto, pack_size=4), run_id="run-0")]
    found = estimate([shard_of(*concepts(8))], history, auto)
    assert found.device_hours * 3600 == pytest.approx(100 * A_STEP + 2 * A_BATCH, abs=0.01)
    assert found.measured_concepts == 8, "a pack of another size has another speed"


def test_warm_starts_and_early_ends_take_fewer_iterations():
    warm = RunSpec(training=TrainingSettings(iterations=100, pack_size=4, warm_start=WarmStart(iterations=10)))
    history = [run(measured(4, 8, warm))]
    again, new = (estimate([shard_of(*concepts(4, committed=held))], history, warm) for held in (HELD, None))
    assert again.device_hours * 3600 == pytest.approx(10 * A_STEP + A_BATCH, abs=0.01)
    assert new.device_hours * 3600 == pytest.approx(100 * A_STEP + A_BATCH, abs=0.01)

    early = RunSpec(training=TrainingSettings(iterations=100, pack_size=4, early_stopping=EarlyStopping()))
    ended = dataclasses.replace(measured(4, 8, early), iterations=4 * 60, pack_steps=60, train_seconds=60 * A_STEP)
    found = estimate([shard_of(*concepts(4))], [run(ended)], early)
    assert found.device_hours * 3600 == pytest.approx(60 * A_STEP + A_BATCH, abs=0.01)


def test_nothing_to_do_costs_nothing():
    found = estimate([], [], prices=Prices(device_hour=1.0))
    assert (found.missing, found.device_hours, found.wall_seconds, found.amount) == (None, 0.0, 0.0, 0.0)


def test_a_plans_work_counts_every_image():
    sampling = SPEC.sampling.model_copy(update={"images_per_prompt": 3, "variants": ("base", "lag")})
    work = workload_of([shard_of(*concepts(2))], SPEC.model_copy(update={"sampling": sampling}), "rev")
    assert (work.concepts, work.images) == (2, 2 * len(PROMPTS) * 3 * 2)


def test_what_a_run_did_cost():
    ones = [measured(4, 8), measured(4, 8, device=CPU), measured(2, 4)]
    assert RunCost.of(7200, ones, Prices()) == RunCost(2.0, None, None, (GPU, CPU))
    cost = RunCost.of(7200, ones, Prices(device_hour=1.2))
    assert (cost.amount, cost.currency) == (2.4, "USD")
    assert RunCost.from_values(dataclasses.asdict(cost) | {"added_later": 1}) == cost


def test_prices_are_no_part_of_a_result():
    assert "prices" in RunSpec.not_fingerprinted()
    spec = RunSpec.from_yaml("prices: {device_hour: 1.2, currency: EUR}")
    assert pace_of(spec, "rev") == pace_of(RunSpec(), "rev")
    for wrong in ({"device_hour": -1}, {"currency": "euro"}, {"device_hour": float("inf")}):
        with pytest.raises(ValidationError):
            Prices(**wrong)
