"""Rendering: images do not depend on their batch, and equal those of diffusers' own pipelines."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from persres.core.base_model import BaseModel, load_base_model
from persres.core.concept import derive_seed
from persres.core.errors import ConceptError
from persres.core.identifier_token import identifier_embedding
from persres.core.residual import Residual, initialize_residual
from persres.core.sampling.lag_sampling import RenderRequest, make_scheduler, render
from persres.core.sampling.settings import SamplingSettings, Variant

from ...support.merged_weights import merge_into_base

SETTINGS = SamplingSettings(steps=3, guidance_scale=4.0, batch_size=4)


def make_request(
    concept_id: str, variant: Variant = "lag", template: str = "a {concept} on grass", seed: int = 7
) -> RenderRequest:
    return RenderRequest(concept_id, "mug", template, 0, 0, variant, seed)


@pytest.fixture
def residuals(base: BaseModel) -> dict[str, Residual]:
    """Strong residuals, each with its own V*, so that any mix-up of concepts changes the pixels."""
    rng = torch.Generator().manual_seed(5)
    made = {}
    for seed, concept_id in enumerate(("one", "two", "three")):
        plain = initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.5, seed=seed)
        v = identifier_embedding(base, "sks") + torch.randn(32, generator=rng)
        made[concept_id] = dataclasses.replace(plain, identifier=v)
    return made


def render_images(base: BaseModel, residuals, requests, settings: SamplingSettings = SETTINGS) -> list[np.ndarray]:
    return [one.image for one in render(base, residuals, requests, settings, identifier_token="sks")]


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_image_does_not_depend_on_neighbours_slot_or_batch(base: BaseModel, residuals, scheduler):
    settings = SETTINGS.model_copy(update={"scheduler": scheduler})
    alone = render_images(base, residuals, [make_request("one")], settings)[0]
    others = [
        make_request("two", "residual", seed=1),
        make_request("three", seed=2),
        make_request("two", "base", "a red {concept}"),
    ]
    assert np.array_equal(render_images(base, residuals, [*others, make_request("one")], settings)[3], alone)
    assert np.array_equal(render_images(base, residuals, [*others, *others, make_request("one")], settings)[6], alone)


def test_image_of_another_batch_size_agrees_within_one_level(base: BaseModel, residuals):
    requests = [make_request("one"), make_request("two", "residual")]
    for one, other in zip(
        render_images(base, residuals, requests),
        render_images(base, residuals, requests, SETTINGS.model_copy(update={"batch_size": 1})),
        strict=True,
    ):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_variants_of_a_zero_residual_equal_the_base_model(base: BaseModel):
    """Law 2 through the whole sampler: zero residual, untrained V* and equal prompts give equal pixels."""
    zero = Residual(
        {layer.name: torch.zeros(layer.width, 2) for layer in base.target_layers},
        {layer.name: torch.zeros(2, layer.width) for layer in base.target_layers},
    )
    requests = [
        RenderRequest("zero", "sks mug", "a {concept} on grass", 0, 0, "base", 7),
        make_request("zero", "residual"),
        make_request("zero", "lag"),
    ]
    plain, residual, lag = render_images(base, {"zero": zero}, requests)
    assert np.array_equal(plain, residual) and np.array_equal(plain, lag)


def test_variants_differ(base: BaseModel, residuals):
    plain, residual, lag = render_images(base, residuals, [make_request("one", v) for v in ("base", "residual", "lag")])
    assert not np.array_equal(plain, residual)
    assert not np.array_equal(residual, lag)


def test_residual_variant_equals_the_pipeline_with_merged_weights(tiny_folder, sd1: BaseModel):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    check_equals_pipeline_with_merged_weights(pipeline, sd1)


def test_residual_variant_equals_the_xl_pipeline_with_merged_weights(sdxl_folder, sdxl: BaseModel):
    """Both encoders, the pooled state, the size and the zeroed negative prompt are those of diffusers."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    check_equals_pipeline_with_merged_weights(pipeline, sdxl)


def check_equals_pipeline_with_merged_weights(pipeline, base: BaseModel) -> None:
    """Merge A B into the weights of the pipeline's UNet, and compare its image with ours."""
    residual = initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.2, seed=1)
    ours = render_images(base, {"one": residual}, [make_request("one", "residual")])[0]
    pipeline.set_progress_bar_config(disable=True)
    merge_into_base(dataclasses.replace(base, unet=pipeline.unet), residual)
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))[None]
    theirs = pipeline(
        "a sks mug on grass", num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="np"
    ).images[0]
    assert np.abs(ours / 255.0 - theirs).max() < 1.5 / 255


def test_xl_masks_come_from_all_blocks_of_a_transformer(sdxl: BaseModel):
    residual = initialize_residual(sdxl.target_layers, rank_fraction=0.1, a_std=0.5, seed=1)
    lag, everywhere = render_images(sdxl, {"one": residual}, [make_request("one"), make_request("one", "residual")])
    again = render_images(sdxl, {"one": residual}, [make_request("one", "base"), make_request("one")])[1]
    assert not np.array_equal(lag, everywhere) and np.array_equal(lag, again)


def test_guidance_scale_of_one_has_no_unconditional_half(base: BaseModel, residuals):
    settings = SETTINGS.model_copy(update={"guidance_scale": 1.0})
    plain, lag = render_images(base, residuals, [make_request("one", "base"), make_request("one")], settings)
    assert not np.array_equal(plain, lag)


