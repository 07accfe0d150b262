"""Copies of a module that share its weights.

The peer changes its modules (LoRA layers, another `forward`). It gets copies, so that the base model, which the other
rows use, stays as it is, mostly without a second copy of the weights in memory.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import ModelMixin

Model = TypeVar("Model", bound=ModelMixin)


def copy_with_shared_weights(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Build a module from `model`'s configuration, frozen and in eval mode, with `model`'s own weights.

    Args:
        dtype: if given, the number format of the copy; its weights are then copies too.
    """
    source: Any = model
    with torch.device("meta"):
        built: Any = type(source).from_config(source.config)
    # Contiguous, as `from_pretrained` loads them, whatever layout the base model has.
    weights = {name: weight.contiguous() for name, weight in source.state_dict().items()}
    built.load_state_dict(weights, assign=True)
    if dtype is not None:
        built.to(dtype=dtype)
    return built.eval().requires_grad_(False)
