"""A second module over the same weights.

The peer changes the modules it works on (LoRA layers inside, another `forward`). On a twin it may do so without
touching the base model that the other rows use, and mostly without a second copy of the weights in memory.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import ModelMixin

Model = TypeVar("Model", bound=ModelMixin)


def twin(model: Model, dtype: torch.dtype | None = None) -> Model:
    """A module built anew from `model`'s configuration, frozen, in eval mode, with diffusers' own defaults.

    Args:
        dtype: another number format than the model's; the weights are then copied.
    """
    source: Any = model
    with torch.device("meta"):
        built: Any = type(source).from_config(source.config)
    # Contiguous, as `from_pretrained` would have read them, whatever layout the base model was brought into.
    weights = {name: weight.contiguous() for name, weight in source.state_dict().items()}
    built.load_state_dict(weights, assign=True)
    if dtype is not None:
        built.to(dtype=dtype)
    return built.eval().requires_grad_(False)
