"""Our rendering, and the bare base model in batches of the same size to hold it against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...core.base_model import BaseModel
from ...core.batching import batches
from ...core.latents import decode_latents
from ...core.sampling.lag_sampling import RenderRequest, make_scheduler, tokenize_request
from ...core.sampling.settings import SamplingSettings
from ...core.text_conditioning import encode_negative, encode_text


@torch.inference_mode()
def render_bare(
    base: BaseModel, requests: Sequence[RenderRequest], settings: SamplingSettings, *, identifier_token: str
) -> list[np.ndarray]:
    """The least work that makes these images: no residual, no hook, diffusers' own attention, full batches.

    What `render` takes beyond this is what residuals, and LAG, cost.
    """
    images: list[np.ndarray] = []
    for batch in batches(requests, settings.batch_size):
        images += _denoise(base, batch, settings, identifier_token)
    return images


def _denoise(
    base: BaseModel, batch: Sequence[RenderRequest], settings: SamplingSettings, identifier_token: str
) -> list[np.ndarray]:
    text = encode_text(base, [tokenize_request(base, request, identifier_token) for request in batch])
    guided = settings.guidance_scale > 1
    if guided:
        text = encode_negative(base, settings.negative_prompt).paired_with(text)
    height, width = settings.height or base.resolution, settings.width or base.resolution
    conditioning = text.unet_arguments(len(text.states), height, width)
    scheduler = make_scheduler(base, settings)
    shape = (base.latent_channels, height // base.pixels_per_latent, width // base.pixels_per_latent)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in batch]
    latents = torch.stack(noise).to(base.device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(latents, timestep).to(base.dtype)
        model_input = model_input.repeat_interleave(2, dim=0) if guided else model_input
        predicted = base.unet(model_input, timestep, **conditioning, return_dict=False)[0].float()
        if guided:
            unconditional, conditional = predicted[0::2], predicted[1::2]
            predicted = unconditional + settings.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return [*decode_latents(base, latents)]
