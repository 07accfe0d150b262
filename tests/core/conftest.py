"""Base models of two shapes in turn, and concepts to train on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from persres.core.base_model import BaseModel
from persres.core.latents import encode_references
from persres.core.training.training_pack import TrainingRequest


@pytest.fixture(params=["sd1", "sd2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    """Convolutional proj_out with epsilon, then linear proj_out with v-prediction."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def make_request(base: BaseModel) -> Callable[..., TrainingRequest]:
    """Make a concept of random images, ready to train; the images depend on its name alone."""

    def make(concept_id: str, references: int = 3, macro_class: str = "mug", seed: int = 0) -> TrainingRequest:
        rng = np.random.default_rng(sum(concept_id.encode()))
        images = [rng.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in range(references)]
        return TrainingRequest(concept_id, macro_class, seed, encode_references(base, images))

    return make
