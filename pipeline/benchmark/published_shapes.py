"""Stable Diffusion's published architectures with random weights: speed depends on shapes, not on weights.

The shapes are those of the published configurations of stable-diffusion-v1-5, stable-diffusion-2-1 (768 pixels,
v-prediction) and stable-diffusion-xl-base-1.0. The tokenizer is Spriteworld's, padded to the published 77 tokens, since
theirs is not part of this package; the text encoders do the same work on other ids.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ...core.base_model import BaseModel
from ..spriteworld import base_model_path

PublishedShape = Literal["sd1", "sd2", "sdxl"]
PUBLISHED_SHAPES: tuple[PublishedShape, ...] = get_args(PublishedShape)

TOKENS = 77
_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_UNET_SD: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "layers_per_block": 2,
}
UNETS: dict[PublishedShape, dict[str, Any]] = {
    "sd1": {**_UNET_SD, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        **_UNET_SD,
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
        "layers_per_block": 2,
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
VAES: dict[PublishedShape, dict[str, Any]] = {
    "sd1": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    "sd2": {**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
    "sdxl": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
TEXT_ENCODERS: dict[PublishedShape, dict[str, Any]] = {
    "sd1": _CLIP_L,
    "sd2": {  # OpenCLIP ViT-H/14 without its last layer
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "sdxl": _CLIP_L,
}
SDXL_SECOND_TEXT_ENCODER: dict[str, Any] = {  # OpenCLIP ViT-bigG/14, with its projection
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def unet_of(shape: PublishedShape) -> UNet2DConditionModel:
    """Build the UNet on torch's default device."""
    return UNet2DConditionModel(in_channels=4, out_channels=4, **UNETS[shape])


def vae_of(shape: PublishedShape) -> AutoencoderKL:
    return AutoencoderKL(in_channels=3, out_channels=3, **VAES[shape])


def text_config_of(values: dict[str, Any]) -> CLIPTextConfig:
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # Spriteworld's tokenizer
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **special, **values)


def build_published(shape: PublishedShape, *, device: torch.device | str, dtype: torch.dtype) -> BaseModel:
    """Build a frozen base model of a published shape in `dtype`, with the VAE in float32, as `load_base_model` does."""

    def part(module: Any, part_dtype: torch.dtype) -> Any:
        return torch.nn.Module.to(module, dtype=part_dtype).eval().requires_grad_(False)

    with torch.device(device):
        unet, vae = part(unet_of(shape), dtype), part(vae_of(shape), torch.float32)
        text_encoder = part(CLIPTextModel(text_config_of(TEXT_ENCODERS[shape])), dtype)
        second = CLIPTextModelWithProjection(text_config_of(SDXL_SECOND_TEXT_ENCODER)) if shape == "sdxl" else None
    unet.to(memory_format=torch.channels_last)  # as in `load_base_model`
    tokenizer = CLIPTokenizer.from_pretrained(
        base_model_path(), subfolder="tokenizer", local_files_only=True, model_max_length=TOKENS
    )
    prediction_type = "v_prediction" if shape == "sd2" else "epsilon"
    schedule = cast(Any, DDPMScheduler(**_SCHEDULE, prediction_type=prediction_type))
    config = dict(schedule.config)
    parts = (tokenizer, text_encoder, vae, unet, schedule, config)
    if second is None:
        return BaseModel(shape, "random weights", *parts)
    return BaseModel(shape, "random weights", *parts, tokenizer_2=tokenizer, text_encoder_2=part(second, dtype))
