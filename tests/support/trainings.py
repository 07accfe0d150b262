"""Trainings of a few concepts in one pack, and comparisons of what they learned."""

from __future__ import annotations

import hashlib

import torch

from persres.core.base_model import BaseModel
from persres.core.residual import Residual
from persres.core.training.residual_training import TrainedResidual, train_residuals
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingRequest

SETTINGS = TrainingSettings(iterations=4, batch_size=2, train_identifier=True)


def train(base: BaseModel, requests: list[TrainingRequest], settings: TrainingSettings = SETTINGS, pack_size: int = 3):
    results = {}
    for result in train_residuals(base, requests, settings, pack_size=pack_size):
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
    """Return a digest of every weight and buffer of the frozen model."""
    sha = hashlib.sha256()
    for module in (base.unet, base.text_encoder, base.vae):
        for name, tensor in sorted(module.state_dict().items()):
            sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()
