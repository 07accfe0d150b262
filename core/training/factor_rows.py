"""The trained values of a pack, one row a slot: their layout, their optimizer, their averages.

Shapes: K slots; P the number of values in one residual, the sum of 2 m r over the target layers; n the length of a row:
P, or D for the embeddings of V*.

One row holds all factors of a residual, so that a concept enters and leaves the device in one copy, and an optimizer
step is a handful of launches however many layers there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base_model import TargetLayer
from ..errors import PersresError
from ..residual import Residual
from .batched_adam import BatchedAdam
from .device import send

_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class FactorLayout:
    """Where in a row of P values the factors of each target layer are."""

    def __init__(self, target_layers: Sequence[TargetLayer], rank: int | float) -> None:
        self._shapes: dict[tuple[str, str], tuple[int, int]] = {}
        for layer in target_layers:
            r = layer.rank(rank)
            self._shapes["a", layer.name] = (layer.width, r)
            self._shapes["b", layer.name] = (r, layer.width)
        self._sizes = [rows * columns for rows, columns in self._shapes.values()]

    def allocate(self, size: int, device: torch.device) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """Allocate zeros, [K, P].

        Returns:
            The zeros; views of them by factor ("a" or "b") and layer, [K, m, r] or [K, r, m].
        """
        values = torch.zeros(size, sum(self._sizes), device=device)
        views: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
        parts = values.split(self._sizes, dim=1)
        for ((factor, layer), shape), part in zip(self._shapes.items(), parts, strict=True):
            views[factor][layer] = part.view(size, *shape)
        return values, views

    def flatten(self, residual: Residual) -> Tensor:
        """Return a residual's factors as a row, [P], on the CPU.

        Raises:
            PersresError: the residual has other ranks.
        """
        factors = {"a": residual.a, "b": residual.b}
        for (factor, layer), shape in self._shapes.items():
            if (found := tuple(factors[factor][layer].shape)) != shape:
                fix = "start it cold, or with training.rank as it was"
                raise PersresError(f"the start's {layer} is {factor.upper()} {found}, this training's {shape}", fix=fix)
        return torch.cat([factors[factor][layer].cpu().flatten() for factor, layer in self._shapes])

    def unflatten(self, row: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return copies of the factors in a row [P]: A by layer, and B by layer."""
        factors: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
        for ((factor, layer), shape), part in zip(self._shapes.items(), row.split(self._sizes), strict=True):
            factors[factor][layer] = part.view(shape).clone()
        return factors["a"], factors["b"]


class TrainedRows:
    """Values that K slots train, [K, n], with their gradients, their optimizer, and if asked for their averages."""

    def __init__(self, values: Tensor, gradients: Tensor) -> None:
        self.values, self.gradients = values.detach(), gradients
        self.optimizer = BatchedAdam(values, gradients)
        self._averages: Tensor | None = None

    def load(self, slot: int, row: Tensor, *, averages: bool) -> None:
        """Begin with `row` [n] in a slot. `averages`: whether the slot's average will be asked for."""
        self.values[slot] = send(row, self.values.device)
        self.optimizer.reset(slot)
        if averages and self._averages is None:
            self._averages = torch.empty_like(self.values)
        if self._averages is not None:
            self._averages[slot] = self.values[slot]

    @torch.no_grad()
    def average(self, weights: Sequence[float]) -> None:
        """Move the average of every slot towards its values, by a weight a slot; 1: it becomes equal to them."""
        if self._averages is not None:
            column = torch.tensor(weights, dtype=torch.float32).unsqueeze(1)
            self._averages.lerp_(self.values, send(column, self.values.device))

    def row(self, slot: int, *, averaged: bool) -> Tensor:
        """Return a copy of a slot's values, or of their average, [n], on the CPU."""
        source = self._averages if averaged and self._averages is not None else self.values
        return source[slot].to("cpu", copy=True)


def clip_rows(gradients: Sequence[Tensor], limits: Sequence[float | None]) -> None:
    """Scale each slot's gradient down, in place, to its limit; None: it stays as it is, to the last bit.

    Args:
        gradients: tensors [K, n]; a slot's gradient is its rows in all of them, with one common norm.
        limits: the largest norm of each slot.
    """
    if all(limit is None for limit in limits):
        return
    norms = torch.stack([torch.linalg.vector_norm(one, dim=1) for one in gradients]).square().sum(dim=0).sqrt()
    bounds = send(torch.tensor([float("inf") if one is None else one for one in limits]), norms.device)
    scales = torch.where(bounds.isinf(), 1.0, (bounds / (norms + _CLIP_EPSILON)).clamp(max=1.0))
    for one in gradients:
        one.mul_(scales.unsqueeze(1))
