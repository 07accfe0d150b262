"""Many residuals applied in one UNet pass: f_i = W_i x + M_i * (A_i B_i x), with a residual per group of samples.

Shapes: G groups of samples, S = G P samples in the tensor batch, P consecutive samples per group; every group has its
own residual. In training a group is a concept and P the number of its noised references. In rendering a group is one
image, with P = 2 samples for guidance (unconditional and conditional) and P = 1 without. N positions (h x w in a
convolutional layer), m channels, rank r.
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
    """The masks M_i of LAG: where each layer's residual is applied."""

    def mask(self, transformer: str) -> Tensor:
        """Return the mask, [S, N] in [0, 1], over the positions of the named Transformer2DModel."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ResidualBank:
    """G residuals, stacked: `a[layer]` is [G, m, r], `b[layer]` is [G, r, m]."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]

    @classmethod
    def stack(
        cls, residuals: Sequence[Residual | None], base: BaseModel, *, rank_fraction: int | float = 0.05
    ) -> ResidualBank:
        """Stack residuals in float32 on the base model's device. None is the zero residual.

        Args:
            rank_fraction: the ranks of the zero residuals if there are no others.

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
        """Return a bank whose group g has this bank's residual `slots[g]`; `slots` is [G'] int64."""
        return ResidualBank(
            {name: factor[slots] for name, factor in self.a.items()},
            {name: factor[slots] for name, factor in self.b.items()},
        )

    def to(self, dtype: torch.dtype) -> ResidualBank:
        """Return the bank in another dtype: the UNet's, so that no pass has to convert it."""
        return ResidualBank(
            {name: factor.to(dtype) for name, factor in self.a.items()},
            {name: factor.to(dtype) for name, factor in self.b.items()},
        )

    def residual(self, group: int) -> Residual:
        """Return a copy of one group's residual on the CPU."""
        return Residual(
            {name: factor[group].detach().cpu().clone() for name, factor in self.a.items()},
            {name: factor[group].detach().cpu().clone() for name, factor in self.b.items()},
        )


@contextmanager
def attached(base: BaseModel, bank: ResidualBank, localization: Localization | None = None) -> Iterator[None]:
    """Context manager in which every target layer computes f = W x + M * (A B x) instead of W x.

    Without a localization M = 1. The frozen weights are never written, so that a worker's results do not depend on the
    concepts that it had before (law 6).
    """

    def hook(target: TargetLayer):
        def add(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            mask = localization.mask(target.transformer) if localization is not None else None
            a, b = bank.a[target.name], bank.b[target.name]
            return add_residuals(output, inputs[0], a, b, channels_first=target.kind == "conv", mask=mask)

        return add

    handles = [base.layer(target).register_forward_hook(hook(target)) for target in base.target_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_residuals(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, *, channels_first: bool, mask: Tensor | None = None
) -> Tensor:
    """Return f = W x + A (M * (B x)) with one residual per group, where `output` is W x. The equation of LAG.

    M is applied to B x, which has r channels instead of m, and the addition is part of the second matrix product, so
    that mask and residual cost little beside W x.

    Args:
        output, x: [S, m, h, w] if `channels_first`, else [S, N, m]. Tensors in channels-last layout are not copied.
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
