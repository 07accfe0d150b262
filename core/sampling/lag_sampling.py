"""Render prompts with personalized residuals, localized where cross-attention finds the concept (LAG).

Shapes: I images in the tensor batch (`batch_size`, always: a short batch is padded), S = 2 I UNet samples with guidance
(unconditional and conditional half of every image side by side), S = I without; C, h, w are the latent's.

    eps_hat = eps_u + s (eps_c - eps_u),  both from UNet passes in which   f_i = W_i x + M_i * (A_i B_i x)

Images of different concepts, prompts and variants share a batch: each has its own residual, V* and mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from ..base_model import BaseModel
from ..batching import batches
from ..concept import derive_seed, expand_template
from ..identifier_token import (
    TokenizedPrompt,
    concept_token_mask,
    identifier_embedding,
    tokenize,
    tokenize_concept_prompt,
)
from ..latents import decode_to_tensor, tensor_to_pixels
from ..numerical_health import picture_fault
from ..residual import Residual
from ..residual_bank import ResidualBank, attached
from ..text_conditioning import TextConditioning, encode_negative, encode_text
from .attention_localization import ConceptLocalization, observed
from .settings import SamplingSettings, Variant


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One image to make.

    Attributes:
        template: the prompt with `{concept}`; the base variant reads it with the macro class alone.
        seed: of the image's initial noise.
    """

    concept_id: str
    macro_class: str
    template: str
    prompt_index: int
    image_index: int
    variant: Variant
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """One image: H x W x 3 uint8, what asked for it, and the prompt as the model read it.

    Attributes:
        guidance_scale: what it was made with; where `remedy` is set, this and the seed are not what was asked for.
        fault: why the pixels mean nothing (not finite, black, of one colour), or None. It was then made twice.
        remedy: what was changed for a second try, and why; None: the first one was sound.
    """

    request: RenderRequest
    prompt: str
    image: np.ndarray
    guidance_scale: float
    fault: str | None = None
    remedy: str | None = None


def render(
    base: BaseModel,
    residuals: Mapping[str, Residual],
    requests: Sequence[RenderRequest],
    settings: SamplingSettings,
    *,
    identifier_token: str,
    on_step: Callable[[int], None] | None = None,
) -> list[Rendering]:
    """Render all requests, in their order, in full batches of mixed concepts.

    An image that is not finite, black or of one colour is made once more, from another seed and with half as much
    guidance; its `remedy` says so. If that is no better its `fault` tells both.

    Args:
        residuals: by concept id; every request's concept must be here unless its variant is "base".
        on_step: called with the number of denoising steps done over all batches, of second tries too.

    Raises:
        ConceptError: a prompt does not fit the tokenizer.
        KeyError: a request's concept has no residual.
    """
    renderings = _render_all(base, residuals, requests, settings, identifier_token, on_step)
    faulty = [place for place, rendering in enumerate(renderings) if rendering.fault]
    if faulty:
        done = settings.steps * math.ceil(len(requests) / settings.batch_size)
        careful = settings.model_copy(update={"guidance_scale": 1 + (settings.guidance_scale - 1) / 2})
        again = [_with_another_seed(renderings[place].request) for place in faulty]
        report = (lambda step: on_step(done + step)) if on_step else None
        second = _render_all(base, residuals, again, careful, identifier_token, report)
        for place, rendering in zip(faulty, second, strict=True):
            renderings[place] = _second_try(renderings[place], rendering)
    return renderings


def _with_another_seed(request: RenderRequest) -> RenderRequest:
    return replace(request, seed=derive_seed(request.seed, request.concept_id, "again"))


def _second_try(first: Rendering, second: Rendering) -> Rendering:
    changed = f"guidance scale {second.guidance_scale:g} and another seed"
    if second.fault:
        return replace(second, fault=f"{first.fault}, and with {changed} {second.fault}")
    return replace(second, remedy=f"{changed}, because at first it was {first.fault}")


def _render_all(
    base: BaseModel,
    residuals: Mapping[str, Residual],
    requests: Sequence[RenderRequest],
    settings: SamplingSettings,
    identifier_token: str,
    on_step: Callable[[int], None] | None,
) -> list[Rendering]:
    renderings: list[Rendering] = []
    for number, batch in enumerate(batches(requests, settings.batch_size)):

        def report(step: int, done: int = number * settings.steps) -> None:
            if on_step:
                on_step(done + step)

        renderings += _render_batch(base, residuals, batch, settings, identifier_token, report)
    return renderings


