"""Many residuals at work in one UNet pass.

Shapes: G groups of samples, S = G x P samples in the tensor batch, P consecutive samples a group; every group has its
own residual. In training a group is a concept and P its noised references. In rendering a group is one image and P = 2,
the unconditional and the conditional half of guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .base_model import BaseModel, TargetLayer
from .residual import Residual, check_residual


class Localization(Protocol):
    """Where a layer's residual acts."""

    def mask(self, transformer: str) -> Tensor:
        """[S, N] in [0, 1] over the N positions of the named Transformer2DModel."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ResidualBank:
    """G residuals, stacked: a[layer] is [G, m, r], b[layer] is [G, r, m]."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]

    @classmethod
    def stack(
        cls, residuals: Sequence[Residual | None], base: BaseModel, *, rank_fraction: float = 0.05
    ) -> ResidualBank:
        """Stack residuals on the base model's device in float32; None stands for the zero residual.

        Raises:
            PersresError: a residual does not fit the base model.
        """
        example = next((residual for residual in residuals if residual is not None), None)
        ranks = example.ranks if example else {layer.name: layer.rank(rank_fraction) for layer in base.target_layers}
        zero = Residual(
            {layer.name: torch.zeros(layer.width, ranks[layer.name]) for layer in base.target_layers},
            {layer.name: torch.zeros(ranks[layer.name], layer.width) for layer in base.target_layers},
        )
        rows = [residual or zero for residual in residuals]
        for row in rows:
            check_residual(row, base.target_layers)
        names = [layer.name for layer in base.target_layers]
        return cls(
            {name: torch.stack([row.a[name] for row in rows]).to(base.device) for name in names},
            {name: torch.stack([row.b[name] for row in rows]).to(base.device) for name in names},
        )

    def select(self, slots: Tensor) -> ResidualBank:
        """The bank whose group g uses this bank's residual number `slots[g]`."""
        return ResidualBank(
            {name: factor[slots] for name, factor in self.a.items()},
            {name: factor[slots] for name, factor in self.b.items()},
        )

    def parameters(self) -> list[Tensor]:
        return [*self.a.values(), *self.b.values()]

    def residual(self, group: int) -> Residual:
        """A copy of one group's residual, on the CPU."""
        return Residual(
            {name: factor[group].detach().cpu().clone() for name, factor in self.a.items()},
            {name: factor[group].detach().cpu().clone() for name, factor in self.b.items()},
        )


@contextmanager
def attached(base: BaseModel, bank: ResidualBank, localization: Localization | None = None) -> Iterator[None]:
    """While this is open, every target layer computes f = W x + M * (A B x) instead of W x.

    Without a localization M = 1 everywhere: the plain residual. The frozen weights are never written, so a worker is
    the same after the thousandth concept as before the first (law 6).
    """

    def hook(target: TargetLayer):
        def add_residual(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            a, b = bank.a[target.name], bank.b[target.name]
            delta = apply_residuals(inputs[0], a, b, target.kind == "conv")
            if localization is not None:
                delta = delta * _broadcast_mask(localization.mask(target.transformer), delta, target)
            return output + delta

        return add_residual

    handles = [base.layer(target).register_forward_hook(hook(target)) for target in base.target_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def apply_residuals(x: Tensor, a: Tensor, b: Tensor, channels_first: bool) -> Tensor:
    """A B x with a residual a group.

    Args:
        x: [S, m, h, w] if `channels_first`, else [S, N, m].
        a, b: [G, m, r] and [G, r, m], S a multiple of G.

    Returns:
        A tensor shaped like x.
    """
    groups, a, b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    if channels_first:
        grouped = x.reshape(groups, -1, x.shape[1], x.shape[2] * x.shape[3])  # [G, P, m, N]
        delta = torch.matmul(a[:, None], torch.matmul(b[:, None], grouped))
    else:
        grouped = x.reshape(groups, -1, x.shape[2])  # [G, P N, m]
        delta = torch.bmm(torch.bmm(grouped, b.transpose(1, 2)), a.transpose(1, 2))
    return delta.reshape(x.shape)


def _broadcast_mask(mask: Tensor, delta: Tensor, target: TargetLayer) -> Tensor:
    mask = mask.to(delta.dtype)
    if target.kind == "conv":
        return mask.reshape(mask.shape[0], 1, delta.shape[2], delta.shape[3])
    return mask[..., None]
