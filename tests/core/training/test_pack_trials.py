"""Pack sizes: the rules, on given trials, and the measurement on a real model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.base_model import BaseModel
from persres.core.training.pack_trials import PackTrial, choose_pack_size, is_worth_doubling, measure_packs
from persres.core.training.settings import TrainingSettings

TRIALS = st.lists(st.tuples(st.floats(1e-3, 10), st.integers(1, 10**9)), min_size=1, max_size=8).map(
    lambda found: [PackTrial(2**power, seconds, peak) for power, (seconds, peak) in enumerate(found)]
)


def test_smallest_pack_within_the_speedup_is_chosen():
    # concept-steps per second: 1, 1.6, 2, 2.02
    trials = [PackTrial(1, 1.0, 1), PackTrial(2, 1.25, 1), PackTrial(4, 2.0, 1), PackTrial(8, 3.96, 1)]
    assert choose_pack_size(trials) == 4


@given(TRIALS)
def test_chosen_pack_has_nearly_the_best_throughput(trials: list[PackTrial]):
    chosen = next(trial for trial in trials if trial.pack_size == choose_pack_size(trials))
    assert chosen.concepts_per_second * 1.03 >= max(trial.concepts_per_second for trial in trials) * (1 - 1e-12)


def test_padding_of_a_shards_last_pack_counts():
    # concept-steps per second: 1, 1.6, 2, 2.5; twelve concepts are two packs of 8, padded to 16
    trials = [PackTrial(1, 1.0, 1), PackTrial(2, 1.25, 1), PackTrial(4, 2.0, 1), PackTrial(8, 3.2, 1)]
    assert choose_pack_size(trials) == 8
    assert choose_pack_size(trials, concepts=12) == 4
    assert choose_pack_size(trials, concepts=16) == 8
    assert choose_pack_size(trials, concepts=1) == 1


@given(TRIALS, st.integers(1, 300))
def test_chosen_pack_has_nearly_the_best_throughput_of_a_shard(trials: list[PackTrial], concepts: int):
    def seconds(trial: PackTrial) -> float:
        return -(-concepts // trial.pack_size) * trial.seconds_per_step

    chosen = next(trial for trial in trials if trial.pack_size == choose_pack_size(trials, concepts))
    assert seconds(chosen) <= 1.03 * min(map(seconds, trials)) * (1 + 1e-12)


def test_doubling_ends_when_throughput_stops_growing():
    growing = [PackTrial(1, 1.0, 10), PackTrial(2, 1.5, 20)]
    assert is_worth_doubling(growing, free_bytes=10**6)
    assert not is_worth_doubling([*growing, PackTrial(4, 2.95, 40)], free_bytes=10**6)


def test_doubling_ends_when_the_forecast_exceeds_memory():
    trials = [PackTrial(2, 1.0, 30), PackTrial(4, 1.2, 50)]  # 10 bytes, and 10 more per concept: 8 concepts need 90
    assert is_worth_doubling(trials, free_bytes=100)
    assert not is_worth_doubling(trials, free_bytes=99)


def test_trials_are_measured_on_a_real_model(base: BaseModel):
    seen: list[PackTrial] = []
    settings = TrainingSettings(batch_size=2)
    trials = measure_packs(base, settings, budget_seconds=3, on_trial=seen.append)
    assert trials == seen and [trial.pack_size for trial in trials] == [2**power for power in range(len(trials))]
    assert all(trial.seconds_per_step > 0 and trial.peak_bytes > 0 for trial in trials)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3])])
def test_no_pack_larger_than_asked_for_is_tried(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
):
    monkeypatch.setattr("persres.core.training.pack_trials.is_worth_doubling", lambda trials, free: True)
    trials = measure_packs(base, TrainingSettings(batch_size=1), most=most, budget_seconds=600)
    assert [trial.pack_size for trial in trials] == sizes


def test_error_other_than_out_of_memory_is_raised(base: BaseModel):
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    handle = base.unet.conv_out.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="mat1"):
            measure_packs(base, TrainingSettings(batch_size=1), budget_seconds=1)
    finally:
        handle.remove()
