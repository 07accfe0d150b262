"""Sharing a text between samples equals giving every sample a copy of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persres.core.base_model import BaseModel
from persres.core.text_attention import SharedText


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def texts(seed: int) -> Tensor:
    return torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(seed))


def predict(base: BaseModel, latents: Tensor, text: Tensor) -> Tensor:
    return base.unet(latents, torch.tensor([10, 20, 30, 400, 500, 600]), text, return_dict=False)[0]


@pytest.mark.parametrize("fixed", [True, False])
def test_shared_equals_copied(base: BaseModel, latents: Tensor, fixed: bool):
    text = texts(1).requires_grad_(not fixed)
    copied = predict(base, latents, text.repeat_interleave(3, dim=0))
    shared_text = SharedText(base, fixed=fixed)
    with shared_text.attended():
        shared = predict(base, latents, text)
    torch.testing.assert_close(shared, copied, rtol=1e-4, atol=1e-5)
    if not fixed:
        gradients = [torch.autograd.grad(output.square().sum(), text)[0] for output in (shared, copied)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_fixed_text_is_kept_until_it_is_forgotten(base: BaseModel, latents: Tensor):
    shared_text = SharedText(base, fixed=True)
    with torch.no_grad(), shared_text.attended():
        first = predict(base, latents, texts(1))
        assert torch.equal(predict(base, latents, texts(2)), first)
        shared_text.forget()
        assert not torch.equal(predict(base, latents, texts(2)), first)


def test_the_processors_are_as_before_afterwards(base: BaseModel):
    before = dict(base.unet.attn_processors)
    with pytest.raises(RuntimeError, match="boom"), SharedText(base, fixed=True).attended():
        raise RuntimeError("boom")
    assert base.unet.attn_processors == before
