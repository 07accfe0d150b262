"""Localized attention-guided (LAG) sampling: render prompts with residuals that act where attention finds the concept.

    eps_hat = eps_u + s (eps_c - eps_u),  both from a UNet pass in which   f_i = W_i x + M_i * (A_i B_i x)

Images of different concepts, prompts and variants share a batch: each has its own residual, V* and mask.

Shapes: I images in the tensor batch (always `sampling.batch_size`: a short batch is padded); S UNet samples, S = 2 I
with guidance (the unconditional sample of each image before its conditional one), S = I without; L tokens of a prompt;
C, h, w the latent's channels, height and width; H, W the image's size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
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
from ..numerical_checks import image_fault
from ..residual import Residual
from ..residual_bank import ResidualBank, attached
from ..text_conditioning import TextConditioning, encode_negative, encode_text
from .attention_localization import ConceptLocalization, attention_observed
from .schedulers import make_scheduler
from .settings import SamplingSettings, Variant


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One image to render.

    Attributes:
        template: the prompt with `{concept}`; for the base variant it is replaced by the macro class alone.
        seed: the seed of the initial noise.
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
    """One image.

    Attributes:
        request: its request; if `remedy` is set, with the seed of the retry.
        prompt: the expanded prompt.
        image: H x W x 3 uint8.
        guidance_scale: the scale it was rendered with; if `remedy` is set, not that of the settings.
        fault: what is wrong with the image (not finite, black, of one colour) after the retry too, or None.
        remedy: what was changed for the retry, and why; None if there was no retry.
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
    """Render all requests, in full batches of mixed concepts. Returns the renderings in the order of the requests.

    An image that is not finite, black or of one colour is retried once with another seed and half as much guidance,
    s' = 1 + (s - 1) / 2. If the retry is sound, its `remedy` names the changes; if not, its `fault` names both faults.

    Args:
        residuals: concept id to residual; needed for every request but those of the base variant.
        on_step: called after every step with the number of denoising steps done in all batches, retries included.

    Raises:
        ConceptError: a prompt is too long, or glued to other text.
        KeyError: a request's concept has no residual.
    """
    renderings = _render_all(base, residuals, requests, settings, identifier_token, on_step)
    faulty = [index for index, rendering in enumerate(renderings) if rendering.fault]
    if faulty:
        done = settings.steps * math.ceil(len(requests) / settings.batch_size)
        retry_settings = settings.model_copy(update={"guidance_scale": 1 + (settings.guidance_scale - 1) / 2})
        retries = [_with_another_seed(renderings[index].request) for index in faulty]
        report = (lambda step: on_step(done + step)) if on_step else None
        retried = _render_all(base, residuals, retries, retry_settings, identifier_token, report)
        for index, rendering in zip(faulty, retried, strict=True):
            renderings[index] = _explained(renderings[index], rendering)
    return renderings


def _with_another_seed(request: RenderRequest) -> RenderRequest:
    return replace(request, seed=derive_seed(request.seed, request.concept_id, "again"))


def _explained(first: Rendering, retry: Rendering) -> Rendering:
    """Return a retry with the fault of the first attempt in its `remedy` or `fault`."""
    changed = f"guidance scale {retry.guidance_scale:g} and another seed"
    if retry.fault:
        return replace(retry, fault=f"{first.fault}, and with {changed} {retry.fault}")
    return replace(retry, remedy=f"{changed}, because at first it was {first.fault}")


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
    text = _conditioning(base, residuals, padded, prompts, settings, identifier_token)
    guided = settings.guidance_scale > 1
    localization = ConceptLocalization(
        concept_tokens=_with_unconditional(concept_token_mask(prompts), guided).to(base.device),
        localized=torch.tensor([request.variant == "lag" for request in padded], device=base.device),
        unconditional=settings.unconditional,
        quantile=settings.mask_quantile,
        samples_per_image=2 if guided else 1,
    )
    # Also if no image of this batch is localized: diffusers' own processors round differently, and an image's bits must
    # not depend on the variants of the others.
    with attention_observed(base, localization), attached(base, _bank(base, residuals, padded), localization):
        latents = denoise(base, initial_noise(base, padded, settings), text, settings, on_step)
    decoded = decode_to_tensor(base, _only_finite(latents))
    finite = _all_finite(latents) & _all_finite(decoded)
    return [
        Rendering(request, prompt.text, image, settings.guidance_scale, image_fault(image, finite=ok))
        for request, prompt, image, ok in zip(
            batch, prompts, tensor_to_pixels(_only_finite(decoded)), finite.tolist(), strict=False
        )
    ]


