"""Rendering with the bare base model."""

from __future__ import annotations

import numpy as np
import pytest

from persres.core.sampling.lag_sampling import render
from persres.core.sampling.settings import SamplingSettings
from persres.pipeline.benchmark.batch_rendering import render_bare
from persres.pipeline.benchmark.workloads import RenderingJob


@pytest.mark.parametrize(
    ("base", "guidance_scale"), [("sd1", 1.0), ("sd2", 7.5), ("sdxl", 1.0), ("sdxl", 7.5)], indirect=["base"]
)
def test_bare_images_equal_the_base_variant(base, tmp_path, guidance_scale):
    settings = SamplingSettings(steps=2, batch_size=4, guidance_scale=guidance_scale)
    requests = RenderingJob(base, settings, tmp_path, "sks").requests("base")[:6]  # the last batch is not full
    bare = render_bare(base, requests, settings, identifier_token="sks")
    full = render(base, {}, requests, settings, identifier_token="sks")
    assert len(bare) == len(full) == 6
    for one, other in zip(bare, full, strict=True):
        np.testing.assert_allclose(one.astype(int), other.image.astype(int), atol=2)
