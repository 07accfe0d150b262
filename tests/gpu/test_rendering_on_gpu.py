"""Rendering on CUDA: images agree with the CPU's within rounding, and do not depend on their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.residual import Residual, initialize_residual
from persres.core.sampling.lag_sampling import RenderRequest, render
from persres.core.sampling.settings import SamplingSettings, Variant

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
SETTINGS = SamplingSettings(steps=3, batch_size=3)
all_shapes = pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])


def make_request(concept_id: str, variant: Variant) -> RenderRequest:
    return RenderRequest(concept_id, "mug", "a photo of a {concept} on grass", 0, 0, variant, seed=7)


def residuals(base: BaseModel) -> dict[str, Residual]:
    return {
        name: initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.2, seed=seed)
        for seed, name in enumerate(("a", "bb"))
    }


def images(base: BaseModel, *requests: RenderRequest) -> list[np.ndarray]:
    renderings = render(base, residuals(base), requests, SETTINGS, identifier_token="sks")
    assert all(rendering.fault is None for rendering in renderings)
    return [rendering.image.astype(int) for rendering in renderings]


@all_shapes
def test_float32_images_agree_with_the_cpu(load_tiny, no_tf32, shape):
    requests = [make_request("a", "base"), make_request("bb", "residual"), make_request("a", "lag")]
    here, there = (images(load_tiny(shape, device), *requests) for device in ("cpu", DEVICE))
    for one, other in zip(here[:2], there[:2], strict=True):
        assert np.abs(one - other).max() <= 2
    # Rounding moves attention near the quantile to its other side, so a localized image may differ in places.
    assert np.abs(here[2] - there[2]).mean() < 4


@all_shapes
def test_bfloat16_image_is_finite_and_does_not_depend_on_neighbours(load_tiny, shape):
    base = load_tiny(shape, DEVICE, torch.bfloat16)
    mixed = images(base, make_request("bb", "residual"), make_request("bb", "base"), make_request("a", "lag"))[2]
    alone = images(base, make_request("a", "lag"))[0]
    assert np.array_equal(mixed, alone)
