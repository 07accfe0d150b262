"""The peer's rendering gives our images for the same residuals, prompts, noise, scheduler and guidance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from persres.core.base_model import load_base_model
from persres.core.sampling.lag_sampling import render
from persres.core.sampling.settings import SamplingSettings
from persres.pipeline.benchmark.peer_rendering import load_pipeline, render_peer
from persres.pipeline.benchmark.workloads import RenderingJob


def test_peer_renders_a_bfloat16_model_in_bfloat16(sdxl_folder, tmp_path):
    base = load_base_model(sdxl_folder, name="tiny", revision="1", dtype=torch.bfloat16)
    settings = SamplingSettings(steps=1, batch_size=2)
    pipeline, job = load_pipeline(base, settings), RenderingJob(base, settings, tmp_path, "sks")
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {part.dtype for part in modules} == {torch.bfloat16} and len(modules) == 4
    requests = job.requests("residual")
    images = render_peer(pipeline, base, job.lora_files, requests, settings, identifier_token="sks")
    assert {image.shape for image in images.values()} == {(16, 16, 3)} and images.keys() == set(requests)


@pytest.mark.parametrize(
    ("base", "changed"),
    [
        ("sd1", {}),
        ("sd2", {"scheduler": "dpmsolver++"}),
        ("sdxl", {}),
        ("sdxl", {"scheduler": "dpmsolver++", "negative_prompt": "a red car"}),
    ],
    indirect=["base"],
)
def test_peer_images_equal_ours(base, tmp_path, changed):
    settings = SamplingSettings.model_validate({"steps": 3, "batch_size": 2, **changed})
    job = RenderingJob(base, settings, tmp_path, "sks")
    requests = job.requests("residual")
    theirs = render_peer(
        load_pipeline(base, settings), base, job.lora_files, requests, settings, identifier_token="sks"
    )
    ours = render(base, job.residuals, requests, settings, identifier_token="sks")
    without = render(base, {}, job.requests("base"), settings, identifier_token="sks")
    for rendering in ours:
        np.testing.assert_allclose(theirs[rendering.request].astype(int), rendering.image.astype(int), atol=2)
    assert any(
        np.abs(one.image.astype(int) - two.image.astype(int)).max() > 2 for one, two in zip(ours, without, strict=True)
    )
