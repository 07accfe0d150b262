from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from persres.core.base_model import load_base_model
from persres.core.text_conditioning import encode_negative


@pytest.mark.parametrize("key", [True, False, None])
def test_empty_negative_prompt_of_xl_is_that_of_diffusers(sdxl_folder: Path, tmp_path: Path, key: bool | None):
    folder = Path(shutil.copytree(sdxl_folder, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("force_zeros_for_empty_prompt", None)
    (folder / "model_index.json").write_text(
        json.dumps(index | ({} if key is None else {"force_zeros_for_empty_prompt": key}))
    )
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    assert isinstance(pipeline, StableDiffusionXLPipeline)
    _, states, _, pooled = pipeline.encode_prompt("a mug", device="cpu")  # type: ignore[arg-type]
    ours = encode_negative(load_base_model(folder, name="xl", revision="1"), "")
    assert ours.pooled is not None
    torch.testing.assert_close(ours.states, states)
    torch.testing.assert_close(ours.pooled, pooled)
    assert bool(states.any()) == (key is False)
