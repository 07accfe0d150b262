"""Checks of results: losses and factors that are not finite, residuals that diverged, images without content.

Each check returns the fault as text, or None. The checks run when a concept's training or a batch of images has ended,
on values that are copied from the device in any case, so that training never waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from .base_model import BaseModel
from .residual import Residual

RETRY_LEARNING_RATE_SCALE = 0.25
"""A concept whose training failed a check is retried once with its learning rates multiplied by this."""

MAX_FLAT_SPREAD = 4
"""An image is of one colour if no channel's values (0 to 255) span more than this."""


_weight_norms: WeakKeyDictionary[BaseModel, Mapping[str, float]] = WeakKeyDictionary()


def weight_norms(base: BaseModel) -> Mapping[str, float]:
    """Return the Frobenius norm |W| of every target layer. Computed once a base model, whose weights are frozen."""
    if base not in _weight_norms:
        weights = {layer.name: base.unet.get_parameter(f"{layer.name}.weight") for layer in base.target_layers}
        norms = [weight.detach().double().norm() for weight in weights.values()]
        _weight_norms[base] = MappingProxyType(dict(zip(weights, torch.stack(norms).tolist(), strict=True)))
    return _weight_norms[base]


def relative_norms(residual: Residual, norms: Mapping[str, float]) -> dict[str, float]:
    """Return |A B| / |W| of every target layer whose W is not zero. `norms` are the base model's `weight_norms`."""
    return {name: residual.delta_norm(name) / norms[name] for name in residual.a if norms[name] > 0}


def training_fault(losses: Tensor, residual: Residual, norms: Mapping[str, float], max_norm: float) -> str | None:
    """Return what is wrong with a concept's training, or None.

    Args:
        losses: [iterations], on the CPU.
        norms: the base model's `weight_norms`.
        max_norm: a residual with a larger |A B| / |W| in any layer has diverged.
    """
    finite = torch.isfinite(losses)
    if not finite.all():
        step = int(finite.long().cumprod(0).sum())
        return f"its loss was no longer finite at iteration {step} of {len(losses)}"
    learned = [*residual.a.values(), *residual.b.values()]
    if residual.identifier is not None:
        learned.append(residual.identifier)
    if not all(torch.isfinite(values).all() for values in learned):
        return f"what it learned was no longer finite after {len(losses)} iterations"
    layer, norm = max(relative_norms(residual, norms).items(), key=lambda one: one[1], default=("", 0.0))
    if norm > max_norm:
        return f"its residual diverged: |A B| is {norm:.3g} times |W| in {layer}, the bound is {max_norm:g}"
    return None


def image_fault(image: np.ndarray, *, finite: bool) -> str | None:
    """Return what is wrong with an image, H x W x 3 uint8, or None.

    Args:
        finite: whether the values from which the image was rounded were finite.
    """
    if not finite:
        return "an image that is not finite"
    lowest, highest = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    if int((highest - lowest).max()) > MAX_FLAT_SPREAD:
        return None
    return "a black image" if int(highest.max()) <= MAX_FLAT_SPREAD else "an image of one colour"
