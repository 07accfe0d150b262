"""The peer's training: the same layers as ours, a falling loss, and a LoRA file that diffusers loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict

from persres.core.base_model import BaseModel, load_base_model
from persres.core.latents import encode_references
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.benchmark.dreambooth_lora_peer import PeerModels, PeerTrained, train_peer
from persres.pipeline.benchmark.peer_rendering import load_pipeline
from persres.pipeline.spriteworld.demo_catalog import demo_identities
from persres.pipeline.spriteworld.world import draw


def random_images(base: BaseModel, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (base.resolution + 5, base.resolution, 3), dtype=np.uint8) for _ in range(count)]


def lora_weights(peer: PeerTrained) -> dict[str, torch.Tensor]:
    """Return the LoRA as the script passes it to `save_lora_weights`."""
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(peer.unet)
    return convert_state_dict_to_diffusers({name: weight.float() for name, weight in weights.items()})


def trained(base: BaseModel, *, cached: bool = False, iterations: int = 3) -> PeerTrained:
    torch.manual_seed(0)
    settings = TrainingSettings(iterations=iterations, batch_size=2, learning_rate=1e-2)
    return train_peer(PeerModels.load(base), random_images(base), "mug", settings, cached=cached)


every_kind = pytest.mark.parametrize(
    ("base", "cached"),
    [("sd1", False), ("sd1", True), ("sd2", False), ("sdxl", False), ("sdxl", True)],
    indirect=["base"],
)


@every_kind
def test_peer_trains_our_layers_with_our_ranks(base, cached):
    peer = trained(base, cached=cached)
    assert len(peer.losses) == 3 and all(np.isfinite(peer.losses))
    weights = lora_weights(peer)
    assert len(weights) == 2 * len(base.target_layers)
    for layer in base.target_layers:
        down, up = weights[f"{layer.name}.lora_A.weight"], weights[f"{layer.name}.lora_B.weight"]
        assert down.shape[:2] == (layer.rank(0.05), layer.width)
        assert up.shape[:2] == (layer.width, layer.rank(0.05))
        assert up.abs().max() > 0, "initially zero, so changed by training"
    trainable = {name for name, parameter in peer.unet.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and "proj_out" in name for name in trainable)


@pytest.mark.parametrize(
    ("folder", "vae_dtype"), [("tiny_folder", torch.bfloat16), ("sdxl_folder", torch.float32)], ids=["sd1", "sdxl"]
)
def test_peer_of_a_bfloat16_model_is_bfloat16_but_for_xls_vae_and_the_loss(request, folder, vae_dtype):
    base = load_base_model(request.getfixturevalue(folder), name="tiny", revision="1", dtype=torch.bfloat16)
    models = PeerModels.load(base)
    assert models.unet.dtype == torch.bfloat16 and models.vae.dtype == vae_dtype
    settings = TrainingSettings(iterations=2, batch_size=2)
    peer = train_peer(models, random_images(base), "mug", settings, cached=False)
    assert {weight.dtype for weight in peer.unet.parameters()} == {torch.bfloat16}
    assert any(torch.tensor(loss).bfloat16().item() != loss for loss in peer.losses)


def test_peer_does_not_change_the_base_model(base):
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    trained(base, iterations=1)
    assert all(torch.equal(weight, before[name]) for name, weight in base.unet.state_dict().items())
    assert before.keys() == base.unet.state_dict().keys()
    assert not base.unet.training and not any(parameter.requires_grad for parameter in base.unet.parameters())


@pytest.mark.parametrize(
    ("base", "cached", "encodings"),
    [("sd1", False, ["first"] * 2), ("sd1", True, ["first"]), ("sdxl", False, ["first", "second"])],
    indirect=["base"],
)
def test_text_encoder_is_in_the_loop_unless_cached_or_xl(base, cached, encodings):
    calls: list[str] = []
    encoders = {"first": base.text_encoder, "second": base.text_encoder_2}
    handles = [
        encoder.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, encoder in encoders.items()
        if encoder is not None
    ]
    trained(base, cached=cached, iterations=2)
    for handle in handles:
        handle.remove()
    assert calls == encodings


def test_xl_conditioning_equals_that_of_the_xl_pipeline(sdxl):
    models, calls = PeerModels.load(sdxl), []
    models.unet.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    train_peer(models, random_images(sdxl), "mug", TrainingSettings(iterations=1, batch_size=2), cached=False)
    pipeline, size = load_pipeline(sdxl, SamplingSettings(steps=1)), (sdxl.resolution, sdxl.resolution)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    states, _, pooled, _ = pipeline.encode_prompt(["a photo of a sks mug"] * 2, do_classifier_free_guidance=False)
    sizes = pipeline._get_add_time_ids(size, (0, 0), size, states.dtype, pooled.shape[1])
    torch.testing.assert_close(calls[0]["encoder_hidden_states"], states)
    torch.testing.assert_close(calls[0]["added_cond_kwargs"], {"text_embeds": pooled, "time_ids": sizes.repeat(2, 1)})


def test_peer_lowers_the_loss_on_its_references(spriteworld):
    _, who = demo_identities(1)[0]
    references = [draw(who, "snow", f"peer/{number}")[0] for number in range(4)]
    settings = TrainingSettings(iterations=8, learning_rate=2e-2)
    torch.manual_seed(0)
    peer = train_peer(PeerModels.load(spriteworld), references, who.macro_class, settings, cached=True)
    before = loss_at_fixed_noise(spriteworld, spriteworld.unet, references)
    assert loss_at_fixed_noise(spriteworld, peer.unet, references) < 0.95 * before


@torch.no_grad()
def loss_at_fixed_noise(base: BaseModel, unet, references: list[np.ndarray]) -> float:
    clean = encode_references(base, references).mean.repeat(3, 1, 1, 1)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(clean.shape, generator=generator)
    timesteps = torch.linspace(20, 900, len(clean)).long()
    text = base.text_encoder(torch.ones(len(clean), 24, dtype=torch.long))[0]
    schedule = base.noise_schedule
    predicted = unet(schedule.add_noise(clean, noise, timesteps), timesteps, text).sample
    return float((predicted - schedule.get_velocity(clean, noise, timesteps)).square().mean())


def test_peer_file_gives_the_same_output_in_the_peers_pipeline(base, tmp_path):
    peer = trained(base)
    pipeline = load_pipeline(base, SamplingSettings(steps=1))
    config: Any = peer.unet.peft_config["default"]  # type: ignore[attr-defined]
    pipeline.save_lora_weights(
        tmp_path, unet_lora_layers=lora_weights(peer), unet_lora_adapter_metadata=config.to_dict()
    )
    pipeline.load_lora_weights(str(tmp_path))
    size, width = base.unet.config["sample_size"], base.unet.config["cross_attention_dim"]
    inputs = torch.randn(2, 4, size, size), torch.tensor([10, 500]), torch.randn(2, 5, width)
    added = {"text_embeds": torch.randn(2, 24), "time_ids": torch.ones(2, 6)}  # read by XL alone
    with torch.no_grad():
        loaded, kept, bare = (
            unet(*inputs, added_cond_kwargs=added).sample for unet in (pipeline.unet, peer.unet, base.unet)
        )
    torch.testing.assert_close(loaded, kept, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loaded, bare, atol=1e-4)
