"""One batched Adam equals as many torch Adams, whatever the rates and whenever their rows began."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from persres.core.training.batched_adam import BatchedAdam

RATES = st.sampled_from([0.0, 1e-5, 1e-3, 0.03, 0.5])
Way = Literal["step_row_by_row", "step_batched"]
WAYS: tuple[Way, ...] = ("step_row_by_row", "step_batched")


class TorchAdam:
    """torch's own Adam over one row."""

    def __init__(self, row: Tensor) -> None:
        self.parameter = row.clone().requires_grad_(True)
        self.optimizer = torch.optim.Adam([self.parameter], fused=True)

    def step(self, gradient: Tensor, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate
        self.parameter.grad = gradient.clone()
        self.optimizer.step()

    @property
    def values(self) -> Tensor:
        return self.parameter.detach()


@pytest.mark.parametrize("way", WAYS)
@given(
    rows=st.integers(1, 5),
    width=st.sampled_from([1, 7, 16, 1000]),
    schedule=st.lists(st.tuples(RATES, RATES), min_size=1, max_size=8),
    restart=st.integers(0, 8),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None)
def test_batched_adam_equals_torch_adams(way: Way, rows, width, schedule, restart, seed):
    """Bit for bit on a CPU; the formula that a GPU runs, to the last bits of each step."""
    rng = torch.Generator().manual_seed(seed)
    values, gradients = torch.randn(rows, width, generator=rng), torch.zeros(rows, width)
    batched, alone = BatchedAdam(values, gradients), [TorchAdam(row) for row in values]
    for step, (even, odd) in enumerate(schedule):
        if step == restart:  # a slot takes its next concept while the others go on
            values[0] = torch.randn(width, generator=rng)
            batched.reset(0)
            alone[0] = TorchAdam(values[0])
        gradients.copy_(torch.randn(rows, width, generator=rng) * 10 ** torch.randn(rows, 1, generator=rng))
        rates = [odd if row % 2 else even for row in range(rows)]
        with torch.no_grad():
            getattr(batched, way)(rates)
        for adam, gradient, rate in zip(alone, gradients, rates, strict=True):
            adam.step(gradient, rate)
    expected = torch.stack([adam.values for adam in alone])
    if way == "step_row_by_row":
        assert torch.equal(values, expected)
    else:
        torch.testing.assert_close(values, expected, rtol=2e-6, atol=2e-6)


def test_a_cpu_takes_the_way_that_equals_torchs():
    rng = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(2, 64, generator=rng), torch.randn(2, 64, generator=rng)
    alone = [TorchAdam(row) for row in values]
    BatchedAdam(values, gradients).step([1e-3, 0.5])
    for adam, gradient, rate in zip(alone, gradients, [1e-3, 0.5], strict=True):
        adam.step(gradient, rate)
    assert torch.equal(values, torch.stack([adam.values for adam in alone]))


@pytest.mark.parametrize("way", WAYS)
def test_batched_adam_agrees_with_the_plain_formula(way: Way):
    rng = torch.Generator().manual_seed(1)
    values, gradients = torch.randn(3, 50, generator=rng), torch.zeros(3, 50)
    expected, mean, square = values.double(), torch.zeros(3, 50).double(), torch.zeros(3, 50).double()
    batched, rates = BatchedAdam(values, gradients), [1e-3, 1e-2, 0.3]
    for step in range(1, 20):
        gradients.copy_(torch.randn(3, 50, generator=rng))
        with torch.no_grad():
            getattr(batched, way)(rates)
        mean = 0.9 * mean + 0.1 * gradients.double()
        square = 0.999 * square + 0.001 * gradients.double() ** 2
        move = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - torch.tensor(rates, dtype=torch.float64)[:, None] * move
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_row_that_is_not_finite_leaves_the_others_alone(way: Way, poison: float):
    results = []
    for of_neighbour in (1.0, poison):
        values, gradients = torch.ones(2, 9), torch.ones(2, 9)
        gradients[0] = of_neighbour
        batched = BatchedAdam(values, gradients)
        with torch.no_grad():
            for _ in range(3):
                getattr(batched, way)([0.1, 0.1])
        results.append(values[1])
    assert torch.equal(*results)


def test_launches_do_not_depend_on_the_rates():
    def operations(rates: list[float]) -> list[str]:
        batched = BatchedAdam(torch.ones(4, 100), torch.ones(4, 100))
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            batched.step_batched(rates)
        return [event.name for event in profile.events()]

    assert operations([0.1] * 4) == operations([0.1, 0.2, 0.3, 0.4])
