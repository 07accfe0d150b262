"""Rendering with the bare base model in full batches, the lower bound for our rendering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...core.base_model import BaseModel
from ...core.batching import batches
from ...core.latents import decode_latents
from ...core.sampling.lag_sampling import RenderRequest, denoise, initial_noise, tokenize_request
from ...core.sampling.settings import SamplingSettings
from ...core.text_conditioning import encode_negative, encode_text


@torch.inference_mode()
def render_bare(
    base: BaseModel, requests: Sequence[RenderRequest], settings: SamplingSettings, *, identifier_token: str
) -> list[np.ndarray]:
    """Render with the base model alone: no residuals, no hooks, diffusers' own attention.

    The time that `render` takes beyond this is the cost of residuals and of LAG.
    """
    images: list[np.ndarray] = []
    for batch in batches(requests, settings.batch_size):
        text = encode_text(base, [tokenize_request(base, request, identifier_token) for request in batch])
        if settings.guidance_scale > 1:
            text = encode_negative(base, settings.negative_prompt).paired_with(text)
        latents = denoise(base, initial_noise(base, batch, settings), text, settings)
        images += [*decode_latents(base, latents)]
    return images
