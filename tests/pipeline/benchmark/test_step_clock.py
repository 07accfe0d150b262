"""The step clock: a few measured steps are extrapolated to all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.benchmark.step_clock import StepClock

seconds = st.floats(0, 1000)


class Watch:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def measured(set_up: float, step: float, end: float, count: int, steps: int) -> float:
    watch = Watch()
    clock = StepClock(torch.device("cpu"), count, watch)
    watch.now += set_up
    for done in range(1, count + 1):
        watch.now += step
        clock.step_done(done)
    watch.now += end
    return clock.seconds_for(steps)


@given(set_up=seconds, step=seconds, end=seconds, count=st.integers(2, 20), steps=st.integers(1, 1000))
def test_set_up_and_end_count_once_and_steps_are_extrapolated(set_up, step, end, count, steps):
    expected = set_up + step * steps + end
    assert measured(set_up, step, end, count, steps) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(step=seconds, end=seconds, steps=st.integers(1, 1000))
def test_set_up_belongs_to_the_step_if_one_is_measured(step, end, steps):
    assert measured(0, step, end, 1, steps) == pytest.approx(step * steps + end, rel=1e-6, abs=1e-6)