def test_unconditional_setting_changes_the_image(base: BaseModel, residuals):
    settings = SETTINGS.model_copy(update={"unconditional": "base"})
    assert not np.array_equal(
        render_images(base, residuals, [make_request("one")])[0],
        render_images(base, residuals, [make_request("one")], settings)[0],
    )


def test_image_has_the_requested_size_and_depends_on_the_seed(base: BaseModel, residuals):
    settings = SETTINGS.model_copy(update={"height": 32, "width": 16})
    one, other = render_images(base, residuals, [make_request("one", seed=1), make_request("one", seed=2)], settings)
    assert one.shape == (32, 16, 3) and one.dtype == np.uint8
    assert not np.array_equal(one, other)


def test_image_that_is_not_finite_is_a_fault_and_its_neighbour_is_sound(base: BaseModel, residuals):
    huge = {name: factor * float("inf") for name, factor in residuals["two"].a.items()}
    broken = {**residuals, "two": dataclasses.replace(residuals["two"], a=huge)}
    one, two = render(
        base, broken, [make_request("one"), make_request("two", "residual")], SETTINGS, identifier_token="sks"
    )
    assert one.fault is None and one.remedy is None and two.remedy is None
    assert two.fault == (
        "an image that is not finite, and with guidance scale 2.5 and another seed an image that is not finite"
    )
    assert np.array_equal(one.image, render_images(base, residuals, [make_request("one")])[0])


@pytest.mark.parametrize(("bias", "fault"), [(0.0, "an image of one colour"), (-1.0, "a black image")])
def test_image_of_one_colour_is_a_fault(base: BaseModel, residuals, bias: float, fault: str):
    dead = dataclasses.replace(base, vae=copy.deepcopy(base.vae))
    with torch.no_grad():
        dead.vae.decoder.conv_out.weight.zero_()
        dead.vae.decoder.conv_out.bias.fill_(bias)
    [one] = render(dead, residuals, [make_request("one")], SETTINGS, identifier_token="sks")
    assert one.fault == f"{fault}, and with guidance scale 2.5 and another seed {fault}"


def test_decoder_output_of_nan_is_a_fault(base: BaseModel, residuals):
    broken = dataclasses.replace(base, vae=copy.deepcopy(base.vae))
    with torch.no_grad():
        broken.vae.decoder.conv_out.weight[0, 0, 0, 0] = float("nan")
    [one] = render(broken, residuals, [make_request("one")], SETTINGS, identifier_token="sks")
    assert one.fault is not None and one.fault.startswith("an image that is not finite")


@pytest.fixture(scope="module")
def overflowing(tiny_folder: Path) -> BaseModel:
    """A UNet in float16 with outputs so large that strong guidance overflows with a residual."""
    half = load_base_model(tiny_folder, name="tiny", revision="half", dtype=torch.float16)
    with torch.no_grad():
        half.unet.conv_out.weight *= 2000
    return half


OVERFLOW = SETTINGS.model_copy(update={"guidance_scale": 50.0})
"""The residual's images overflow at guidance 50 and not at that of the retry, 25.5; the base model's at neither."""


def test_image_that_overflows_is_retried_with_less_guidance(overflowing: BaseModel):
    strong = {
        name: initialize_residual(overflowing.target_layers, rank_fraction=0.1, a_std=5.0, seed=3)
        for name in ("one", "two")
    }
    requests = [make_request("one", "base"), make_request("one", "residual"), make_request("two", "base", seed=9)]
    plain, remedied, other = render(overflowing, strong, requests, OVERFLOW, identifier_token="sks")
    assert plain.remedy is None and other.remedy is None and plain.guidance_scale == 50.0
    assert remedied.fault is None and remedied.guidance_scale == 25.5
    assert (
        remedied.remedy == "guidance scale 25.5 and another seed, because at first it was an image that is not finite"
    )
    assert remedied.request == dataclasses.replace(requests[1], seed=derive_seed(7, "one", "again"))
    # The image can be rendered again from its request and guidance scale, without the others.
    retry_settings = OVERFLOW.model_copy(update={"guidance_scale": remedied.guidance_scale})
    [again] = render(overflowing, strong, [remedied.request], retry_settings, identifier_token="sks")
    assert np.array_equal(again.image, remedied.image) and again.remedy is None


def test_steps_of_retries_are_reported(overflowing: BaseModel):
    strong = {"one": initialize_residual(overflowing.target_layers, rank_fraction=0.1, a_std=5.0, seed=3)}
    seen: list[int] = []
    requests = [make_request("one", "residual"), *[make_request("one", "base")] * 4]
    render(overflowing, strong, requests, OVERFLOW, identifier_token="sks", on_step=seen.append)
    assert seen == list(range(1, 3 * SETTINGS.steps + 1))


def test_prompt_that_is_too_long_is_refused_with_the_fix(base: BaseModel, residuals):
    with pytest.raises(ConceptError, match=r"has 19 tokens, the base model reads 16.*shorten it by 3 tokens"):
        render_images(base, residuals, [make_request("one", template="a {concept} " + "on grass " * 7)])


def test_steps_are_reported_over_all_batches(base: BaseModel, residuals):
    seen: list[int] = []
    render(base, residuals, [make_request("one")] * 5, SETTINGS, identifier_token="sks", on_step=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_scheduler_keeps_the_base_models_noise_schedule(sd2: BaseModel):
    scheduler = make_scheduler(sd2, SETTINGS)
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.config["rescale_betas_zero_snr"] and int(scheduler.timesteps[0]) == 999
