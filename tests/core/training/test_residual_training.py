"""Packed training: it equals a plain loop over one concept, and results do not depend on the packing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.concept import derive_seed
from persres.core.errors import ConceptFailure, PersresError
from persres.core.identifier_token import encode_prompts, tokenize_concept_prompt
from persres.core.latents import encode_references
from persres.core.numerical_checks import relative_norms, weight_norms
from persres.core.residual import Residual, initialize_residual
from persres.core.training.convergence import EarlyStopping
from persres.core.training.residual_training import RETRY_PACK_SIZE, TrainedResidual, train_residuals
from persres.core.training.settings import TrainingSettings, WarmStart
from persres.core.training.training_pack import TrainingPack, TrainingRequest

from ...support.merged_weights import delta
from ...support.trainings import SETTINGS, assert_same, digest, train

MakeRequest = Callable[..., TrainingRequest]
FROZEN_IDENTIFIER = SETTINGS.model_copy(update={"train_identifier": False})


NEVER_CONVERGING = EarlyStopping(check_every=2, window=2, threshold=1e-12, min_iterations=0)
EAGER = EarlyStopping(check_every=2, window=2, threshold=0.03, min_iterations=0)


def test_result_of_another_pack_size_agrees_within_rounding(base: BaseModel, make_request: MakeRequest):
    packed = train(base, [make_request("one"), make_request("two")])["one"]
    single = train(base, [make_request("one")], pack_size=1)["one"]
    # Adam divides by the gradient's size, so last-bit differences of tiny gradients become a fraction of a step.
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
    """Train one concept as in the paper, with W + A B instead of W in every pass; no bank, no hooks."""
    start = initialize_residual(
        base.target_layers,
        rank_fraction=settings.rank,
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
            weights[f"{layer.name}.weight"] = weight + delta(start, layer.name).view_as(weight)
        output = torch.func.functional_call(base.unet, weights, (alpha * z + sigma * eps, t, text)).sample
        loss = torch.nn.functional.mse_loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return start, losses


def test_xl_result_does_not_depend_on_neighbours(sdxl: BaseModel):
    def request(name: str) -> TrainingRequest:
        picture = np.random.default_rng(len(name)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        return TrainingRequest(name, "mug", 0, encode_references(sdxl, [picture]))

    packed = train(sdxl, [request("a"), request("bb"), request("ccc")], FROZEN_IDENTIFIER)
    alone = train(sdxl, [request("bb")], FROZEN_IDENTIFIER)["bb"]
    assert_same(packed["bb"].residual, alone.residual)
    assert len(set(packed["a"].losses.tolist())) == FROZEN_IDENTIFIER.iterations


def test_concept_with_nan_latents_fails_alone(base: BaseModel, make_request: MakeRequest):
    quiet = train(base, [make_request("one"), make_request("two"), make_request("three")])
    poisoned = make_request("two")
    latents = dataclasses.replace(poisoned.latents, mean=torch.full_like(poisoned.latents.mean, float("nan")))
    poisoned = dataclasses.replace(poisoned, latents=latents)
    one, three, two = train_residuals(
        base, [make_request("one"), poisoned, make_request("three")], SETTINGS, pack_size=3
    )
    assert isinstance(two, ConceptFailure) and (two.concept_id, two.stage) == ("two", "train")
    assert two.reason == (
        "its loss was no longer finite at iteration 0 of 4; "
        "trained again at 0.25 of the learning rate, its loss was no longer finite at iteration 0 of 4"
    )
    assert "learning_rate" in two.fix
    assert isinstance(one, TrainedResidual) and isinstance(three, TrainedResidual)
    assert_same(one.residual, quiet["one"].residual)
    assert_same(three.residual, quiet["three"].residual)


def test_checks_do_not_change_the_result(base: BaseModel, make_request: MakeRequest):
    """`train_residuals` with all its checks gives the result of a bare pack."""
    pack = TrainingPack(base, SETTINGS, 2)
    pack.load(0, make_request("one"))
    pack.pad()
    with pack.attached():
        losses = [float(pack.step()[0]) for _ in range(SETTINGS.iterations)]
    checked = train(base, [make_request("one")], pack_size=2)["one"]
    assert_same(checked.residual, pack.residual(0))
    assert checked.losses.tolist() == losses and checked.remedy is None


DIVERGING = FROZEN_IDENTIFIER.model_copy(update={"iterations": 6, "learning_rate": 1.0})
"""Adam's steps are as large as the learning rate, so a few of them make the residual much larger than the weights."""


