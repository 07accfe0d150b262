"""Images to VAE latents and back. References are encoded once per concept, before the training loop.

Shapes: R reference images, I images in a tensor batch; H x W the image's size in pixels, C, h, w the latent's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from .base_model import BaseModel
from .errors import ConceptError


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceLatents:
    """The VAE posteriors of R reference images, scaled for the UNet.

    Attributes:
        mean: [R, C, h, w] float32.
        std: [R, C, h, w] float32.
    """

    mean: Tensor
    std: Tensor


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Scale and centre-crop an image, H x W x 3 uint8, to side x side. An image of that size is returned unchanged."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), (side, side), method=Image.Resampling.LANCZOS))


def pixels_to_tensor(image: np.ndarray) -> Tensor:
    """Convert an image, H x W x 3 uint8, to [1, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(image.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)[None]


def tensor_to_pixels(images: Tensor) -> np.ndarray:
    """Convert [I, 3, H, W] in [-1, 1] to images, I x H x W x 3 uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode_references(base: BaseModel, references: Sequence[np.ndarray], *, mirrored: bool = False) -> ReferenceLatents:
    """Encode a concept's references at the base model's resolution.

    The VAE encodes one image at a time: concepts differ in the number of their references, and another batch size would
    change the last bits. If a half-precision VAE overflows, the encoding is retried with a float32 copy of it.

    Args:
        references: images, each H x W x 3 uint8; sizes may differ.
        mirrored: also encode the mirror image of each, after all references.

    Raises:
        ConceptError: the latents of an image are not finite, in float32 either.
    """
    images = [fit_square(reference, base.resolution) for reference in references]
    if mirrored:
        images += [np.ascontiguousarray(image[:, ::-1]) for image in images]
    latents = _encode(base, base.vae, images)
    if _all_finite(latents):
        return latents
    if base.vae.dtype != torch.float32:
        latents = _encode(base, copy.deepcopy(base.vae).float(), images)
    for number in range(len(images)):
        if not _all_finite(ReferenceLatents(latents.mean[number], latents.std[number])):
            raise ConceptError(
                f"the VAE's latents of its reference image {number % len(references)} (from 0) are not finite",
                stage="train",
                fix="replace that image; if every concept fails like this, the base model's VAE is damaged",
            )
    return latents


def _encode(base: BaseModel, vae: AutoencoderKL, images: Sequence[np.ndarray]) -> ReferenceLatents:
    """Encode square images of the base model's resolution with `vae`."""
    scale = float(vae.config["scaling_factor"])
    shift = float(vae.config.get("shift_factor") or 0.0)
    means, stds = [], []
    for image in images:
        pixels: Any = pixels_to_tensor(image).to(base.device, vae.dtype)
        posterior = vae.encode(pixels, return_dict=False)[0]
        means.append((posterior.mean.float() - shift) * scale)
        stds.append(posterior.std.float() * scale)
    return ReferenceLatents(torch.cat(means), torch.cat(stds))


def _all_finite(latents: ReferenceLatents) -> bool:
    return bool(torch.isfinite(latents.mean).all() and torch.isfinite(latents.std).all())


@torch.no_grad()
def decode_latents(base: BaseModel, latents: Tensor) -> np.ndarray:
    """Decode latents [I, C, h, w], scaled as for the UNet, to images, I x H x W x 3 uint8."""
    return tensor_to_pixels(decode_to_tensor(base, latents))


@torch.no_grad()
def decode_to_tensor(base: BaseModel, latents: Tensor) -> Tensor:
    """Decode latents [I, C, h, w], scaled as for the UNet, to [I, 3, H, W], unclipped, about -1 to 1."""
    scale = float(base.vae.config["scaling_factor"])
    shift = float(base.vae.config.get("shift_factor") or 0.0)
    unscaled: Any = latents.to(base.vae.dtype) / scale + shift  # diffusers annotates FloatTensor, a Tensor is meant
    return base.vae.decode(unscaled, return_dict=False)[0]