def denoise(
    base: BaseModel,
    noise: Tensor,
    text: TextConditioning,
    settings: SamplingSettings,
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Denoise with classifier-free guidance, eps_hat = eps_u + s (eps_c - eps_u). Returns the latents, [I, C, h, w].

    Args:
        noise: standard normal, [I, C, h, w].
        text: S prompts; with guidance, the unconditional prompt of each image before its conditional one.
        on_step: called after every step with the number of steps done.
    """
    guided = settings.guidance_scale > 1
    scheduler = make_scheduler(base, settings)
    latents = noise * scheduler.init_noise_sigma
    height, width = _image_size(base, settings)
    conditioning = text.unet_arguments(len(text.states), height, width)
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
    return latents


def _all_finite(images: Tensor) -> Tensor:
    """Whether all values of each image [I, …] are finite, [I] bool."""
    return torch.isfinite(images).flatten(1).all(dim=1)


def _only_finite(images: Tensor) -> Tensor:
    return torch.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)


def tokenize_request(base: BaseModel, request: RenderRequest, identifier_token: str) -> TokenizedPrompt:
    """Tokenize the prompt of a request: "a V* mug on grass", or for the base variant "a mug on grass"."""
    if request.variant == "base":
        return tokenize(base.tokenizer, expand_template(request.template, None, request.macro_class))
    return tokenize_concept_prompt(base.tokenizer, request.template, identifier_token, request.macro_class)


def _conditioning(
    base: BaseModel,
    residuals: Mapping[str, Residual],
    requests: Sequence[RenderRequest],
    prompts: Sequence[TokenizedPrompt],
    settings: SamplingSettings,
    identifier_token: str,
) -> TextConditioning:
    """Encode the S prompts, each with the V* of its own concept."""
    untrained = identifier_embedding(base, identifier_token)
    learned = [residuals[request.concept_id].identifier if request.variant != "base" else None for request in requests]
    identifiers = torch.stack([untrained if one is None else one.to(base.device) for one in learned])
    conditional = encode_text(base, prompts, identifiers)
    if settings.guidance_scale <= 1:
        return conditional
    return encode_negative(base, settings.negative_prompt).paired_with(conditional)


def _bank(base: BaseModel, residuals: Mapping[str, Residual], requests: Sequence[RenderRequest]) -> ResidualBank:
    """Stack one residual per image, zero for the base variant. Each concept's factors are sent to the device once."""
    wanted = list(dict.fromkeys(request.concept_id for request in requests if request.variant != "base"))
    stacked = ResidualBank.stack([None, *(residuals[concept_id] for concept_id in wanted)], base)
    slots = [0 if request.variant == "base" else 1 + wanted.index(request.concept_id) for request in requests]
    return stacked.select(torch.tensor(slots, device=base.device)).to(base.dtype)


def _with_unconditional(mask: Tensor, guided: bool) -> Tensor:
    return torch.stack((torch.zeros_like(mask), mask), dim=1).flatten(0, 1) if guided else mask


def _image_size(base: BaseModel, settings: SamplingSettings) -> tuple[int, int]:
    """Return the height and width of the images, in pixels."""
    return settings.height or base.resolution, settings.width or base.resolution


def initial_noise(base: BaseModel, requests: Sequence[RenderRequest], settings: SamplingSettings) -> Tensor:
    """Draw every image's noise from its own seed, [I, C, h, w]; on the CPU, so that it is the same on every device."""
    height, width = _image_size(base, settings)
    shape = (base.latent_channels, height // base.pixels_per_latent, width // base.pixels_per_latent)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
    return torch.stack(noise).to(base.device)
