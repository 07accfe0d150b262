"""Published architectures: parameter counts, target layers, and parts that fit together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.identifier_token import tokenize_concept_prompt
from persres.pipeline.benchmark.published_shapes import PublishedShape, build_published


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def built() -> Callable[[PublishedShape], BaseModel]:
    """Build each published shape once, on the meta device, which takes no memory."""
    return cache(lambda shape: build_published(shape, device="meta", dtype=torch.bfloat16))


def encoders(base: BaseModel) -> list[torch.nn.Module]:
    return [encoder for encoder in (base.text_encoder, base.text_encoder_2) if encoder is not None]


@pytest.mark.parametrize(
    ("shape", "unet", "texts"),
    [
        ("sd1", 859_520_964, [123_060_480]),
        ("sd2", 865_910_724, [340_387_840]),
        ("sdxl", 2_567_463_684, [123_060_480, 694_659_840]),
    ],
)
def test_parameter_counts_are_the_published_ones(built, shape, unet, texts):
    base = built(shape)
    assert parameters(base.unet) == unet
    assert parameters(base.vae) == 83_653_863
    assert [parameters(encoder) for encoder in encoders(base)] == texts


def test_sd1_has_the_papers_target_layers(built):
    layers = built("sd1").target_layers
    ranks = [layer.rank(0.05) for layer in layers]
    assert len(layers) == 16 and sorted(set(ranks)) == [16, 32, 64]
    assert sum(2 * layer.width * layer.rank(0.05) for layer in layers) == 1_239_040


@pytest.mark.parametrize(
    ("shape", "side", "prediction", "kind"),
    [("sd1", 512, "epsilon", "conv"), ("sd2", 768, "v_prediction", "linear"), ("sdxl", 1024, "epsilon", "linear")],
)
def test_base_model_of_a_published_shape_has_its_properties(built, shape, side, prediction, kind):
    base = built(shape)
    assert (base.resolution, base.prediction_type) == (side, prediction)
    assert {layer.kind for layer in base.target_layers} == {kind}
    assert {part.dtype for part in (base.unet, *encoders(base))} == {torch.bfloat16} and base.vae.dtype == torch.float32
    parts = (base.unet, base.vae, *encoders(base))
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())
    prompt = tokenize_concept_prompt(base.tokenizer, "a photo of a {concept}", "sks", "mug")
    assert len(prompt.ids) == 77
    assert max(prompt.ids) < base.text_encoder.config.vocab_size


def test_parts_of_sdxl_fit_together(built):
    base = built("sdxl")
    first, second = (encoder.config for encoder in encoders(base))
    assert first.hidden_size + second.hidden_size == base.unet.config["cross_attention_dim"]
    added = 6 * base.unet.config["addition_time_embed_dim"] + second.projection_dim
    assert added == base.unet.config["projection_class_embeddings_input_dim"]
    assert base.tokenizer_2 is not None and base.tokenizer_2.model_max_length == 77
