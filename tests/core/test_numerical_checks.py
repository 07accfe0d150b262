"""Checks find each kind of fault and no fault in sound results."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persres.core.base_model import BaseModel
from persres.core.identifier_token import identifier_embedding
from persres.core.numerical_checks import MAX_FLAT_SPREAD, image_fault, relative_norms, training_fault, weight_norms
from persres.core.residual import Residual, initialize_residual

from ..support.merged_weights import delta

LOSSES = torch.tensor([1.0, 0.5, 0.25])
FIRST_LAYER = "down_blocks.0.attentions.0.proj_out"


@pytest.fixture
def residual(base: BaseModel) -> Residual:
    plain = initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.1, seed=1)
    return dataclasses.replace(plain, identifier=identifier_embedding(base, "sks"))


def scaled(factors: dict[str, torch.Tensor], layer: str, scale: float) -> dict[str, torch.Tensor]:
    return {name: factor * scale if name == layer else factor for name, factor in factors.items()}


def test_relative_norms_equal_those_of_the_explicit_products(base: BaseModel, residual: Residual):
    norms = relative_norms(residual, weight_norms(base))
    assert list(norms) == [layer.name for layer in base.target_layers]
    for layer in base.target_layers:
        weight = base.unet.get_parameter(f"{layer.name}.weight")
        assert norms[layer.name] == pytest.approx(float(delta(residual, layer.name).norm() / weight.norm()), rel=1e-5)


def test_layer_with_zero_weights_is_not_checked(base: BaseModel, residual: Residual):
    norms = {**weight_norms(base), FIRST_LAYER: 0.0}
    assert FIRST_LAYER not in relative_norms(residual, norms)
    assert training_fault(LOSSES, residual, norms, 50.0) is None


def test_sound_training_has_no_fault(base: BaseModel, residual: Residual):
    assert training_fault(LOSSES, residual, weight_norms(base), 50.0) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_faults(base: BaseModel, residual: Residual, value: float):
    norms = weight_norms(base)
    losses = torch.tensor([1.0, value, 0.5])
    assert training_fault(losses, residual, norms, 50.0) == "its loss was no longer finite at iteration 1 of 3"
    identifier = torch.full((32,), value)
    for learned in (
        dataclasses.replace(residual, a=scaled(dict(residual.a), FIRST_LAYER, value)),
        dataclasses.replace(residual, b=scaled(dict(residual.b), FIRST_LAYER, value)),
        dataclasses.replace(residual, identifier=identifier),
    ):
        fault = training_fault(LOSSES, learned, norms, 50.0)
        assert fault == "what it learned was no longer finite after 3 iterations"


def test_residual_above_the_bound_is_a_fault_that_names_its_layer(base: BaseModel, residual: Residual):
    norms = weight_norms(base)
    grown = dataclasses.replace(residual, a=scaled(dict(residual.a), FIRST_LAYER, 1e4))
    size = relative_norms(grown, norms)[FIRST_LAYER]
    fault = training_fault(LOSSES, grown, norms, size * 0.99)
    assert fault is not None and "diverged" in fault and FIRST_LAYER in fault and f"{size:.3g} times" in fault
    assert training_fault(LOSSES, grown, norms, size * 1.01) is None


@given(level=st.integers(0, 255), spread=st.integers(0, 255), channel=st.integers(0, 2), seed=st.integers(0, 9))
def test_image_is_flat_if_no_channel_spreads(level: int, spread: int, channel: int, seed: int):
    image = np.full((6, 5, 3), level, np.uint8)
    place = np.random.default_rng(seed).integers(0, (6, 5))
    image[place[0], place[1], channel] = other = min(255, level + spread)
    fault = image_fault(image, finite=True)
    if other - level > MAX_FLAT_SPREAD:
        assert fault is None
    else:
        assert fault == ("a black image" if other <= MAX_FLAT_SPREAD else "an image of one colour")


def test_image_of_one_colour_is_flat_and_not_black():
    assert image_fault(np.full((4, 4, 3), (200, 3, 90), np.uint8), finite=True) == "an image of one colour"


def test_image_from_values_that_are_not_finite_is_a_fault():
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    assert image_fault(noise, finite=False) == "an image that is not finite"


def test_weight_norms_are_computed_once_a_base_model(base: BaseModel):
    assert weight_norms(base) is weight_norms(base)
    doubled = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
    with torch.no_grad():
        doubled.layer(doubled.target_layers[0]).weight *= 2  # type: ignore[operator]
    norms, others = weight_norms(base), weight_norms(doubled)
    assert norms[base.target_layers[0].name] * 2 == pytest.approx(others[base.target_layers[0].name])
