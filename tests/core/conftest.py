"""Tiny base models of both shapes, built once for all tests of the method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.latents import encode_references
from persres.core.training.training_pack import TrainingRequest

from ..support.tiny_models import load_tiny, write_tiny_pipeline


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are compared bit for bit; another thread count may sum in another order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("sd1"), "sd1")


@pytest.fixture(scope="session")
def sd1(tiny_folder: Path) -> BaseModel:
    return load_tiny(tiny_folder)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_tiny(write_tiny_pipeline(tmp_path_factory.mktemp("sd2"), "sd2"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("sdxl"), "sdxl")


@pytest.fixture(scope="session")
def sdxl(sdxl_folder: Path) -> BaseModel:
    return load_tiny(sdxl_folder)


@pytest.fixture(params=["sd1", "sd2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    """Both shapes in turn: convolutional proj_out with epsilon, linear proj_out with v-prediction."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def make_request(base: BaseModel):
    """A concept of random pixels, ready to train; its pixels follow from its name."""

    def make(concept_id: str, references: int = 3, macro_class: str = "mug", seed: int = 0) -> TrainingRequest:
        rng = np.random.default_rng(sum(concept_id.encode()))
        pictures = [rng.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in range(references)]
        return TrainingRequest(concept_id, macro_class, seed, encode_references(base, pictures))

    return make
