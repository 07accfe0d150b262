"""The peer's rendering: diffusers' StableDiffusionPipeline or StableDiffusionXLPipeline, one concept after another.

For every concept the pipeline loads its LoRA file, renders its whole prompt set in one call, and unloads the LoRA. A
pipeline applies one LoRA to a whole batch, so a batch cannot be larger than a prompt set. Guidance, steps, scheduler
and initial noise are ours; attention is the pipeline's default, and all parts have one number format, as
`from_pretrained(..., torch_dtype=...)` loads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from ...core.base_model import BaseModel
from ...core.sampling.lag_sampling import RenderRequest, make_scheduler, tokenize_request
from ...core.sampling.settings import SamplingSettings
from .dreambooth_lora_peer import require_peft
from .shared_weights import copy_with_shared_weights

AnyPipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


def load_pipeline(base: BaseModel, settings: SamplingSettings) -> AnyPipeline:
    """Build a pipeline with the base model's weights and a UNet of its own, into which LoRAs can be loaded.

    Raises:
        InvalidInput: peft is not installed.
    """
    require_peft()
    parts: dict[str, Any] = {
        "vae": base.vae if base.vae.dtype == base.dtype else copy_with_shared_weights(base.vae, base.dtype),
        "text_encoder": base.text_encoder,
        "tokenizer": base.tokenizer,
        "unet": copy_with_shared_weights(base.unet),
        "scheduler": make_scheduler(base, settings),
    }
    if base.text_encoder_2 is None:
        unchecked: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **unchecked)
    else:
        second: Any = {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2}
        pipeline = StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render_peer(
    pipeline: AnyPipeline,
    base: BaseModel,
    lora_files: Mapping[str, Path],
    requests: Sequence[RenderRequest],
    settings: SamplingSettings,
    *,
    identifier_token: str,
) -> dict[RenderRequest, np.ndarray]:
    """Render every request, concept by concept. Each image is H x W x 3 uint8."""
    images: dict[RenderRequest, np.ndarray] = {}
    for concept_id, lora_file in lora_files.items():
        wanted = [request for request in requests if request.concept_id == concept_id]
        pipeline.load_lora_weights(str(lora_file.parent), weight_name=lora_file.name)
        done: Any = pipeline(
            prompt=[tokenize_request(base, request, identifier_token).text for request in wanted],
            negative_prompt=[settings.negative_prompt] * len(wanted) if settings.negative_prompt else None,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height or base.resolution,
            width=settings.width or base.resolution,
            generator=[torch.Generator().manual_seed(request.seed) for request in wanted],
        )
        pipeline.unload_lora_weights()
        images |= {request: np.asarray(image) for request, image in zip(wanted, done.images, strict=True)}
    return images
