"""Usual forms of base models: read, or told for what they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from persres.core.errors import InvalidInput
from persres.pipeline.models.drawn_world import unknown_classes_warning
from persres.pipeline.models.folder import files_of_folder
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.planning.run_models import drawn_world_warnings
from persres.pipeline.spec.run_spec import RunSpec

from ...support.model_downloads import pipeline_folder

UNET = "unet/diffusion_pytorch_model.safetensors"


def write_weights(file: Path, *names: str, value: float = 0.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.full(2, value, np.float32) for name in names or ("a",)}, file)
    return file


def test_variant_is_read_and_digested_where_there_is_no_other(tmp_path):
    folder = pipeline_folder(tmp_path / "m", weights="diffusion_pytorch_model.fp16.safetensors")
    before = resolve_model(str(folder)).revision
    write_weights(folder / "unet" / "diffusion_pytorch_model.bf16.safetensors")
    assert resolve_model(str(folder)).revision == before, "another variant is not read"
    write_weights(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", value=1.0)
    assert resolve_model(str(folder)).revision != before


def test_every_file_that_an_index_names_is_part_of_the_revision(tmp_path):
    folder = pipeline_folder(tmp_path / "m", weights="other.safetensors")
    part = write_weights(folder / "unet" / "diffusion_pytorch_model.fp16-00001-of-00001.safetensors")
    index = folder / f"{UNET}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": part.name}}))
    before = resolve_model(str(folder)).revision
    write_weights(part, value=1.0)
    assert resolve_model(str(folder)).revision != before
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "part.bin"}}))
    (folder / "unet" / "part.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(InvalidInput, match=r"unet/.*index\.json names 'part\.bin', which is no \.safetensors file"):
        resolve_model(str(folder))


def test_component_that_is_a_link_to_a_folder_is_followed(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    plain = resolve_model(str(folder)).revision
    shutil.move(folder / "unet", tmp_path / "other-unet")
    (folder / "unet").symlink_to("../other-unet")
    assert resolve_model(str(folder)).revision == plain
    (folder / "tokenizer" / "loop").symlink_to("..")
    assert not any("loop" in name for name in files_of_folder(folder))
    os.rename(tmp_path / "other-unet", tmp_path / "gone")
    with pytest.raises(InvalidInput, match=r"lacks the folder 'unet'.*: it is a link to \.\./other-unet"):
        resolve_model(str(folder))


def test_pointers_of_git_lfs_are_told(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    for name in (UNET, "model_index.json"):
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(InvalidInput, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            resolve_model(str(folder))


def test_pipeline_with_a_transformer_is_refused_by_its_class(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="FluxPipeline: it has a transformer, FluxTransformer2DModel, and no UNet"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("conditioner.embedders.1.model.x", "is one file, a Stable Diffusion XL checkpoint. Fix: .*XLPipeline as P"),
        ("cond_stage_model.transformer.x", "is one file, a Stable Diffusion 1 .*StableDiffusionPipeline as P"),
        ("model.diffusion_model.x", r"is one file\. Fix: .*from_single_file\(.*save_pretrained\("),
        ("lora_unet_down.lora_down.weight", "is a LoRA"),
        ("double_blocks.0.img_attn.x", "is a FLUX checkpoint. Fix: give a Stable Diffusion"),
    ],
)
def test_single_file_is_told_for_what_it_is(tmp_path, weight, message):
    file = write_weights(tmp_path / "dream.safetensors", weight)
    for name in (str(file), file.as_uri()):
        with pytest.raises(InvalidInput, match=message):
            resolve_model(name)


def test_other_files_are_no_models(tmp_path):
    (tmp_path / "dream.ckpt").write_bytes(b"cos\nsystem\n")
    (tmp_path / "notes.txt").write_text("x")
    folder = pipeline_folder(tmp_path / "m")
    for name, message in {
        str(tmp_path / "dream.ckpt"): "is one file, and a pickle",
        str(tmp_path / "notes.txt"): "is a file, not a folder",
        str(tmp_path / "cut.safetensors"): "there is no such file",
        "team/dream.safetensors": "there is no such file",
        str(folder / "model_index.json"): "is one file of a model. Fix: give its folder",
    }.items():
        with pytest.raises(InvalidInput, match=message):
            resolve_model(name)


def test_names_of_a_folder_work_as_those_of_references_do(tmp_path, monkeypatch):
    folder = pipeline_folder(tmp_path / "my models" / "m")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["~/my models/m", folder.as_uri(), f"FILE://{folder}", f"file:{folder}", f"file://localhost{folder}"]
    assert {resolve_model(name).revision for name in names} == {resolve_model(str(folder)).revision}


@pytest.mark.parametrize(
    ("macro_class", "is_known"), [("mug", True), ("toy Robot", True), ("dog", False), ("car seat", False), ("", False)]
)
def test_drawn_world_names_the_classes_that_it_does_not_draw(macro_class, is_known):
    warning = unknown_classes_warning("spriteworld", "base_model", [macro_class, "fish"])
    assert (warning is None) == is_known
    assert is_known or (repr(macro_class) in warning and "fish" in warning and "set base_model" in warning)
    assert unknown_classes_warning("team/photos", "base_model", [macro_class]) is None


def test_drawn_scorer_of_another_base_model_is_warned_about_too():
    (warning,) = drawn_world_warnings(RunSpec(base_model="team/photos", scorer="spriteworld"), ["dog"])
    assert "set scorer" in warning
    assert len(drawn_world_warnings(RunSpec(), ["dog", "cat"])) == 1
