"""Exported files: diffusers loads them and renders the images of our residual variant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load

from persres.core.base_model import BaseModel, TargetLayer, load_xl_layers_per_block
from persres.core.errors import PersresError
from persres.core.identifier_token import identifier_embedding
from persres.core.lora_export import (
    DIFFUSERS_FILE,
    TEXTUAL_INVERSION_FILE,
    diffusers_lora,
    kohya_lora,
    textual_inversion,
)
from persres.core.residual import Residual, initialize_residual
from persres.core.sampling.lag_sampling import RenderRequest, render
from persres.core.sampling.settings import SamplingSettings

SETTINGS = SamplingSettings(steps=3, guidance_scale=4.0, batch_size=1)


@pytest.fixture
def residual(sd1: BaseModel) -> Residual:
    """A residual with two ranks, 10 and 12, so that a common scale would change the image."""
    plain = initialize_residual(sd1.target_layers, rank_fraction=0.3, a_std=0.3, seed=1)
    v = identifier_embedding(sd1, "sks") + torch.randn(32, generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(plain, identifier=v)


def render_ours(base: BaseModel, residual: Residual) -> np.ndarray:
    request = RenderRequest("one", "mug", "a {concept} on grass", 0, 0, "residual", 7)
    return render(base, {"one": residual}, [request], SETTINGS, identifier_token="sks")[0].image


def render_theirs(folder: Path, weights: Path, prompt: str) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    if (weights / TEXTUAL_INVERSION_FILE).exists():
        pipeline.load_textual_inversion(weights, weight_name=TEXTUAL_INVERSION_FILE)
    pipeline.load_lora_weights(weights, weight_name=DIFFUSERS_FILE)
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))[None]
    image = pipeline(prompt, num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="np").images[0]
    return (image * 255).round().astype(int)


@pytest.mark.parametrize("file_format", ["diffusers", "kohya"])
def test_diffusers_pipeline_renders_our_image_from_the_files(
    sd1: BaseModel, tiny_folder: Path, residual: Residual, tmp_path, file_format
):
    lora = diffusers_lora if file_format == "diffusers" else kohya_lora
    (tmp_path / DIFFUSERS_FILE).write_bytes(lora(residual, sd1.target_layers))
    (tmp_path / TEXTUAL_INVERSION_FILE).write_bytes(textual_inversion(residual, "<mug-1>"))
    difference = np.abs(
        render_ours(sd1, residual).astype(int) - render_theirs(tiny_folder, tmp_path, "a <mug-1> mug on grass")
    )
    assert difference.max() <= 1


def test_kohya_file_has_its_names_and_alpha_equal_to_rank(sd1: BaseModel, residual: Residual):
    weights = load(kohya_lora(residual, sd1.target_layers, title="mug-1"))
    key = "lora_unet_down_blocks_0_attentions_0_proj_out"
    rank = residual.ranks["down_blocks.0.attentions.0.proj_out"]
    assert weights[f"{key}.lora_down.weight"].shape == (rank, 32, 1, 1)
    assert weights[f"{key}.lora_up.weight"].shape == (32, rank, 1, 1)
    assert weights[f"{key}.alpha"].item() == rank and len(weights) == 3 * len(sd1.target_layers)


@pytest.mark.parametrize("file_format", ["diffusers", "kohya"])
def test_xl_pipeline_renders_our_image_from_the_files(sdxl: BaseModel, sdxl_folder: Path, tmp_path, file_format):
    residual = initialize_residual(sdxl.target_layers, rank_fraction=0.3, a_std=0.3, seed=1)
    layers = load_xl_layers_per_block(sdxl_folder)
    blob = (
        diffusers_lora(residual, sdxl.target_layers)
        if file_format == "diffusers"
        else kohya_lora(residual, sdxl.target_layers, xl_layers_per_block=layers)
    )
    (tmp_path / DIFFUSERS_FILE).write_bytes(blob)
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path, weight_name=DIFFUSERS_FILE)
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))[None]
    image = pipeline(
        "a sks mug on grass", num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="np"
    ).images[0]
    assert np.abs(render_ours(sdxl, residual).astype(int) - (image * 255).round().astype(int)).max() <= 1


def test_kohya_file_for_xl_has_the_names_of_its_original_code(sdxl: BaseModel):
    names = (
        "down_blocks.1.attentions.0",
        "down_blocks.2.attentions.1",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.2",
    )
    layers = [TargetLayer(f"{name}.proj_out", 32, "linear") for name in names]
    residual = initialize_residual(layers, rank_fraction=0.1, a_std=0.3, seed=1)
    keys = {key.split(".")[0] for key in load(kohya_lora(residual, layers, xl_layers_per_block=2))}
    blocks = ("input_blocks_4_1", "input_blocks_8_1", "middle_block_1", "output_blocks_5_1")
    assert keys == {f"lora_unet_{block}_proj_out" for block in blocks}


def test_linear_layers_keep_two_dimensions(sd2: BaseModel):
    residual = initialize_residual(sd2.target_layers, rank_fraction=0.1, a_std=0.3, seed=1)
    assert {tensor.ndim for tensor in load(diffusers_lora(residual, sd2.target_layers)).values()} == {2}


def test_textual_inversion_of_an_untrained_identifier_is_refused(sd1: BaseModel, residual: Residual):
    with pytest.raises(PersresError, match=r"V\* was not trained"):
        textual_inversion(dataclasses.replace(residual, identifier=None), "<mug-1>")
