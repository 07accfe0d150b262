"""Tiny base models on either device, with float32 that means float32 on both."""

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
    """`load_tiny(shape, device, dtype)`: the same weights every time."""
    folder = cache(lambda shape: write_tiny_pipeline(tmp_path_factory.mktemp(shape), shape))

    def load(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> BaseModel:
        return load_base_model(folder(shape), name="tiny", revision="1", device=device, dtype=dtype)

    return cache(load)


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Convolutions in full float32; on CUDA they have ten bits of mantissa unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
