"""Copies of a module: same output, same weights in memory, and changes that do not affect the original."""

from __future__ import annotations

import torch
from peft import LoraConfig

from persres.pipeline.benchmark.shared_weights import copy_with_shared_weights


def output_of(unet, base):
    torch.manual_seed(0)
    size, width = base.unet.config["sample_size"], base.unet.config["cross_attention_dim"]
    with torch.no_grad():
        inputs = torch.randn(2, 4, size, size), torch.tensor([5, 900]), torch.randn(2, 7, width)
        added = {"text_embeds": torch.randn(2, 24), "time_ids": torch.ones(2, 6)}  # read by XL alone
        return unet(*inputs, added_cond_kwargs=added).sample


def test_copy_computes_the_same_with_the_same_memory(base):
    other = copy_with_shared_weights(base.unet)
    torch.testing.assert_close(output_of(other, base), output_of(base.unet, base), rtol=1e-4, atol=1e-5)
    ours = {weight.data_ptr() for weight in base.unet.parameters()}
    copied = [weight for weight in other.parameters() if weight.data_ptr() not in ours]
    assert all(weight.dim() == 4 for weight in copied), "only a changed layout of convolutions needs a copy"
    assert all(weight.is_contiguous() and not weight.requires_grad for weight in other.parameters())


def test_changing_a_copy_does_not_change_the_model(base):
    before, names = output_of(base.unet, base), [name for name, _ in base.unet.named_modules()]
    other = copy_with_shared_weights(base.unet)
    other.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["proj_out"]))
    assert not torch.allclose(output_of(other, base), before)
    assert torch.equal(output_of(base.unet, base), before)
    assert [name for name, _ in base.unet.named_modules()] == names


def test_copy_in_another_number_format_has_its_own_weights(base):
    other = copy_with_shared_weights(base.vae, torch.bfloat16)
    assert other.dtype == torch.bfloat16 and base.vae.dtype == torch.float32
