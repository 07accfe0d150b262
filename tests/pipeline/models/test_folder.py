from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.pipeline.models.folder import files_of_folder, may_be_read, model_files

from ...support.model_downloads import pipeline_folder, scorer_folder

PARTS = st.sampled_from(
    ["unet", "safety_checker", "model_index.json", "a.bin", "a.json", "m.fp16.safetensors", "m.safetensors"]
)


@pytest.mark.parametrize(
    ("name", "is_read"),
    [
        ("model_index.json", True),
        ("unet/diffusion_pytorch_model.safetensors", True),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", True),
        ("unet/diffusion_pytorch_model.safetensors.index.json", True),
        ("unet/diffusion_pytorch_model.fp16.safetensors", False),
        ("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", False),
        ("unet/diffusion_pytorch_model.safetensors.index.fp16.json", False),
        ("unet/diffusion_pytorch_model.bin", False),
        ("safety_checker/model.safetensors", False),
        ("v1-5-pruned.safetensors", False),
        ("SHA256SUMS", False),
        ("README.md", False),
    ],
)
def test_model_files_of_a_pipeline_folder(name, is_read):
    assert may_be_read(name, "base_model") == is_read


@given(st.lists(PARTS, min_size=1, max_size=3).map("/".join), st.sampled_from(["base_model", "scorer"]))
def test_model_files_may_all_be_fetched(tmp_path_factory, name, role):
    folder = tmp_path_factory.mktemp("model") / "m"
    (pipeline_folder if role == "base_model" else scorer_folder)(folder)
    names = {*files_of_folder(folder), name}

    read = model_files(names, folder, name="m", role=role)

    assert all(may_be_read(one, role) for one in read)
    assert (name in read) <= may_be_read(name, role)


def test_missing_component_is_found_by_names_alone(tmp_path):
    folder = pipeline_folder(tmp_path / "m")
    names = [*files_of_folder(folder), "unet/model.bin", "extra/other.bin"]
    assert "unet/model.bin" not in model_files(names, folder, name="m", role="base_model")

    names.remove("unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(InvalidInput, match=r"only as a pickle: unet/model\.bin"):
        model_files(names, folder, name="m", role="base_model")