def test_diverged_training_is_retried_at_a_quarter_of_the_learning_rate(base: BaseModel, make_request: MakeRequest):
    unbounded = DIVERGING.model_copy(update={"max_residual_norm": 1e9})
    norms = weight_norms(base)

    def largest(settings: TrainingSettings) -> float:
        return max(relative_norms(train(base, [make_request("one")], settings)["one"].residual, norms).values())

    quarter = unbounded.model_copy(update={"learning_rate": 0.25})
    assert largest(unbounded) > 100 > largest(quarter)
    retries: list[tuple[str, str]] = []
    [remedied] = train_residuals(
        base,
        [make_request("one")],
        DIVERGING.model_copy(update={"max_residual_norm": 100.0}),
        pack_size=3,
        on_retry=lambda request, fault: retries.append((request.concept_id, fault)),
    )
    assert isinstance(remedied, TrainedResidual)
    expected = train(base, [make_request("one")], quarter)["one"]
    assert_same(remedied.residual, expected.residual)
    assert np.array_equal(remedied.losses, expected.losses)
    [(concept_id, fault)] = retries
    assert concept_id == "one" and "diverged" in fault
    assert remedied.remedy == f"learning rate x 0.25, because at first {fault}"


def test_training_that_diverges_twice_is_a_failure_with_both_faults(base: BaseModel, make_request: MakeRequest):
    [failure] = train_residuals(
        base, [make_request("one")], DIVERGING.model_copy(update={"max_residual_norm": 0.1}), pack_size=1
    )
    assert isinstance(failure, ConceptFailure) and failure.stage == "train"
    assert failure.reason.count("its residual diverged: |A B| is") == 2 and "proj_out" in failure.reason


def test_retry_and_neighbours_do_not_depend_on_each_other(base: BaseModel, make_request: MakeRequest):
    """Law 1 with V* trained, some concepts of a pack retried, and the device running out of memory."""
    diverging = DIVERGING.model_copy(update={"train_identifier": True, "max_residual_norm": 1e9})
    requests = [make_request(f"concept-{number}", references=1 + number % 2) for number in range(5)]
    norms = weight_norms(base)
    largest = {
        name: max(relative_norms(result.residual, norms).values())
        for name, result in train(base, requests, diverging).items()
    }
    ordered = sorted(largest.values())
    some = diverging.model_copy(update={"max_residual_norm": (ordered[1] + ordered[2]) / 2})
    packed = train(base, requests, some)
    assert {name for name, one in packed.items() if one.remedy} == {
        name for name, norm in largest.items() if norm > some.max_residual_norm
    }
    for request in requests:
        alone = train(base, [request], some)[request.concept_id]
        assert packed[request.concept_id].remedy == alone.remedy
        assert_same(packed[request.concept_id].residual, alone.residual)
        assert np.array_equal(packed[request.concept_id].losses, alone.losses)
    with limited_memory(base, samples=3 * DIVERGING.batch_size):
        halved = list(train_residuals(base, requests, some, pack_size=6))
    assert {result.concept_id for result in halved} == set(packed)
    for result in halved:
        assert isinstance(result, TrainedResidual)
        assert_same(result.residual, packed[result.concept_id].residual)


def test_retry_adds_its_iterations_to_the_progress(base: BaseModel, make_request: MakeRequest):
    seen: list[int] = []
    settings = DIVERGING.model_copy(update={"max_residual_norm": 100.0})
    [result] = train_residuals(base, [make_request("one")], settings, pack_size=1, on_step=seen.append)
    assert seen == list(range(1, 2 * DIVERGING.iterations + 1))
    assert isinstance(result, TrainedResidual) and len(result.losses) == DIVERGING.iterations and result.seconds > 0


