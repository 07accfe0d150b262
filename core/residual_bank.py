"""Many residuals at work in one UNet pass.

Shapes: G groups of samples, S = G x P samples in the tensor batch, P consecutive samples a group; every group has its
own residual. In training a group is a concept and P its noised references. In rendering a group is one image and P = 2,
the unconditional and the conditional half of guidance. N positions, m channels, rank r.
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

    def to(self, dtype: torch.dtype) -> ResidualBank:
        """The bank in the UNet's dtype, once for a whole rendering rather than in every pass."""
        return ResidualBank(
            {name: factor.to(dtype) for name, factor in self.a.items()},
            {name: factor.to(dtype) for name, factor in self.b.items()},
        )

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
        def after(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            mask = localization.mask(target.transformer) if localization is not None else None
            a, b = bank.a[target.name], bank.b[target.name]
            return add_residuals(output, inputs[0], a, b, channels_first=target.kind == "conv", mask=mask)

        return after

    handles = [base.layer(target).register_forward_hook(hook(target)) for target in base.target_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_residuals(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, *, channels_first: bool, mask: Tensor | None = None
) -> Tensor:
    """W x + M * (A B x) with a residual a group, where `output` is W x.

    M is applied to B x, which has r channels instead of m, and the sum is part of the second product: a mask, and the
    residual itself, then cost next to nothing beside W x.

    Args:
        output, x: [S, m, h, w] if `channels_first`, else [S, N, m]. A channels-last tensor is not copied.
        a, b: [G, m, r] and [G, r, m], S a multiple of G.
        mask: [S, N], or None for M = 1.

    Returns:
        A tensor shaped like `output`.
    """
    groups, a, b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    if channels_first:
        output, x = output.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    reduced = torch.bmm(x.reshape(groups, -1, x.shape[-1]), b.transpose(1, 2))  # [G, P N, r]
    if mask is not None:
        reduced = reduced * mask.to(x.dtype).reshape(groups, -1, 1)
    summed = torch.baddbmm(output.reshape(groups, -1, output.shape[-1]), reduced, a.transpose(1, 2)).view(output.shape)
    return summed.permute(0, 3, 1, 2) if channels_first else summed
