"""LAG's attention and masks: against a slow, explicit reference, and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st

from persres.core.base_model import BaseModel
from persres.core.sampling.attention_localization import (
    ConceptLocalization,
    LocatingAttnProcessor,
    attend_explicitly,
    attend_with_indicator,
    attention_observed,
    binarize,
)


def slow_concept_attention(query, key, concept_tokens):
    """The equation of A_iC with a loop for every sum."""
    samples, heads, positions, width = query.shape
    result = torch.zeros(samples, positions)
    for s in range(samples):
        for n in range(positions):
            for h in range(heads):
                logits = [float(query[s, h, n] @ key[s, h, j]) / math.sqrt(width) for j in range(key.shape[2])]
                total = sum(math.exp(logit) for logit in logits)
                for j, logit in enumerate(logits):
                    result[s, n] += concept_tokens[s, j] * math.exp(logit) / total / heads
    return result


@pytest.mark.parametrize("attend", [attend_explicitly, attend_with_indicator])
def test_concept_attention_equals_the_explicit_sums(attend):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 10, 4, generator=generator)
    key, value = torch.randn(2, 2, 3, 7, 4, generator=generator)
    tokens = torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]).float()
    output, attention = attend(query, key, value, tokens)
    torch.testing.assert_close(attention, slow_concept_attention(query, key, tokens), rtol=1e-5, atol=1e-6)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_fused_kernel_in_bfloat16_finds_nearly_the_same_positions():
    generator = torch.Generator().manual_seed(0)
    query = 2 * torch.randn(4, 8, 256, 40, generator=generator)
    key, value = torch.randn(2, 4, 8, 77, 40, generator=generator)
    tokens = torch.zeros(4, 77)
    tokens[:, 5:8] = 1.0
    exact = binarize(attend_explicitly(query, key, value, tokens)[1])
    half = (one.to(torch.bfloat16) for one in (query, key, value))
    fused = binarize(attend_with_indicator(*half, tokens)[1])
    assert (exact != fused).float().mean() < 0.02, "only positions near the median may differ"


def test_processor_output_equals_that_of_diffusers(base: BaseModel):
    target = base.target_layers[0]
    attention = base.unet.get_submodule(f"{target.transformer}.transformer_blocks.0.attn2")
    hidden, text = torch.randn(2, 64, 32), torch.randn(2, 16, 32)
    localization = ConceptLocalization(torch.zeros(2, 16), torch.tensor([True]))
    ours = LocatingAttnProcessor(target.transformer, localization)(attention, hidden, text)  # type: ignore[arg-type]
    theirs = AttnProcessor2_0()(attention, hidden, text)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=64, unique=True), st.randoms())
def test_median_selects_half_of_the_positions(values: list[float], random):
    random.shuffle(values)
    mask = binarize(torch.tensor([values]))
    assert int(mask.sum()) == len(values) // 2
    on = [value for value, bit in zip(values, mask[0], strict=True) if bit]
    off = [value for value, bit in zip(values, mask[0], strict=True) if not bit]
    assert min(on) > max(off)


@given(st.integers(1, 99), st.integers(2, 80))
def test_quantile_selects_its_share_of_the_positions(percent: int, positions: int):
    mask = binarize(torch.arange(positions, dtype=torch.float32)[None], percent / 100)
    assert int(mask.sum()) == positions - max(1, math.ceil(round(percent / 100 * positions, 9)))


def test_constant_attention_selects_no_position():
    assert binarize(torch.full((1, 16), 0.25)).sum() == 0


def localization_with(attention, **settings) -> ConceptLocalization:
    localization = ConceptLocalization(torch.zeros(4, 16), torch.tensor([True, False]), **settings)
    localization.observe("block", attention)
    return localization


ATTENTION = torch.tensor([[9.0, 9, 0, 0], [0, 1, 2, 3], [0, 0, 9, 9], [3, 2, 1, 0]])
"""The unconditional and the conditional sample of two images; only the conditional ones have an effect."""


def test_share_mask_gives_both_halves_the_conditional_mask():
    mask = localization_with(ATTENTION).mask("block")
    assert mask.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_base_gives_the_unconditional_half_no_residual():
    mask = localization_with(ATTENTION, unconditional="base").mask("block")
    assert mask.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_several_layers_of_a_transformer_are_averaged():
    localization = localization_with(ATTENTION)
    localization.observe("block", ATTENTION.flip(1) * 3)
    assert localization.mask("block")[1].tolist() == [1, 1, 0, 0]


def test_mask_is_dropped_once_it_is_returned():
    localization = localization_with(ATTENTION)
    localization.mask("block")
    with pytest.raises(KeyError):
        localization.mask("block")


def test_every_target_layer_is_observed_and_processors_are_restored(base: BaseModel):
    before = dict(base.unet.attn_processors)
    localization = ConceptLocalization(torch.ones(2, 16), torch.tensor([True]))
    with torch.no_grad(), attention_observed(base, localization):
        base.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 16, 32))
    for layer in base.target_layers:
        assert localization.mask(layer.transformer).shape == (2, 16 if "mid" in layer.name else 64)
    assert base.unet.attn_processors == before
