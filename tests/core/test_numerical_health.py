"""Each fault is found and named, and nothing sound is taken for one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.core.base_model import BaseModel
from persres.core.identifier_token import identifier_embedding
from persres.core.numerical_health import FLAT_LEVELS, picture_fault, relative_norms, training_fault, weight_norms
from persres.core.residual import Residual, initialize_residual

LOSSES = torch.tensor([1.0, 0.5, 0.25])
FIRST_LAYER = "down_blocks.0.attentions.0.proj_out"


@pytest.fixture
def residual(base: BaseModel) -> Residual:
    plain = initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.1, seed=1)
    return dataclasses.replace(plain, identifier=identifier_embedding(base, "sks"))


def changed(factors: dict[str, torch.Tensor], layer: str, scale: float) -> dict[str, torch.Tensor]:
    return {name: factor * scale if name == layer else factor for name, factor in factors.items()}


def test_norms_are_those_of_the_products_relative_to_the_weights(base: BaseModel, residual: Residual):
    norms = relative_norms(residual, weight_norms(base))
    assert list(norms) == [layer.name for layer in base.target_layers]
    for layer in base.target_layers:
        weight = base.unet.get_parameter(f"{layer.name}.weight")
        assert norms[layer.name] == pytest.approx(float(residual.delta(layer.name).norm() / weight.norm()), rel=1e-5)


def test_a_layer_without_weights_has_no_scale_to_compare_with(base: BaseModel, residual: Residual):
    norms = {**weight_norms(base), FIRST_LAYER: 0.0}
    assert FIRST_LAYER not in relative_norms(residual, norms)
    assert training_fault(LOSSES, residual, norms, 50.0) is None


def test_a_sound_training_has_no_fault(base: BaseModel, residual: Residual):
    assert training_fault(LOSSES, residual, weight_norms(base), 50.0) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(base: BaseModel, residual: Residual, value: float):
    norms = weight_norms(base)
    losses = torch.tensor([1.0, value, 0.5])
    assert training_fault(losses, residual, norms, 50.0) == "its loss was no longer finite at iteration 1 of 3"
    poisoned = torch.full((32,), value)
    for learned in (
        dataclasses.replace(residual, a=changed(dict(residual.a), FIRST_LAYER, value)),
        dataclasses.replace(residual, b=changed(dict(residual.b), FIRST_LAYER, value)),
        dataclasses.replace(residual, identifier=poisoned),
    ):
        fault = training_fault(LOSSES, learned, norms, 50.0)
        assert fault == "what it learned was no longer finite after 3 iterations"


def test_a_residual_beyond_the_bound_is_named_with_its_layer(base: BaseModel, residual: Residual):
    norms = weight_norms(base)
    grown = dataclasses.replace(residual, a=changed(dict(residual.a), FIRST_LAYER, 1e4))
    size = relative_norms(grown, norms)[FIRST_LAYER]
    fault = training_fault(LOSSES, grown, norms, size * 0.99)
    assert fault is not None and "diverged" in fault and FIRST_LAYER in fault and f"{size:.3g} times" in fault
    assert training_fault(LOSSES, grown, norms, size * 1.01) is None


@given(level=st.integers(0, 255), spread=st.integers(0, 255), channel=st.integers(0, 2), seed=st.integers(0, 9))
def test_a_picture_is_flat_where_no_channel_spreads(level: int, spread: int, channel: int, seed: int):
    picture = np.full((6, 5, 3), level, np.uint8)
    place = np.random.default_rng(seed).integers(0, (6, 5))
    picture[place[0], place[1], channel] = other = min(255, level + spread)
    fault = picture_fault(picture, finite=True)
    if other - level > FLAT_LEVELS:
        assert fault is None
    else:
        assert fault == ("a black image" if other <= FLAT_LEVELS else "an image of one colour")


def test_a_coloured_constant_is_flat_and_not_black():
    assert picture_fault(np.full((4, 4, 3), (200, 3, 90), np.uint8), finite=True) == "an image of one colour"


def test_pixels_made_of_nothing_finite_are_no_picture():
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert picture_fault(noise, finite=False) == "an image that is not finite"
