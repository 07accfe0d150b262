"""Results as rows of the catalog."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from persres.core.residual import Residual
from persres.core.sampling.lag_sampling import Rendering, RenderRequest
from persres.core.sampling.settings import SamplingSettings
from persres.core.scoring.quality_scores import QualityScores
from persres.core.training.residual_training import TrainedResidual
from persres.core.training.settings import TrainingSettings
from persres.pipeline.shard.rows import rendering_row, residual_row

from ...support.catalog_factories import drawing, planned
from ...support.tiny_models import load_tiny, write_tiny_pipeline


def test_residual_row_describes_the_training(tmp_path):
    base = load_tiny(write_tiny_pipeline(tmp_path, "sd1"))
    losses = np.array([9.0, *[1.0] * 9, 3.0], np.float32)
    residual = Residual({"mid": torch.zeros(4, 2)}, {"mid": torch.ones(2, 4)})
    trained = TrainedResidual("one", residual, losses, 2.5, remedy="learning rate x 0.25, because")
    row = residual_row(planned("one"), trained, base, TrainingSettings())
    assert row.iterations == 11 and len(row.losses) == 11, "training ended early"
    assert row.final_loss == 1.2, "the mean of the last ten"
    assert row.seconds == 2.5 and row.ranks == {"mid": 2} and row.base_model_revision == base.revision
    assert torch.equal(load(row.residual)["mid.B"], torch.ones(2, 4))
    assert row.remedy == "learning rate x 0.25, because"


def test_rendering_row_holds_the_exact_image_and_its_parameters():
    request = RenderRequest("one", "mug", "a {concept} on grass", 2, 1, "lag", 77)
    rendering = Rendering(request, "a sks mug on grass", drawing("one"), 2.0, remedy="guidance scale 2, because")
    settings = SamplingSettings(steps=7, guidance_scale=3.0)
    row = rendering_row(planned("one"), rendering, QualityScores(0.25, 0.5, True), settings)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row.image))), drawing("one"))
    assert (row.image_path, row.prompt, row.seed) == ("one/lag-2-1.png", "a sks mug on grass", 77)
    assert (row.steps, row.guidance_scale, row.width, row.height) == (7, 2.0, 24, 24), "not the settings' scale"
    assert row.remedy == "guidance scale 2, because"
    assert (row.prompt_score, row.identity_score, row.passed) == (0.25, 0.5, True)
    unscored = rendering_row(planned("one"), rendering, None, settings)
    assert unscored.prompt_score is None and unscored.passed is None