@torch.inference_mode()
def _render_batch(
    base: BaseModel,
    residuals: Mapping[str, Residual],
    batch: Sequence[RenderRequest],
    settings: SamplingSettings,
    identifier_token: str,
    on_step: Callable[[int], None],
) -> list[Rendering]:
    padded = [*batch, *[batch[-1]] * (settings.batch_size - len(batch))]
    prompts = [tokenize_request(base, request, identifier_token) for request in padded]
    guided = settings.guidance_scale > 1
    text = _conditioning(base, residuals, padded, prompts, settings, identifier_token)
    bank = _bank(base, residuals, padded)
    localization = ConceptLocalization(
        concept_tokens=_with_unconditional(concept_token_mask(prompts), guided).to(base.device),
        localized=torch.tensor([request.variant == "lag" for request in padded], device=base.device),
        unconditional=settings.unconditional,
        quantile=settings.mask_quantile,
        pairs=2 if guided else 1,
    )
    scheduler = make_scheduler(base, settings)
    latents = _initial_noise(base, padded, settings) * scheduler.init_noise_sigma
    height, width = _size(base, settings)
    conditioning = text.unet_arguments(len(latents) * localization.pairs, height, width)
    # Observed also when no image of this batch is localized: diffusers' own processors round differently, and an
    # image's bits must not depend on what its neighbours ask for.
    with observed(base, localization), attached(base, bank, localization):
        for step, timestep in enumerate(scheduler.timesteps):
            model_input = scheduler.scale_model_input(latents, timestep).to(base.dtype)
            if guided:
                model_input = model_input.repeat_interleave(2, dim=0)
            predicted = base.unet(model_input, timestep, **conditioning, return_dict=False)[0].float()
            if guided:
                unconditional, conditional = predicted[0::2], predicted[1::2]
                predicted = unconditional + settings.guidance_scale * (conditional - unconditional)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            on_step(step + 1)
    decoded = decode_to_tensor(base, _only_finite(latents))
    finite = _all_finite(latents) & _all_finite(decoded)
    return [
        Rendering(request, prompt.text, image, settings.guidance_scale, picture_fault(image, finite=ok))
        for request, prompt, image, ok in zip(
            batch, prompts, tensor_to_pixels(_only_finite(decoded)), finite.tolist(), strict=False
        )
    ]


def _all_finite(images: Tensor) -> Tensor:
    """[I, …] -> [I], whether all values of an image are finite."""
    return torch.isfinite(images).flatten(1).all(dim=1)


def _only_finite(images: Tensor) -> Tensor:
    return torch.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)


def tokenize_request(base: BaseModel, request: RenderRequest, identifier_token: str) -> TokenizedPrompt:
    """The prompt of one request: "a V* mug on grass", or for the base variant "a mug on grass"."""
    if request.variant == "base":
        return tokenize(base.tokenizer, expand_template(request.template, None, request.macro_class))
    return tokenize_concept_prompt(base.tokenizer, request.template, identifier_token, request.macro_class)


def make_scheduler(base: BaseModel, settings: SamplingSettings) -> Any:
    """A fresh diffusers scheduler with the base model's own noise schedule, set to `settings.steps`."""
    classes = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    config = {key: value for key, value in base.scheduler_config.items() if not key.startswith("_")}
    scheduler = classes[settings.scheduler].from_config(config)
    scheduler.set_timesteps(settings.steps, device=base.device)
    return scheduler


def _conditioning(
    base: BaseModel,
    residuals: Mapping[str, Residual],
    requests: Sequence[RenderRequest],
    prompts: Sequence[TokenizedPrompt],
    settings: SamplingSettings,
    identifier_token: str,
) -> TextConditioning:
    """S prompts, every image with its own concept's V*."""
    untrained = identifier_embedding(base, identifier_token)
    learned = [residuals[request.concept_id].identifier if request.variant != "base" else None for request in requests]
    identifiers = torch.stack([untrained if one is None else one.to(base.device) for one in learned])
    conditional = encode_text(base, prompts, identifiers)
    if settings.guidance_scale <= 1:
        return conditional
    return encode_negative(base, settings.negative_prompt).paired_with(conditional)


def _bank(base: BaseModel, residuals: Mapping[str, Residual], requests: Sequence[RenderRequest]) -> ResidualBank:
    """One group an image; each concept's factors travel to the device once, and the base variant is a zero residual."""
    wanted = list(dict.fromkeys(request.concept_id for request in requests if request.variant != "base"))
    stacked = ResidualBank.stack([None, *(residuals[concept_id] for concept_id in wanted)], base)
    slots = [0 if request.variant == "base" else 1 + wanted.index(request.concept_id) for request in requests]
    return stacked.select(torch.tensor(slots, device=base.device)).to(base.dtype)


def _with_unconditional(mask: Tensor, guided: bool) -> Tensor:
    return torch.stack((torch.zeros_like(mask), mask), dim=1).flatten(0, 1) if guided else mask


def _size(base: BaseModel, settings: SamplingSettings) -> tuple[int, int]:
    """Height and width of the images, in pixels."""
    return settings.height or base.resolution, settings.width or base.resolution


def _initial_noise(base: BaseModel, requests: Sequence[RenderRequest], settings: SamplingSettings) -> Tensor:
    """[I, C, h, w], every image's noise from its own seed; drawn on the CPU, so the same on every device."""
    height, width = _size(base, settings)
    shape = (base.latent_channels, height // base.pixels_per_latent, width // base.pixels_per_latent)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
    return torch.stack(noise).to(base.device)
