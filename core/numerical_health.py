"""Which results are not to be believed: losses and factors that are not finite, residuals that grew without bound,
pictures that show nothing. Each check gives the fault in words, or None.

Nothing here looks at a device while it works: the checks are made when a concept's training or a tensor batch of images
has ended, on what is fetched from the device anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from .base_model import BaseModel
from .residual import Residual

CAREFUL_LEARNING_RATE_SCALE = 0.25
"""What a concept whose training went wrong is trained with the second time: this share of its learning rates."""

FLAT_LEVELS = 4
"""A picture whose values differ by at most this much of 255, in every channel, is of one colour."""


def weight_norms(base: BaseModel) -> dict[str, float]:
    """||W||_F of every target layer."""
    return {layer.name: float(_weight(base, layer.name).double().norm()) for layer in base.target_layers}


def relative_norms(residual: Residual, norms: Mapping[str, float]) -> dict[str, float]:
    """||A B||_F / ||W||_F of every target layer whose W is not zero; `norms` are the base model's `weight_norms`."""
    return {name: residual.delta_norm(name) / norms[name] for name in residual.a if norms[name] > 0}


def training_fault(losses: Tensor, residual: Residual, norms: Mapping[str, float], max_norm: float) -> str | None:
    """What is wrong with a concept's training.

    Args:
        losses: [iterations], on the CPU.
        norms: the base model's `weight_norms`.
        max_norm: the largest ||A B|| / ||W|| of a layer that counts as sound.
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


def picture_fault(picture: np.ndarray, *, finite: bool) -> str | None:
    """What is wrong with an H x W x 3 uint8 picture; `finite`: whether the numbers that it was made of were."""
    if not finite:
        return "an image that is not finite"
    lowest, highest = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
    if int((highest - lowest).max()) > FLAT_LEVELS:
        return None
    return "a black image" if int(highest.max()) <= FLAT_LEVELS else "an image of one colour"


def _weight(base: BaseModel, layer: str) -> Tensor:
    return base.unet.get_parameter(f"{layer}.weight").detach()
