"""Base models of Stable Diffusion 1.x, 2.x and XL shape, small enough for a test: random weights, the real classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from persres.core.base_model import BaseModel, load_base_model

Shape = Literal["sd1", "sd2", "sdxl"]
LENGTH = 16
WORDS = tuple(
    "a an photo of on in the sks zwx mug dog robot fish car grass sand snow red blue two handled watering can".split()  # noqa: SIM905
)


def write_tiny_pipeline(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Save a pipeline folder: 16 x 16 images, 8 x 8 latents, three target layers.

    "sd1": convolutional proj_out and epsilon; "sd2": linear proj_out and v-prediction; "sdxl": linear proj_out,
    epsilon, two text encoders, and two blocks in every transformer.
    """
    torch.manual_seed(seed)
    linear, two_encoders = shape != "sd1", shape == "sdxl"
    xl = {
        "transformer_layers_per_block": 2, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
    }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 40),
        layers_per_block=1,
        cross_attention_dim=64 if two_encoders else 32,
        attention_head_dim=(2, 4) if linear else 2,
        norm_num_groups=8,
        use_linear_projection=linear,
        **(xl if two_encoders else {}),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=24,
    )
    text_encoder = CLIPTextModel(config)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if shape == "sd2" else "epsilon",
        timestep_spacing="trailing" if shape == "sd2" else "leading",
        rescale_betas_zero_snr=shape == "sd2",
    )
    if two_encoders:
        text_encoder_2 = CLIPTextModelWithProjection(config)
        StableDiffusionXLPipeline(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=scheduler,
            add_watermarker=False,
        ).save_pretrained(folder)
        return folder
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> CLIPTokenizer:
    """A tokenizer with one token for each of `WORDS`; other words become one token a letter."""
    letters = sorted({letter for word in WORDS for letter in word} | set("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merged = pieces[-2] + pieces[-1]  # from the end, so that it merges no prefix of another word
            if (pieces[-2], pieces[-1]) not in merges:
                merges.append((pieces[-2], pieces[-1]))
            if merged not in vocabulary:
                vocabulary.append(merged)
            pieces[-2:] = [merged]
    table = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=table, merges=merges, unk_token="<|endoftext|>", model_max_length=LENGTH)


def load_tiny(folder: Path) -> BaseModel:
    """Load a folder of `write_tiny_pipeline` on the CPU."""
    return load_base_model(folder, name="tiny", revision=json.dumps(folder.name))


def write_tiny_models(folder: Path) -> dict[str, str]:
    """Save a base model of "sd1" shape and a scorer; returns the run spec's settings that name them."""
    return {
        "base_model": str(write_tiny_pipeline(folder / "base", "sd1")),
        "scorer": str(write_tiny_scorer(folder / "scorer")),
    }


def write_tiny_scorer(folder: Path, seed: int = 0) -> Path:
    """Save a CLIPModel folder with its tokenizer and image processor; random weights, 16 x 16 images."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder
