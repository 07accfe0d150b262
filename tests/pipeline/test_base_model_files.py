from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from persres.core.errors import InvalidInput, StoreError
from persres.pipeline import spriteworld
from persres.pipeline.base_model_files import resolve_base_model, resolve_model, resolve_scorer
from persres.pipeline.run_spec import RunSpec

from ..core.tiny_models import write_tiny_pipeline


def pipeline_folder(path: Path, *, weights: str = "diffusion_pytorch_model.safetensors") -> Path:
    """The files of a diffusers pipeline with one component; whether it could be used is not asked here."""
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "unet": ["diffusers", "UNet2DConditionModel"],
                "safety_checker": [None, None],
            }
        )
    )
    (path / "unet" / "config.json").write_text("{}")
    save_file({"weight": np.zeros(2, np.float32)}, path / "unet" / weights)
    return path


def scorer_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "clip"}')
    save_file({"weight": np.zeros(2, np.float32)}, path / "model.safetensors")
    return path


def test_a_folders_revision_is_its_content_wherever_it_lies(tmp_path):
    here = resolve_model(str(pipeline_folder(tmp_path / "here")))
    shutil.copytree(tmp_path / "here", tmp_path / "deep" / "there")
    os.utime(tmp_path / "deep" / "there" / "model_index.json", (1, 1))

    there = resolve_model(str(tmp_path / "deep" / "there"))

    assert here.revision == there.revision and here.revision.startswith("sha256:")
    assert there.path == str(tmp_path / "deep" / "there")


def test_every_file_that_is_read_counts_and_no_other(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    before = resolve_model(str(folder)).revision

    for ignored in ("README.md", ".git/config", "unet/.DS_Store", "unet/diffusion_pytorch_model.bin", "v1-5.ckpt"):
        (folder / ignored).parent.mkdir(exist_ok=True)
        (folder / ignored).write_bytes(b"other")
    assert resolve_model(str(folder)).revision == before

    save_file({"weight": np.ones(2, np.float32)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    changed = resolve_model(str(folder)).revision
    (folder / "unet" / "config.json").rename(folder / "unet" / "konfig.json")
    assert len({before, changed, resolve_model(str(folder)).revision}) == 3


def test_relative_folders_start_at_the_working_directory(tmp_path, monkeypatch):
    pipeline_folder(tmp_path / "models" / "m")
    monkeypatch.chdir(tmp_path)

    assert resolve_model("models/m").revision == resolve_model(str(tmp_path / "models" / "m")).revision


@pytest.mark.parametrize("weights", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt", "model.pkl"])
def test_weights_that_are_only_a_pickle_are_refused(tmp_path, weights):
    folder = pipeline_folder(tmp_path / "m", weights=weights)

    with pytest.raises(InvalidInput, match=f"pickle: unet/{weights}") as caught:
        resolve_model(str(folder))
    assert "safe_serialization" in str(caught.value)

    (scorer := tmp_path / "s").mkdir()
    (scorer / "config.json").write_text("{}")
    (scorer / weights).write_bytes(b"x")
    with pytest.raises(InvalidInput, match="pickle"):
        resolve_model(str(scorer), role="scorer")


def test_incomplete_folders_say_what_is_missing(tmp_path):
    folder = pipeline_folder(tmp_path / "m")

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="no weights"):
        resolve_model(str(folder))
    shutil.rmtree(folder / "unet")
    with pytest.raises(InvalidInput, match="lacks the folder 'unet'"):
        resolve_model(str(folder))
    (folder / "model_index.json").write_text("{")
    with pytest.raises(InvalidInput, match="damaged"):
        resolve_model(str(folder))
    (folder / "model_index.json").unlink()
    with pytest.raises(InvalidInput, match="not a diffusers pipeline: it has no model_index"):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["spritworld", "/no/such/folder", "./models/m", "s3://bucket/model", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(InvalidInput, match="no folder here and no Hub id") as caught:
        resolve_model(name)

    assert ("did you mean 'spriteworld'" in str(caught.value)) == (name == "spritworld")


def test_a_revision_is_refused_where_it_would_be_ignored(tmp_path):
    for name in ("spriteworld", str(pipeline_folder(tmp_path / "m"))):
        with pytest.raises(InvalidInput, match="has no revisions"):
            resolve_model(name, "main")


def test_spriteworld_comes_with_the_package():
    spec = RunSpec()

    assert resolve_base_model(spec).path == str(spriteworld.base_model_path())
    scorer = resolve_scorer(spec)
    assert scorer is not None and scorer.path == str(spriteworld.scorer_path())
    assert scorer.revision == resolve_base_model(spec).revision == spriteworld.REVISION


def test_base_model_and_scorer_of_a_spec(tmp_path):
    base, scorer = write_tiny_pipeline(tmp_path / "m", "sd1"), scorer_folder(tmp_path / "s")

    assert resolve_base_model(RunSpec(base_model=str(base))) == resolve_model(str(base))
    assert resolve_scorer(RunSpec(base_model=str(base))) is None
    assert resolve_scorer(RunSpec(scorer=str(scorer))) == resolve_model(str(scorer), role="scorer")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub itself, without a network and with a cache of our own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_models_revision_is_its_commit(hub_cache):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub_cache / "models--team--drawings"
    folder = pipeline_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    for revision in (None, "main", commit):
        found = resolve_model("team/drawings", revision)
        assert (found.path, found.revision) == (str(folder), commit)

    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "model.bin")
    with pytest.raises(InvalidInput, match="pickle"):
        resolve_model("team/drawings")


def test_an_unreachable_hub_is_infrastructure_and_a_bad_id_is_not(hub_cache):
    with pytest.raises(StoreError, match="cannot be reached"):
        resolve_model("team/nothing")
    with pytest.raises(InvalidInput, match="not on the Hub"):
        resolve_model("team/--")


def test_weights_cut_off_by_one_byte_are_damaged(tmp_path):
    weights = pipeline_folder(tmp_path / "m") / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    with pytest.raises(InvalidInput, match=r"unet/diffusion_pytorch_model\.safetensors is damaged or cut off"):
        resolve_model(str(tmp_path / "m"))


def test_weights_in_several_files_have_to_be_there_all(tmp_path):
    unet = pipeline_folder(tmp_path / "m", weights="part-1.safetensors") / "unet"
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(InvalidInput, match=r"names 'part-2.safetensors', which is not there"):
        resolve_model(str(tmp_path / "m"))
    save_file({"weight": np.zeros(2, np.float32)}, unet / "part-2.safetensors")
    assert resolve_model(str(tmp_path / "m")).revision
