"""Packed training: it equals a slow, obvious loop over one concept, and packing cannot be seen in its results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.concept import derive_seed
from persres.core.errors import ConceptFailure
from persres.core.identifier_token import encode_prompts, tokenize_concept_prompt
from persres.core.residual import Residual, initialize_residual
from persres.core.residual_training import TrainedResidual, TrainingRequest, TrainingSettings, train_residuals

MakeRequest = Callable[..., TrainingRequest]
SETTINGS = TrainingSettings(iterations=4, batch_size=2, pack_size=3, train_identifier=True)
FROZEN_IDENTIFIER = SETTINGS.model_copy(update={"train_identifier": False})


def train(base: BaseModel, requests: list[TrainingRequest], settings: TrainingSettings = SETTINGS):
    results = {}
    for result in train_residuals(base, requests, settings):
        assert isinstance(result, TrainedResidual), result
        results[result.concept_id] = result
    return results


def assert_same(left: Residual, right: Residual, **tolerance: float) -> None:
    """Bit for bit unless a tolerance is given."""
    pairs = [(left.a[name], right.a[name]) for name in left.a] + [(left.b[name], right.b[name]) for name in left.b]
    if left.identifier is not None and right.identifier is not None:
        pairs.append((left.identifier, right.identifier))
    for one, other in pairs:
        if tolerance:
            torch.testing.assert_close(one, other, **tolerance)
        else:
            assert torch.equal(one, other)


def digest(base: BaseModel) -> str:
    """Of every weight and buffer of the frozen model."""
    sha = hashlib.sha256()
    for module in (base.unet, base.text_encoder, base.vae):
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("settings", [SETTINGS, FROZEN_IDENTIFIER], ids=["V* trained", "V* frozen"])
def test_neighbours_and_slot_change_no_bit(base: BaseModel, make_request: MakeRequest, settings: TrainingSettings):
    alone = train(base, [make_request("one")], settings)["one"]
    first = train(base, [make_request("one"), make_request("two"), make_request("three")], settings)["one"]
    last = train(base, [make_request("four", references=5), make_request("five"), make_request("one")], settings)["one"]
    for other in (first, last):
        assert_same(alone.residual, other.residual)
        assert np.array_equal(alone.losses, other.losses)


def test_another_pack_size_agrees_within_float_error(base: BaseModel, make_request: MakeRequest):
    packed = train(base, [make_request("one"), make_request("two")])["one"]
    single = train(base, [make_request("one")], SETTINGS.model_copy(update={"pack_size": 1}))["one"]
    # Adam divides by the gradient's own size, so last-bit differences of tiny gradients grow to a share of a step.
    assert_same(packed.residual, single.residual, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(packed.losses, single.losses, rtol=1e-4)


def test_packed_training_equals_a_plain_loop_over_one_concept(base: BaseModel, make_request: MakeRequest):
    requests = [make_request("one"), make_request("two", references=2), make_request("three")]
    packed = train(base, requests, FROZEN_IDENTIFIER)
    for request in requests:
        expected, losses = plain_loop(base, request, FROZEN_IDENTIFIER)
        np.testing.assert_allclose(packed[request.concept_id].losses, losses, rtol=1e-4)
        assert_same(packed[request.concept_id].residual, expected, rtol=1e-3, atol=1e-4)


def plain_loop(base: BaseModel, request: TrainingRequest, settings: TrainingSettings) -> tuple[Residual, list[float]]:
    """The paper, literally: one concept, W + A B put in place of W in every pass, one Adam; no bank, no hooks."""
    start = initialize_residual(
        base.target_layers,
        rank_fraction=settings.rank_fraction,
        a_std=settings.random_std,
        seed=derive_seed(request.seed, request.concept_id, "initialization"),
    )
    parameters = [factor.requires_grad_(True) for factor in (*start.a.values(), *start.b.values())]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(derive_seed(request.seed, request.concept_id, "training"))
    prompt = tokenize_concept_prompt(base.tokenizer, settings.prompt, settings.identifier_token, request.macro_class)
    text = encode_prompts(base, [prompt]).expand(settings.batch_size, -1, -1)
    b, abar = settings.batch_size, base.noise_schedule.alphas_cumprod
    losses = []
    for _ in range(settings.iterations):
        which = torch.randint(len(request.latents.mean), (b,), generator=generator)
        t = torch.randint(len(abar), (b,), generator=generator)
        posterior, eps = torch.randn(2, b, *request.latents.mean.shape[1:], generator=generator)
        z = request.latents.mean[which] + request.latents.std[which] * posterior
        alpha, sigma = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
        target = eps if base.prediction_type == "epsilon" else alpha * eps - sigma * z
        weights = {}
        for layer in base.target_layers:
            weight = base.unet.get_parameter(f"{layer.name}.weight")
            weights[f"{layer.name}.weight"] = weight + start.delta(layer.name).view_as(weight)
        output = torch.func.functional_call(base.unet, weights, (alpha * z + sigma * eps, t, text)).sample
        loss = torch.nn.functional.mse_loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return start, losses


def test_one_poisoned_concept_fails_alone(base: BaseModel, make_request: MakeRequest):
    quiet = train(base, [make_request("one"), make_request("two"), make_request("three")])
    poisoned = make_request("two")
    latents = dataclasses.replace(poisoned.latents, mean=torch.full_like(poisoned.latents.mean, float("nan")))
    poisoned = dataclasses.replace(poisoned, latents=latents)
    one, two, three = train_residuals(base, [make_request("one"), poisoned, make_request("three")], SETTINGS)
    assert isinstance(two, ConceptFailure)
    assert two.stage == "train" and "iteration 0" in two.reason and "learning_rate" in two.fix
    assert isinstance(one, TrainedResidual) and isinstance(three, TrainedResidual)
    assert_same(one.residual, quiet["one"].residual)
    assert_same(three.residual, quiet["three"].residual)


def test_a_warm_model_is_pure(base: BaseModel, make_request: MakeRequest):
    before = digest(base)
    first = train(base, [make_request("one")])["one"]
    train(base, [make_request("two"), make_request("three")])
    again = train(base, [make_request("one")])["one"]
    assert_same(first.residual, again.residual)
    assert digest(base) == before
    assert not base.text_encoder.get_input_embeddings()._forward_hooks
    assert not any(base.layer(layer)._forward_hooks for layer in base.target_layers)


def test_training_lowers_the_loss_on_the_concepts_own_pictures(base: BaseModel, make_request: MakeRequest):
    settings = TrainingSettings(iterations=60, pack_size=1, learning_rate=1e-2, train_identifier=True)
    still = settings.model_copy(update={"learning_rate": 1e-12, "identifier_learning_rate": 1e-12})
    learned, untrained = (train(base, [make_request("one", references=1)], one)["one"] for one in (settings, still))
    # The same noise and timesteps in both runs, so every pair of losses differs by what was learned alone.
    assert (learned.losses[-20:] < untrained.losses[-20:]).mean() >= 0.9


def test_the_seed_and_the_name_decide_the_noise(base: BaseModel, make_request: MakeRequest):
    one = train(base, [make_request("one")])["one"]
    other_seed = train(base, [make_request("one", seed=1)])["one"]
    assert not np.array_equal(one.losses, other_seed.losses)


def test_a_zero_start_begins_at_the_base_model(base: BaseModel, make_request: MakeRequest):
    settings = TrainingSettings(iterations=1, pack_size=1, initialization="zero", learning_rate=1e-3)
    result = train(base, [make_request("one")], settings)["one"]
    for name, factor in result.residual.a.items():
        assert factor.abs().max() <= 1.01e-3, f"{name}: Adam's first step is at most the learning rate"


@pytest.mark.parametrize("count", [0, 4])
def test_a_pack_holds_one_to_pack_size_concepts(base: BaseModel, make_request: MakeRequest, count: int):
    with pytest.raises(ValueError, match="for a pack of 3"):
        train_residuals(base, [make_request(str(number)) for number in range(count)], SETTINGS)
