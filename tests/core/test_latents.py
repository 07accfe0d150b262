"""Reference images to latents and back."""

from __future__ import annotations

import numpy as np
import torch

from persres.core.base_model import BaseModel
from persres.core.latents import decode_latents, encode_references, fit_square, pixels_to_tensor, tensor_to_pixels


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_survive_the_trip_through_a_tensor():
    picture = noise(5, 7)
    assert np.array_equal(tensor_to_pixels(pixels_to_tensor(picture))[0], picture)


def test_a_picture_of_the_right_size_is_not_resampled():
    picture = noise(16, 16)
    assert fit_square(picture, 16) is picture


def test_a_wide_picture_is_cropped_in_its_middle_not_squeezed():
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert fit_square(wide, 16).min() > 200


def test_the_number_of_references_changes_no_bit(base: BaseModel):
    one, two = noise(20, 20, 1), noise(30, 24, 2)
    both, alone = encode_references(base, [one, two]), encode_references(base, [two])
    assert torch.equal(both.mean[1], alone.mean[0]) and torch.equal(both.std[1], alone.std[0])
    assert both.mean.shape == (2, 4, 8, 8)


def test_mirrored_adds_the_mirror_images(base: BaseModel):
    picture = noise(16, 16)
    mirrored = encode_references(base, [picture], mirrored=True)
    flipped = encode_references(base, [np.ascontiguousarray(picture[:, ::-1])])
    assert torch.equal(mirrored.mean[1], flipped.mean[0])


def test_scaling_matches_the_vae(base: BaseModel):
    latents = encode_references(base, [noise(16, 16)]).mean
    expected = base.vae.decode(latents / base.vae.config["scaling_factor"]).sample
    assert np.array_equal(decode_latents(base, latents), tensor_to_pixels(expected))
