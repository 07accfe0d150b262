"""A pack of slots: what it refuses, and that its result is the iterate or the average that the settings ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from persres.core.base_model import BaseModel
from persres.core.errors import InvalidInput
from persres.core.residual import Residual
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingPack, TrainingRequest

MakeRequest = Callable[..., TrainingRequest]
SETTINGS = TrainingSettings(iterations=6, batch_size=2, learning_rate=1e-2, train_identifier=True)


def test_trained_identifier_with_two_text_encoders_is_refused(sdxl: BaseModel):
    with pytest.raises(InvalidInput, match="two text encoders") as caught:
        TrainingPack(sdxl, TrainingSettings(train_identifier=True), 1)
    assert "train_identifier: false" in (caught.value.fix or "")


@pytest.mark.parametrize("change", [{"rank": 3}, {"batch_size": 4}, {"train_identifier": False}])
def test_concept_whose_tensors_have_other_shapes_is_refused(
    base: BaseModel, make_request: MakeRequest, change: dict[str, Any]
):
    request = dataclasses.replace(make_request("one"), settings=SETTINGS.model_copy(update=change))
    with pytest.raises(ValueError, match=f"a concept's {next(iter(change))} is"):
        TrainingPack(base, SETTINGS, 1).load(0, request)


def iterates(base: BaseModel, request: TrainingRequest, settings: TrainingSettings) -> list[Residual]:
    """Return what `residual` gives before the first and after each of the iterations."""
    pack = TrainingPack(base, settings, 1)
    pack.load(0, request)
    found = [pack.residual(0)]
    with pack.attached():
        for _ in range(settings.iterations):
            pack.step()
            found.append(pack.residual(0))
    return found


def flat(residual: Residual) -> torch.Tensor:
    assert residual.identifier is not None
    return torch.cat([one.flatten() for one in (*residual.a.values(), *residual.b.values(), residual.identifier)])


def test_tail_is_the_mean_of_the_last_iterates(base: BaseModel, make_request: MakeRequest):
    tail = SETTINGS.model_copy(update={"averaging": "tail", "averaging_iterations": 3})
    plain, averaged = (iterates(base, make_request("one"), settings) for settings in (SETTINGS, tail))
    for iteration in range(5):  # before the tail, and at its first iterate
        assert torch.equal(flat(averaged[iteration]), flat(plain[iteration]))
    mean = torch.stack([flat(one) for one in plain[4:]]).double().mean(dim=0)
    torch.testing.assert_close(flat(averaged[6]).double(), mean, rtol=1e-5, atol=1e-6)


def test_ema_is_the_moving_average_of_all_iterates(base: BaseModel, make_request: MakeRequest):
    ema = SETTINGS.model_copy(update={"averaging": "ema", "averaging_iterations": 4})
    plain, averaged = (iterates(base, make_request("one"), settings) for settings in (SETTINGS, ema))
    expected = flat(plain[0]).double()
    for iteration, iterate in enumerate(plain[1:], start=1):
        memory = min(0.75, (1 + iteration) / (10 + iteration))
        expected = memory * expected + (1 - memory) * flat(iterate).double()
        torch.testing.assert_close(flat(averaged[iteration]).double(), expected, rtol=1e-5, atol=1e-6)


def test_clipped_first_gradient_moves_no_further_than_adam_allows(base: BaseModel, make_request: MakeRequest):
    """Adam's first step is as long for a small gradient as for a large one, but for its epsilon."""
    clipped = SETTINGS.model_copy(update={"max_gradient_norm": 1e-3, "iterations": 1})
    plain = iterates(base, make_request("one"), SETTINGS.model_copy(update={"iterations": 1}))
    small = iterates(base, make_request("one"), clipped)
    assert not torch.equal(flat(small[1]), flat(plain[1]))
    assert (flat(small[1]) - flat(small[0])).abs().max() <= SETTINGS.learning_rate * 1.01


def test_min_snr_weighs_the_loss(base: BaseModel, make_request: MakeRequest):
    """With a gamma above every SNR a noise-predicting model weighs all alike; with a tiny one nearly nothing counts."""
    losses = []
    for gamma in (None, 1e9, 1e-9):
        pack = TrainingPack(base, SETTINGS.model_copy(update={"min_snr_gamma": gamma}), 1)
        pack.load(0, make_request("one"))
        pack.pad()
        with pack.attached():
            losses.append(float(pack.step()[0]))
    plain, all_alike, nearly_nothing = losses
    assert nearly_nothing < 1e-3 * plain
    if base.prediction_type == "epsilon":
        assert all_alike == plain
    else:
        assert 0 < all_alike < plain


class CountedCopies(TorchDispatchMode):
    """Counts copies from one device to another (or, on a CPU, those that would be)."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_residual_leaves_the_device_in_one_copy_for_its_factors_and_one_for_its_identifier(
    base: BaseModel, make_request: MakeRequest
):
    pack = TrainingPack(base, SETTINGS, 2)
    pack.load(0, make_request("one"))
    with CountedCopies() as copies:
        pack.residual(0)
    assert copies.count == 2 < len(base.target_layers)
