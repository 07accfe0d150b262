"""Cross-attention to shared texts equals cross-attention with a copy of the text for every sample."""

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
def test_shared_texts_equal_copied_texts(base: BaseModel, latents: Tensor, fixed: bool):
    text = texts(1).requires_grad_(not fixed)
    copied = predict(base, latents, text.repeat_interleave(3, dim=0))
    shared_text = SharedText(base, fixed=fixed)
    with shared_text.attached():
        shared = predict(base, latents, text)
    torch.testing.assert_close(shared, copied, rtol=1e-4, atol=1e-5)
    if not fixed:
        gradients = [torch.autograd.grad(output.square().sum(), text)[0] for output in (shared, copied)]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_fixed_text_is_cached_until_the_cache_is_cleared(base: BaseModel, latents: Tensor):
    shared_text = SharedText(base, fixed=True)
    with torch.no_grad(), shared_text.attached():
        first = predict(base, latents, texts(1))
        assert torch.equal(predict(base, latents, texts(2)), first)
        shared_text.clear_cache()
        assert not torch.equal(predict(base, latents, texts(2)), first)


def test_processors_are_restored_after_an_error(base: BaseModel):
    before = dict(base.unet.attn_processors)
    with pytest.raises(RuntimeError, match="boom"), SharedText(base, fixed=True).attached():
        raise RuntimeError("boom")
    assert base.unet.attn_processors == before
