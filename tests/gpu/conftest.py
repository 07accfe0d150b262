"""Tiny base models on both devices, with full float32 precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

from persres.core.base_model import BaseModel, load_base_model

from ..support.tiny_models import Shape, write_tiny_pipeline

LoadTiny = Callable[..., BaseModel]


@pytest.fixture(scope="session")
def load_tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadTiny:
    """Load a base model by shape, device and dtype; the weights are the same on every device."""
    folder = cache(lambda shape: write_tiny_pipeline(tmp_path_factory.mktemp(shape), shape))

    def load(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> BaseModel:
        return load_base_model(folder(shape), name="tiny", revision="1", device=device, dtype=dtype)

    return cache(load)


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Compute convolutions in float32 rather than TF32, which has 10 bits of mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
