"""Scaling a few measured steps to all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.benchmark.step_clock import StepClock

seconds = st.floats(0, 1000)


class Watch:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def measured(set_up: float, step: float, end: float, count: int, scaled_to: int) -> float:
    watch = Watch()
    clock = StepClock(torch.device("cpu"), count, watch)
    watch.now += set_up
    for done in range(1, count + 1):
        watch.now += step
        clock.stepped(done)
    watch.now += end
    return clock.scaled_to(scaled_to)


@given(set_up=seconds, step=seconds, end=seconds, count=st.integers(2, 20), scaled_to=st.integers(1, 1000))
def test_set_up_and_end_count_once_and_a_step_as_often_as_asked(set_up, step, end, count, scaled_to):
    expected = set_up + step * scaled_to + end
    assert measured(set_up, step, end, count, scaled_to) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(step=seconds, end=seconds, scaled_to=st.integers(1, 1000))
def test_one_step_alone(step, end, scaled_to):
    assert measured(0, step, end, 1, scaled_to) == pytest.approx(step * scaled_to + end, rel=1e-6, abs=1e-6)
