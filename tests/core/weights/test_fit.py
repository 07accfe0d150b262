"""Weights are compared with the model by name and shape, and what is not there is never drawn at random."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

from persres.core.base_model import check_weights, load_base_model
from persres.core.errors import InvalidInput
from persres.core.scoring.quality_scores import check_scorer, load_scorer
from persres.core.weights.files import UnusableWeights
from persres.core.weights.fit import check_part, load_clip, load_diffusers

from ...support.tiny_models import load_tiny, write_tiny_scorer

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


@pytest.fixture
def folder(sdxl_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sdxl_folder, tmp_path / "model"))


def change(file: Path, how: Change) -> None:
    save_file({name: tensor.clone() for name, tensor in how(load_file(file)).items()}, file, metadata={"format": "pt"})


def renamed(prefix: str) -> Change:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in sorted(weights)[1:]}


def reshaped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    first = min(weights)
    return weights | {first: torch.zeros(*weights[first].shape, 1)}


def quantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.int8) for name, tensor in weights.items()}


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (renamed("_orig_mod."), r"lacks (\d+) of \1 weights of .*; it has '_orig_mod\.[^']*'. Fix: .*_orig_mod"),
        (renamed("module."), r"lacks (\d+) of \1 weights"),
        (without_first, r"lacks 1 of \d+ weights"),
        (reshaped, r"has 1 of \d+ weights in another shape"),
        (quantized, r"holds quantized weights, such as .* of type I8"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_and_while_loading(folder, part, how, message):
    change(folder / FILES[part], how)
    for refuse in (check_weights, lambda path, name: load_base_model(path, name=name, revision="r")):
        with pytest.raises(InvalidInput, match=f"base model 'tiny': {FILES[part]} {message}"):
            refuse(folder, "tiny")


@pytest.mark.parametrize(
    ("kind", "part", "prefix"),
    [
        (CLIPTextModel, "text_encoder", ""),
        (CLIPTextModel, "text_encoder", "text_model."),
        (CLIPTextModel, "text_encoder", "clip."),
        (CLIPTextModel, "text_encoder", "module."),
        (CLIPTextModelWithProjection, "text_encoder_2", "text_model."),
        (CLIPTextModelWithProjection, "text_encoder_2", "model."),
    ],
)
def test_names_of_releases_are_taken_as_the_library_takes_them(folder, kind, part, prefix):
    before = load_clip(kind, folder / part, torch.float32).state_dict()
    change(folder / FILES[part], renamed(prefix))
    _, info = kind.from_pretrained(folder / part, output_loading_info=True)
    if info["missing_keys"]:
        with pytest.raises(UnusableWeights, match="lacks"):
            check_part(kind, folder / part, "transformers")
        return
    after = load_clip(kind, folder / part, torch.float32).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_models_are_loaded_as_their_libraries_load_them(folder):
    for kind, part in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")):
        expected, found = kind.from_pretrained(folder / part), load_clip(kind, folder / part, torch.float32)
        assert all(torch.equal(weight, found.state_dict()[name]) for name, weight in expected.state_dict().items())
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        expected, found = kind.from_pretrained(folder / part), load_diffusers(kind, folder / part, torch.bfloat16)
        for name, weight in expected.state_dict().items():
            assert torch.equal(weight.to(torch.bfloat16), found.state_dict()[name])


def test_old_names_of_attention_are_taken(folder):
    before = load_tiny(folder).vae.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def as_before(name: str) -> str:
        for new, one in old.items():
            name = name.replace(f".{new}.", f".{one}.")
        return name

    change(folder / FILES["vae"], lambda weights: {as_before(name): tensor for name, tensor in weights.items()})
    assert any("proj_attn" in name for name in load_file(folder / FILES["vae"]))
    assert check_weights(folder, "tiny") == []
    assert all(torch.equal(before[name], weight) for name, weight in load_tiny(folder).vae.state_dict().items())


def test_unused_weights_are_a_warning_unless_known_to_do_no_harm(folder):
    harmless = {"text_model.embeddings.position_ids": torch.arange(16)[None], "ema.decay": torch.zeros(1)}
    change(folder / FILES["text_encoder"], lambda weights: weights | harmless)
    assert check_weights(folder, "tiny") == []
    change(folder / FILES["unet"], lambda weights: weights | {"motion.weight": torch.zeros(2)})
    (warning,) = check_weights(folder, "tiny")
    assert "unet/diffusion_pytorch_model.safetensors holds 1 weights" in warning and "'motion.weight'" in warning


def test_scorer_whose_weights_do_not_fit_is_refused(tmp_path):
    scorer = write_tiny_scorer(tmp_path / "scorer")
    assert check_scorer(scorer, "s") == []
    change(scorer / "model.safetensors", renamed("_orig_mod."))
    with pytest.raises(InvalidInput, match=r"scorer 's': model\.safetensors lacks (\d+) of \1 weights of CLIPModel"):
        check_scorer(scorer, "s")
    with pytest.raises(InvalidInput, match="lacks"):
        load_scorer(scorer)


def test_file_above_a_part_and_adapters_beside_it_are_not_read(folder):
    before = load_tiny(folder)
    save_file({"x": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    (folder / "text_encoder" / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    after = load_tiny(folder)
    for part in ("unet", "text_encoder"):
        weights = getattr(after, part).state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in getattr(before, part).state_dict().items())


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema"])
def test_weights_that_are_there_as_a_variant_only_are_read(folder, variant):
    before = load_tiny(folder)
    for name in FILES.values():
        (folder / name).rename((folder / name).with_suffix(f".{variant}.safetensors"))
    assert check_weights(folder, "tiny") == []
    after = load_tiny(folder)
    for part in FILES:
        weights = getattr(after, part).state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in getattr(before, part).state_dict().items())


def test_quantized_configuration_is_refused(folder):
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(InvalidInput, match=r"text_encoder/config\.json says that the weights are quantized"):
        check_weights(folder, "tiny")


def test_whole_clip_serves_as_a_text_encoder(tmp_path):
    scorer = write_tiny_scorer(tmp_path / "scorer")
    found = check_part(CLIPModel, scorer, "transformers")
    assert found.warning is None and set(found.placed) == set(found.placed.values())
