"""Adam over rows: K independent optimizers, each with its own learning rate and step count.

Shapes: K rows of n values each, [K, n].

torch's Adam has one learning rate a parameter group and launches its kernels once a group. Here, on a GPU, rate and
step count are columns [K, 1]: a step is the same few launches whatever the rates are, and no row's result depends on
another's. On a CPU, where a call is no launch, torch's fused kernel updates row after row, bit for bit as K torch Adams
do; the batched formula rounds differently in the last bit, because that kernel fuses operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from .device import send

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's constants, as in its paper and in torch."""


class BatchedAdam:
    """Adam without weight decay for each row of `values`, [K, n], with the gradients in `gradients`, [K, n]."""

    def __init__(self, values: Tensor, gradients: Tensor) -> None:
        self.values, self.gradients = values.detach(), gradients
        self.means, self.squares = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.steps = [0] * len(values)

    def reset(self, row: int) -> None:
        """Forget a row's moments and step count."""
        self.means[row], self.squares[row], self.steps[row] = 0, 0, 0

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Update every row k with the learning rate `rates[k]`. Waits for no device."""
        if self.values.device.type == "cpu":
            self.step_row_by_row(rates)
        else:
            self.step_batched(rates)

    def step_row_by_row(self, rates: Sequence[float]) -> None:
        """Update the rows one after the other, with torch's fused kernel."""
        for row, rate in enumerate(rates):
            steps_done = torch.tensor(float(self.steps[row]))  # the kernel counts this step itself
            adam(
                [self.values[row]],
                [self.gradients[row]],
                [self.means[row]],
                [self.squares[row]],
                [],
                [steps_done],
                fused=True,
                amsgrad=False,
                beta1=BETA_1,
                beta2=BETA_2,
                lr=rate,
                weight_decay=0.0,
                eps=EPSILON,
                maximize=False,
            )
            self.steps[row] += 1

    def step_batched(self, rates: Sequence[float]) -> None:
        """Update all rows at once; as many launches whatever the rates."""
        self.steps = [step + 1 for step in self.steps]
        coefficients = torch.tensor(
            [
                [-rate / (1 - BETA_1**step) for rate, step in zip(rates, self.steps, strict=True)],
                [math.sqrt(1 - BETA_2**step) for step in self.steps],
            ],
            dtype=torch.float32,
        )
        negative_step_size, square_correction = send(coefficients, self.values.device).unsqueeze(2)
        self.means.lerp_(self.gradients, 1 - BETA_1)
        self.squares.mul_(BETA_2).addcmul_(self.gradients, self.gradients, value=1 - BETA_2)
        denominator = self.squares.sqrt().div_(square_correction).add_(EPSILON)
        self.values.add_((self.means * negative_step_size).div_(denominator))
