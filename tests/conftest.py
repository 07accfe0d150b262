"""What all tests share: one thread, Hypothesis settings, markers, and tiny base models."""

from __future__ import annotations

import os

# Read when torch and Ray are first imported, so set before any test module is. Results are compared bit for bit, and
# another number of threads may sum in another order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from persres.core.base_model import BaseModel

    from .support.tiny_models import Shape

settings.register_profile(
    "persres", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", parent=settings.get_profile("persres"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "persres"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU; mark the tests in tests/ray, which share one process and its Ray."""
    for item in items:
        if item.path.parent.name == "ray":
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.xdist_group("ray"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline folder of `sd1`."""
    return _write_tiny(tmp_path_factory, "sd1")


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline folder of `sdxl`."""
    return _write_tiny(tmp_path_factory, "sdxl")


@pytest.fixture(scope="session")
def sd1(tiny_folder: Path) -> BaseModel:
    """A tiny base model of Stable Diffusion 1.x shape: convolutional proj_out, epsilon."""
    return _load_tiny(tiny_folder)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A tiny base model of Stable Diffusion 2.x shape: linear proj_out, v-prediction."""
    return _load_tiny(_write_tiny(tmp_path_factory, "sd2"))


@pytest.fixture(scope="session")
def sdxl(sdxl_folder: Path) -> BaseModel:
    """A tiny base model of Stable Diffusion XL shape: linear proj_out, epsilon, two text encoders."""
    return _load_tiny(sdxl_folder)


# Imported here, since torch and diffusers take seconds that most sessions of a few tests need not spend.
def _write_tiny(folders: pytest.TempPathFactory, shape: Shape) -> Path:
    from .support.tiny_models import write_tiny_pipeline

    return write_tiny_pipeline(folders.mktemp(shape), shape)


def _load_tiny(folder: Path) -> BaseModel:
    from .support.tiny_models import load_tiny

    return load_tiny(folder)
