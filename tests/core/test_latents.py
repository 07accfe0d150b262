"""Images to latents and back."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.errors import ConceptError
from persres.core.latents import decode_latents, encode_references, fit_square, pixels_to_tensor, tensor_to_pixels


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_survive_conversion_to_a_tensor():
    image = noise_image(5, 7)
    assert np.array_equal(tensor_to_pixels(pixels_to_tensor(image))[0], image)


def test_image_of_the_right_size_is_not_resampled():
    image = noise_image(16, 16)
    assert fit_square(image, 16) is image


def test_wide_image_is_centre_cropped():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert fit_square(wide, 16).min() > 200


def test_latents_do_not_depend_on_the_number_of_references(base: BaseModel):
    one, two = noise_image(20, 20, 1), noise_image(30, 24, 2)
    both, alone = encode_references(base, [one, two]), encode_references(base, [two])
    assert torch.equal(both.mean[1], alone.mean[0]) and torch.equal(both.std[1], alone.std[0])
    assert both.mean.shape == (2, 4, 8, 8)


def test_mirrored_adds_the_mirror_images(base: BaseModel):
    image = noise_image(16, 16)
    mirrored = encode_references(base, [image], mirrored=True)
    flipped = encode_references(base, [np.ascontiguousarray(image[:, ::-1])])
    assert torch.equal(mirrored.mean[1], flipped.mean[0])


def test_decoding_uses_the_vaes_scaling_factor(base: BaseModel):
    latents = encode_references(base, [noise_image(16, 16)]).mean
    expected = base.vae.decode(latents / base.vae.config["scaling_factor"]).sample
    assert np.array_equal(decode_latents(base, latents), tensor_to_pixels(expected))


def with_vae(base: BaseModel, *, scale_of_first: float = 1.0, dtype: torch.dtype = torch.float32) -> BaseModel:
    """The base model with a VAE of another dtype, the weights of its first layer scaled."""
    vae = copy.deepcopy(base.vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight *= scale_of_first
    return dataclasses.replace(base, vae=vae.to(dtype))


def test_half_precision_vae_that_overflows_is_retried_in_float32(base: BaseModel):
    overflowing = with_vae(base, scale_of_first=1e5, dtype=torch.float16)
    images = [np.full((16, 16, 3), 128, np.uint8), np.full((16, 16, 3), 255, np.uint8)]
    gray = overflowing.vae.encode(pixels_to_tensor(images[0]).half()).latent_dist.mean
    white = overflowing.vae.encode(pixels_to_tensor(images[1]).half()).latent_dist.mean
    assert torch.isfinite(gray).all() and not torch.isfinite(white).all()
    before = copy.deepcopy(overflowing.vae.state_dict())
    latents = encode_references(overflowing, images)
    precise = dataclasses.replace(overflowing, vae=copy.deepcopy(overflowing.vae).float())
    expected = encode_references(precise, images)
    assert torch.equal(latents.mean, expected.mean) and torch.equal(latents.std, expected.std)
    assert overflowing.vae.dtype == torch.float16, "the worker's VAE must not change"
    assert all(torch.equal(value, before[name]) for name, value in overflowing.vae.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_image_whose_latents_are_not_finite_is_named(base: BaseModel, dtype: torch.dtype):
    broken = with_vae(base, scale_of_first=1e38)
    if dtype != torch.float32:
        broken = with_vae(base, scale_of_first=float("inf"), dtype=dtype)
    images = [noise_image(16, 16), noise_image(16, 16, 1)]
    with pytest.raises(ConceptError, match=r"reference image 0 \(from 0\) are not finite") as caught:
        encode_references(broken, images)
    assert caught.value.stage == "train" and "VAE is damaged" in (caught.value.fix or "")


def test_faulty_image_is_named_by_its_index_with_mirror_images_too(base: BaseModel):
    # The squares in the first normalization overflow float32 for white, and do not for almost gray.
    broken = with_vae(base, scale_of_first=5e19)
    sound, white = np.full((16, 16, 3), 127, np.uint8), np.full((16, 16, 3), 255, np.uint8)
    with pytest.raises(ConceptError, match=r"reference image 1 \(from 0\)"):
        encode_references(broken, [sound, white], mirrored=True)
