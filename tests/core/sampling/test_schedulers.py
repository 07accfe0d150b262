"""Schedulers are set up as by diffusers' own pipelines of the same folder, whatever its configuration leaves out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from persres.core.base_model import BaseModel, load_base_model
from persres.core.sampling.lag_sampling import RenderRequest, render
from persres.core.sampling.schedulers import make_scheduler
from persres.core.sampling.settings import SamplingSettings

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")

CLASSES = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
PUBLISHED: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
"""The keys of Stable Diffusion 1.5's configuration, and two that newer ones have."""

CHANGES: dict[str, dict[str, Any]] = {
    "as published": {},
    "clip_sample": {"clip_sample": True},
    "steps_offset 0": {"steps_offset": 0},
    "steps_offset 3": {"steps_offset": 3},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "v_prediction with zero SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "set_alpha_to_one": {"set_alpha_to_one": True},
    "Karras": {"use_karras_sigmas": True},
    "DDIM": {"_class_name": "DDIMScheduler"},
    "DPM++": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
    "Euler": {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear"},
    "nothing given": dict.fromkeys(PUBLISHED),
} | {f"no {key}": {key: None} for key in PUBLISHED}


def configuration(change: str) -> dict[str, Any]:
    """Return the published keys with one change; a key that is changed to None is left out."""
    changed = PUBLISHED | CHANGES[change]
    return {key: value for key, value in changed.items() if value is not None or key not in CHANGES[change]}


def write_configuration(pipeline: Path, config: dict[str, Any], out: Path) -> Path:
    """Copy a pipeline's folder with another scheduler configuration."""
    shutil.copytree(pipeline, out)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_scheduler_equals_that_of_diffusers_pipeline(
    request: pytest.FixtureRequest, tmp_path: Path, shape: str, scheduler: str, change: str
):
    base: BaseModel = request.getfixturevalue(shape)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(configuration(change)))
    read = dict(DDPMScheduler.from_pretrained(tmp_path).config)
    ours = make_scheduler(
        dataclasses.replace(base, scheduler_config=read),
        SamplingSettings(scheduler=scheduler, steps=20),  # type: ignore[arg-type]
    )
    own = CLASSES[scheduler].from_pretrained(tmp_path)
    parts = {"vae": base.vae, "unet": base.unet, "tokenizer": base.tokenizer, "text_encoder": base.text_encoder}
    if shape == "sdxl":
        second = {"tokenizer_2": base.tokenizer_2, "text_encoder_2": base.text_encoder_2}
        theirs = StableDiffusionXLPipeline(**parts, **second, scheduler=own, add_watermarker=False).scheduler
    else:
        theirs = StableDiffusionPipeline(
            **parts, scheduler=own, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).scheduler
    theirs.set_timesteps(20)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    rng = torch.Generator().manual_seed(0)
    ours_latents = their_latents = torch.randn(1, 4, 8, 8, generator=rng)
    for timestep in theirs.timesteps:
        predicted = torch.randn(1, 4, 8, 8, generator=rng)
        ours_latents = ours.step(predicted, timestep, ours_latents, return_dict=False)[0]
        their_latents = theirs.step(predicted, timestep, their_latents, return_dict=False)[0]
    assert torch.equal(ours_latents, their_latents)


@pytest.mark.parametrize("scheduler", CLASSES)
@pytest.mark.parametrize("change", ["no clip_sample", "steps_offset 0", "no timestep_spacing", "nothing given"])
def test_image_equals_that_of_diffusers_pipeline(tiny_folder: Path, tmp_path: Path, scheduler: str, change: str):
    folder = write_configuration(tiny_folder, configuration(change), tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, scheduler=CLASSES[scheduler].from_pretrained(folder, subfolder="scheduler"), safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))[None]
    theirs = pipeline("a mug on grass", num_inference_steps=5, guidance_scale=4.0, latents=noise, output_type="np")
    base = load_base_model(folder, name="tiny", revision="1")
    settings = SamplingSettings(scheduler=scheduler, steps=5, guidance_scale=4.0, batch_size=1)  # type: ignore[arg-type]
    [ours] = render(
        base,
        {},
        [RenderRequest("one", "mug", "a {concept} on grass", 0, 0, "base", 7)],
        settings,
        identifier_token="sks",
    )
    assert np.abs(ours.image / 255.0 - theirs.images[0]).max() < 1.5 / 255  # type: ignore[union-attr]
