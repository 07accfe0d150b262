"""Laws 1, 2 and 6 for every setting of training: packing is invisible, merged equals hooked, a warm worker is pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.identifier_token import encode_prompts, tokenize
from persres.core.residual import Residual
from persres.core.residual_bank import ResidualBank, attached
from persres.core.training.convergence import EarlyStopping
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingRequest

from ...support.merged_weights import delta
from ...support.trainings import assert_same, digest, train

MakeRequest = Callable[..., TrainingRequest]

NEVER_CONVERGING = EarlyStopping(check_every=2, window=2, threshold=1e-12, min_iterations=0)
EAGER = EarlyStopping(check_every=2, window=2, threshold=0.03, min_iterations=0)
VARIANTS: dict[str, dict[str, Any]] = {
    "V* trained": {"train_identifier": True},
    "V* frozen": {},
    "linear": {"schedule": "linear", "warmup_iterations": 1, "train_identifier": True},
    "cosine": {"schedule": "cosine", "decay_iterations": 2},
    "plateau": {
        "schedule": "linear",
        "early_stopping": EAGER,
        "iterations": 12,
        "learning_rate": 0.01,
    },
    "stratified": {"timesteps": "stratified"},
    "range": {"timestep_range": (0.2, 0.7)},
    "shuffled": {"reference_order": "shuffled"},
    "antithetic": {"antithetic_noise": True},
    "Min-SNR": {"min_snr_gamma": 5.0, "train_identifier": True},
    "clipped": {"max_gradient_norm": 1e-3, "train_identifier": True},
    "EMA": {"averaging": "ema", "averaging_iterations": 3, "train_identifier": True},
    "tail": {"averaging": "tail", "averaging_iterations": 3},
    "rank as a number": {"rank": 5},
    "all": {
        "train_identifier": True,
        "schedule": "cosine",
        "warmup_iterations": 1,
        "timesteps": "stratified",
        "timestep_range": (0.05, 1.0),
        "reference_order": "shuffled",
        "antithetic_noise": True,
        "min_snr_gamma": 5.0,
        "max_gradient_norm": 1e-2,
        "averaging": "tail",
        "averaging_iterations": 2,
        "early_stopping": NEVER_CONVERGING,
    },
}


def variant(name: str) -> TrainingSettings:
    return TrainingSettings.model_validate({"iterations": 4, "batch_size": 2} | VARIANTS[name])


each_variant = pytest.mark.parametrize("name", VARIANTS)


@each_variant
def test_result_does_not_depend_on_neighbours_or_slot(base: BaseModel, make_request: MakeRequest, name: str):
    """Law 1 for every setting."""
    settings = variant(name)
    alone = train(base, [make_request("one")], settings)["one"]
    first = train(base, [make_request("one"), make_request("two"), make_request("three")], settings)["one"]
    last = train(base, [make_request("four", references=5), make_request("five"), make_request("one")], settings)["one"]
    for other in (first, last):
        assert_same(alone.residual, other.residual)
        assert np.array_equal(alone.losses, other.losses)


@each_variant
def test_result_does_not_depend_on_earlier_trainings_whatever_the_settings(
    base: BaseModel, make_request: MakeRequest, name: str
):
    """Law 6 for every setting."""
    before, settings = digest(base), variant(name)
    first = train(base, [make_request("one")], settings)["one"]
    train(base, [make_request("two"), make_request("three")], variant("all"))
    again = train(base, [make_request("one")], settings)["one"]
    assert_same(first.residual, again.residual)
    assert digest(base) == before


@each_variant
def test_residual_at_work_equals_merged_weights_whatever_the_settings(
    base: BaseModel, make_request: MakeRequest, name: str
):
    """Law 2 for every setting: merged equals hooked, and a zero residual is the base model."""
    settings = variant(name)
    trained = train(base, [make_request("one")], settings)["one"].residual
    zero = Residual({layer: 0 * a for layer, a in trained.a.items()}, trained.b)
    text = encode_prompts(base, [tokenize(base.tokenizer, "a mug")]).expand(2, -1, -1)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = (latents, torch.tensor([500, 20]), text)
    merged = {}
    for layer in base.target_layers:
        weight = base.unet.get_parameter(f"{layer.name}.weight")
        merged[f"{layer.name}.weight"] = weight + delta(trained, layer.name).view_as(weight)
    with torch.no_grad():
        plain = base.unet(*inputs).sample
        expected = torch.func.functional_call(base.unet, merged, inputs).sample
        with attached(base, ResidualBank.stack([trained, trained], base)):
            torch.testing.assert_close(base.unet(*inputs).sample, expected, rtol=1e-4, atol=1e-5)
        with attached(base, ResidualBank.stack([zero, zero], base)):
            torch.testing.assert_close(base.unet(*inputs).sample, plain, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected, plain)


@pytest.mark.parametrize("train_identifier", [True, False])
def test_concepts_with_settings_of_their_own_share_a_pack(
    base: BaseModel, make_request: MakeRequest, train_identifier: bool
):
    """Law 1 across settings: every concept has its own schedule, draws, weights, clipping, averages and end."""
    names = [name for name in VARIANTS if name != "rank as a number"]
    requests = {}
    for name in names:
        settings = variant(name).model_copy(update={"train_identifier": train_identifier})
        requests[name] = dataclasses.replace(make_request(name), settings=settings)
    pack = variant("V* trained").model_copy(update={"train_identifier": train_identifier})
    packed = train(base, list(requests.values()), pack, pack_size=4)
    assert len({len(result.losses) for result in packed.values()}) > 1
    for name, request in requests.items():
        assert request.settings is not None
        alone = train(base, [make_request(name)], request.settings, pack_size=4)[name]
        assert_same(packed[name].residual, alone.residual)
        assert np.array_equal(packed[name].losses, alone.losses)
