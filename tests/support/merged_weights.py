"""A residual merged into a base model's weights, to compare with a residual that is applied by hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from persres.core.base_model import BaseModel
from persres.core.residual import Residual


def merge_into_base(base: BaseModel, residual: Residual) -> None:
    """Add dW to every target layer's weight, in place: W' = W + A B."""
    with torch.no_grad():
        for layer in base.target_layers:
            weight = base.layer(layer).weight
            assert isinstance(weight, Tensor)
            weight += delta(residual, layer.name).to(weight).view_as(weight)


def delta(residual: Residual, layer: str) -> Tensor:
    """Return dW = A B of a layer, [m, m]."""
    return residual.a[layer] @ residual.b[layer]
