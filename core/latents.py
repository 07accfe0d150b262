"""Reference images to VAE latents, computed once a concept and never again in the training loop."""

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
    """The VAE posterior of R reference images, scaled for the UNet.

    Attributes:
        mean: [R, C, h, w] float32.
        std: [R, C, h, w] float32.
    """

    mean: Tensor
    std: Tensor


def fit_square(picture: np.ndarray, side: int) -> np.ndarray:
    """Scale and centre-crop an H x W x 3 uint8 picture to side x side; a picture of that size is returned as it is."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (side, side), method=Image.Resampling.LANCZOS))


def pixels_to_tensor(picture: np.ndarray) -> Tensor:
    """H x W x 3 uint8 -> [1, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1.0).permute(2, 0, 1)[None]


def tensor_to_pixels(images: Tensor) -> np.ndarray:
    """[I, 3, H, W] in [-1, 1] -> I x H x W x 3 uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode_references(base: BaseModel, references: Sequence[np.ndarray], *, mirrored: bool = False) -> ReferenceLatents:
    """Encode a concept's references at the base model's resolution; with `mirrored`, also each one's mirror image.

    Pictures pass through the VAE one at a time: a tensor batch of another size would change their last bits, and the
    number of references differs between concepts.

    A half-precision VAE that overflows on a picture gets a second try in float32, on a copy of its weights.

    Raises:
        ConceptError: a picture's latents are not finite, in float32 too.
    """
    pictures = [fit_square(reference, base.resolution) for reference in references]
    if mirrored:
        pictures += [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    latents = _encode(base, base.vae, pictures)
    if _all_finite(latents):
        return latents
    if base.vae.dtype != torch.float32:
        latents = _encode(base, copy.deepcopy(base.vae).float(), pictures)
    for number in range(len(pictures)):
        if not _all_finite(ReferenceLatents(latents.mean[number], latents.std[number])):
            raise ConceptError(
                f"the VAE's latents of its reference image {number % len(references)} (from 0) are not finite",
                stage="train",
                fix="replace that image; where every concept fails so, the base model's VAE is damaged",
            )
    return latents


def _encode(base: BaseModel, vae: AutoencoderKL, pictures: Sequence[np.ndarray]) -> ReferenceLatents:
    """The posterior of square pictures of the base model's resolution, by this VAE; one at a time."""
    scale = float(vae.config["scaling_factor"])
    shift = float(vae.config.get("shift_factor") or 0.0)
    means, stds = [], []
    for picture in pictures:
        pixels: Any = pixels_to_tensor(picture).to(base.device, vae.dtype)
        posterior = vae.encode(pixels, return_dict=False)[0]
        means.append((posterior.mean.float() - shift) * scale)
        stds.append(posterior.std.float() * scale)
    return ReferenceLatents(torch.cat(means), torch.cat(stds))


def _all_finite(latents: ReferenceLatents) -> bool:
    return bool(torch.isfinite(latents.mean).all() and torch.isfinite(latents.std).all())


@torch.no_grad()
def decode_latents(base: BaseModel, latents: Tensor) -> np.ndarray:
    """[I, C, h, w] latents as the UNet sees them -> I x H x W x 3 uint8."""
    return tensor_to_pixels(decode_to_tensor(base, latents))


@torch.no_grad()
def decode_to_tensor(base: BaseModel, latents: Tensor) -> Tensor:
    """[I, C, h, w] latents as the UNet sees them -> [I, 3, H, W], what the VAE makes of them: about -1 to 1."""
    scale = float(base.vae.config["scaling_factor"])
    shift = float(base.vae.config.get("shift_factor") or 0.0)
    unscaled: Any = latents.to(base.vae.dtype) / scale + shift  # diffusers annotates FloatTensor, a Tensor is meant
    return base.vae.decode(unscaled, return_dict=False)[0]