def test_retries_train_in_a_small_pack(base: BaseModel, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    start_pack = TrainingPack.__init__

    def record(self: TrainingPack, base: BaseModel, settings: TrainingSettings, size: int) -> None:
        sizes.append(size)
        start_pack(self, base, settings, size)

    monkeypatch.setattr(TrainingPack, "__init__", record)
    settings = DIVERGING.model_copy(update={"max_residual_norm": 0.1})
    requests = [make_request(str(number)) for number in range(9)]
    results = list(train_residuals(base, requests, settings, pack_size=8))
    assert sizes == [8, RETRY_PACK_SIZE]
    assert sorted(result.concept_id for result in results) == sorted(request.concept_id for request in requests)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_unet_fails_every_concept(sd1: BaseModel, make_request: MakeRequest, value: float):
    broken = dataclasses.replace(sd1, unet=copy.deepcopy(sd1.unet))
    with torch.no_grad():
        broken.unet.conv_in.weight[0, 0, 0, 0] = value
    results = list(train_residuals(broken, [make_request("one"), make_request("two")], SETTINGS, pack_size=2))
    assert (
        all(isinstance(one, ConceptFailure) and "no longer finite" in one.reason for one in results)
        and len(results) == 2
    )


def test_result_does_not_depend_on_earlier_trainings(base: BaseModel, make_request: MakeRequest):
    before = digest(base)
    first = train(base, [make_request("one")])["one"]
    train(base, [make_request("two"), make_request("three")])
    again = train(base, [make_request("one")])["one"]
    assert_same(first.residual, again.residual)
    assert digest(base) == before
    assert not base.text_encoder.get_input_embeddings()._forward_hooks
    assert not any(base.layer(layer)._forward_hooks for layer in base.target_layers)


def test_training_lowers_the_loss_on_its_references(base: BaseModel, make_request: MakeRequest):
    settings = TrainingSettings(iterations=60, learning_rate=1e-2, train_identifier=True)
    still = settings.model_copy(update={"learning_rate": 1e-12, "identifier_learning_rate": 1e-12})
    learned, untrained = (train(base, [make_request("one", references=1)], one)["one"] for one in (settings, still))
    # Noise and timesteps are the same in both runs, so every pair of losses differs only by what was learned.
    assert (learned.losses[-20:] < untrained.losses[-20:]).mean() >= 0.9


def test_noise_depends_on_the_seed(base: BaseModel, make_request: MakeRequest):
    one = train(base, [make_request("one")])["one"]
    other_seed = train(base, [make_request("one", seed=1)])["one"]
    assert not np.array_equal(one.losses, other_seed.losses)


def test_zero_initialization_starts_at_the_base_model(base: BaseModel, make_request: MakeRequest):
    settings = TrainingSettings(iterations=1, initialization="zero", learning_rate=1e-3)
    result = train(base, [make_request("one")], settings)["one"]
    for name, factor in result.residual.a.items():
        assert factor.abs().max() <= 1.01e-3, f"{name}: Adam's first step is at most the learning rate"


def test_free_slot_takes_the_next_concept_with_the_same_result(base: BaseModel, make_request: MakeRequest):
    warm = SETTINGS.model_copy(update={"warm_start": WarmStart(iterations=2)})
    requests = [make_request(f"concept-{number}", references=1 + number % 3) for number in range(7)]
    start = train(base, [requests[3]])["concept-3"].residual
    # Two iterations instead of four: the trainings in the pack then begin and end at different steps.
    requests[0], requests[4] = (dataclasses.replace(requests[slot], start=start) for slot in (0, 4))
    packed = train(base, requests, warm)
    assert list(packed)[:3] == ["concept-0", "concept-1", "concept-2"]
    for request in requests:
        alone = train(base, [request], warm)[request.concept_id]
        assert len(alone.losses) == (2 if request.start else 4)
        assert_same(packed[request.concept_id].residual, alone.residual)
        assert np.array_equal(packed[request.concept_id].losses, alone.losses)


def test_warm_start_begins_at_the_given_residual(base: BaseModel, make_request: MakeRequest):
    warm = SETTINGS.model_copy(update={"warm_start": WarmStart(iterations=1), "learning_rate": 1e-12})
    warm = warm.model_copy(update={"identifier_learning_rate": 1e-12})
    start = train(base, [make_request("one")])["one"].residual
    warm_started = train(base, [dataclasses.replace(make_request("one"), start=start)], warm)["one"].residual
    assert_same(warm_started, start, rtol=0, atol=1e-9)


def test_plateau_starts_the_decay_and_the_end_follows(base: BaseModel, make_request: MakeRequest):
    settings = SETTINGS.model_copy(update={"early_stopping": EAGER, "iterations": 20, "learning_rate": 1e-2})
    requests = [make_request(f"concept-{number}", references=1 + number % 2) for number in range(6)]
    stopped = train(base, requests, settings)
    decaying = train(base, requests, settings.model_copy(update={"schedule": "linear", "decay_iterations": 3}))
    for name, result in decaying.items():
        plateau = len(stopped[name].losses)
        assert len(result.losses) == min(plateau + 3, 20)
        constant = min(plateau, 18)  # the first iteration of the decay still has the full rate, so its loss is the same
        assert np.array_equal(result.losses[:constant], stopped[name].losses[:constant])
    assert len({len(result.losses) for result in decaying.values()}) > 1


def test_early_stopping_does_not_depend_on_the_pack(base: BaseModel, make_request: MakeRequest):
    settings = SETTINGS.model_copy(update={"early_stopping": EAGER, "iterations": 20, "learning_rate": 1e-2})
    requests = [make_request(f"concept-{number}", references=1 + number % 2) for number in range(6)]
    packed = train(base, requests, settings)
    lengths = {name: len(result.losses) for name, result in packed.items()}
    assert len(set(lengths.values())) > 1 and all(length % 2 == 0 for length in lengths.values()), lengths
    for request in requests:
        alone = train(base, [request], settings)[request.concept_id]
        assert len(alone.losses) == lengths[request.concept_id]
        assert_same(packed[request.concept_id].residual, alone.residual)


def test_convergence_checks_do_not_change_the_result(base: BaseModel, make_request: MakeRequest):
    checked = train(base, [make_request("one")], SETTINGS.model_copy(update={"early_stopping": NEVER_CONVERGING}))[
        "one"
    ]
    assert_same(checked.residual, train(base, [make_request("one")])["one"].residual)


@contextmanager
def limited_memory(base: BaseModel, samples: int) -> Iterator[None]:
    """Context manager in which the UNet runs out of memory in a pass with more than `samples` samples."""

    def allocate(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = base.unet.conv_out.register_forward_pre_hook(allocate)
    try:
        yield
    finally:
        handle.remove()


def test_out_of_memory_halves_the_pack_and_loses_no_concept(base: BaseModel, make_request: MakeRequest):
    requests = [make_request(f"concept-{number}") for number in range(5)]
    sizes: list[int] = []
    with limited_memory(base, samples=2 * SETTINGS.batch_size):
        results = list(train_residuals(base, requests, SETTINGS, pack_size=8, on_smaller_pack=sizes.append))
    assert sizes == [4, 2]
    expected = train(base, requests, pack_size=2)
    assert [result.concept_id for result in results] == [request.concept_id for request in requests]
    for result in results:
        assert isinstance(result, TrainedResidual)
        assert_same(result.residual, expected[result.concept_id].residual)


def test_out_of_memory_with_one_concept_is_an_error_with_a_fix(base: BaseModel, make_request: MakeRequest):
    with limited_memory(base, samples=0), pytest.raises(PersresError, match="too little memory") as caught:
        list(train_residuals(base, [make_request("one")], SETTINGS, pack_size=2))
    assert "gradient_checkpointing" in (caught.value.fix or "")


def test_concept_that_cannot_be_started_fails_and_its_slot_takes_the_next(base: BaseModel, make_request: MakeRequest):
    wordy = make_request("wordy", macro_class="very " * 40 + "long mug")
    results = list(train_residuals(base, [wordy, make_request("one")], SETTINGS, pack_size=1))
    assert isinstance(results[0], ConceptFailure) and results[0].concept_id == "wordy"
    assert_same(results[1].residual, train(base, [make_request("one")], pack_size=1)["one"].residual)


def test_gradient_checkpointing_does_not_change_the_result(base: BaseModel, make_request: MakeRequest):
    requests = [make_request("one"), make_request("two")]
    checkpointing = FROZEN_IDENTIFIER.model_copy(update={"gradient_checkpointing": True})
    plain, checkpointed = train(base, requests, FROZEN_IDENTIFIER), train(base, requests, checkpointing)
    assert_same(plain["two"].residual, checkpointed["two"].residual)
    assert not base.unet.is_gradient_checkpointing


def test_progress_counts_concept_iterations(base: BaseModel, make_request: MakeRequest):
    seen: list[int] = []
    requests = [make_request(str(number)) for number in range(4)]
    list(train_residuals(base, requests, SETTINGS, pack_size=3, on_step=seen.append))
    assert seen == [3, 6, 9, 12, 13, 14, 15, 16]


def test_no_concepts_give_no_results(base: BaseModel):
    assert list(train_residuals(base, [], SETTINGS, pack_size=3)) == []


def test_pack_size_of_zero_is_refused(base: BaseModel, make_request: MakeRequest):
    with pytest.raises(ValueError, match="pack_size is 0"):
        next(train_residuals(base, [make_request("one")], SETTINGS, pack_size=0))
