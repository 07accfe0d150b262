"""Base models: their folders are checked by configuration alone, and damaged files are invalid input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from persres.core.base_model import check_parts, load_base_model, load_tokenizer
from persres.core.errors import InvalidInput


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_models_of_every_shape_pass(tiny_folder, sdxl_folder, sd1):
    for path in (tiny_folder, sdxl_folder):
        assert check_parts(path, "tiny") == sd1.pixels_per_latent == 2


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "its vae is AutoencoderTiny, not AutoencoderKL",
        ),
        ("model_index.json", {"text_encoder": None}, "its text_encoder is missing, not CLIPTextModel"),
        ("model_index.json", {"unet": "UNet2DConditionModel"}, "its unet is missing"),
        ("unet/config.json", {"in_channels": 9}, "its unet takes 9 channels, its vae produces 4"),
        ("vae/config.json", {"block_out_channels": []}, "has no block_out_channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_unsupported_parts_are_refused(folder, file, values, message):
    change(folder / file, **values)
    with pytest.raises(InvalidInput) as refused:
        check_parts(folder, "tiny")
    assert message in str(refused.value) and refused.value.fix


def test_configuration_that_is_no_object_is_refused(folder):
    (folder / "vae" / "config.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"vae/config\.json is not a JSON object"):
        check_parts(folder, "tiny")


def test_weights_that_do_not_fit_their_configuration_are_invalid_input(folder):
    change(folder / "unet" / "config.json", block_out_channels=[64, 64])
    with pytest.raises(InvalidInput, match=r"base model 'tiny': unet/.*safetensors .* config\.json says"):
        load_base_model(folder, name="tiny", revision="")


def test_model_that_predicts_the_sample_is_not_trained_as_if_it_predicted_noise(folder):
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(InvalidInput, match="predicts 'sample'"):
        load_base_model(folder, name="tiny", revision="")


def test_damaged_tokenizer_is_invalid_input(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidInput, match="the base model's tokenizer cannot be read"):
        load_tokenizer(folder)
