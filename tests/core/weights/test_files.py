"""An index names safetensors files of its own folder, and nothing else is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from persres.core.weights.files import UnusableWeights, check_file, find_weights, weights_entry

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def write_index(folder: Path, part: object, name: str = INDEX) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {"a": part}}))
    return folder / name


def write_part(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.zeros(3, np.float32)}, file)
    return file


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("part.bin", "names 'part.bin', which is no .safetensors file"),
        ("part.safetensors.pt", "which is no .safetensors file"),
        ("../part.safetensors", "which lies outside of its folder"),
        ("sub/part.safetensors", "which lies outside of its folder"),
        ("/etc/part.safetensors", "which lies outside of its folder"),
        ("gone.safetensors", "names 'gone.safetensors', which is not there"),
        (None, "is damaged or cut off"),
        ([], "is damaged or cut off"),
    ],
)
def test_index_may_only_name_safetensors_files_beside_it(tmp_path, part, message):
    index = write_index(tmp_path / "m" / "unet", part)
    for name in ("part.bin", "part.safetensors.pt", "../part.safetensors", "sub/part.safetensors"):
        write_part(index.parent / name)
    with pytest.raises(UnusableWeights) as refused:
        check_file(index)
    assert message in refused.value.message and refused.value.message.startswith(INDEX) and refused.value.fix


def test_part_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    index = write_index(tmp_path / "m", "part.safetensors")
    (tmp_path / "m" / "part.safetensors").symlink_to(write_part(tmp_path / "elsewhere" / "part.safetensors"))
    with pytest.raises(UnusableWeights, match="lies outside of its folder"):
        check_file(index)


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c" / "unet"
    snapshot.mkdir(parents=True)
    os.rename(write_index(blobs, "part.safetensors"), blobs / "0")
    os.rename(write_part(blobs / "part.safetensors"), blobs / "1")
    (snapshot / INDEX).symlink_to(blobs / "0")
    (snapshot / "part.safetensors").symlink_to(blobs / "1")
    check_file(snapshot / INDEX)
    assert find_weights(snapshot, "diffusers").stored()["a"].shape == (3,)


def test_weight_counts_only_in_the_file_that_the_index_names(tmp_path):
    index = write_index(tmp_path, "other.safetensors")
    write_part(tmp_path / "part.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    assert find_weights(index.parent, "diffusers").stored() == {}


def test_pointer_of_git_lfs_is_told_for_what_it_is(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3438167540\n"
    for name in ("model.safetensors", "model.safetensors.index.json", "tokenizer.json"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(UnusableWeights, match=f"{name} is a Git LFS pointer") as refused:
            check_file(tmp_path / name)
        assert "git lfs pull" in refused.value.fix


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["model.safetensors"], ("model.safetensors", None)),
        (["model.fp16.safetensors", "model.safetensors"], ("model.safetensors", None)),
        (["model.bf16.safetensors", "model.fp16.safetensors"], ("model.fp16.safetensors", "fp16")),
        (["model.safetensors.index.fp16.json"], ("model.safetensors.index.fp16.json", "fp16")),
        (["diffusion_pytorch_model.safetensors", "model.bin", "pytorch_model.bin"], None),
    ],
)
def test_plain_names_come_before_variants(names, expected):
    assert weights_entry(names, "transformers") == expected
