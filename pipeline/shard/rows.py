"""A shard's results as rows of the catalog: residuals as safetensors, renderings as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...core.base_model import BaseModel
from ...core.sampling.lag_sampling import Rendering
from ...core.sampling.settings import SamplingSettings
from ...core.scoring.quality_scores import QualityScores
from ...core.training.residual_training import TrainedResidual
from ...core.training.settings import TrainingSettings
from ..catalog.schemas import RenderingRow, ResidualRow
from ..planning.plan import PlannedConcept

LOSSES_IN_FINAL = 10
"""`final_loss` is the mean over this many last iterations, since a single loss varies mostly with its timesteps."""


def residual_row(
    planned: PlannedConcept,
    trained: TrainedResidual,
    base: BaseModel,
    settings: TrainingSettings,
    thumbnails: Sequence[bytes] = (),
) -> ResidualRow:
    """Return the row of a trained concept: its residual, how it was trained, and thumbnails of its references."""
    blob = trained.residual.to_bytes(
        {
            "concept_id": planned.concept_id,
            "macro_class": planned.row.macro_class,
            "identifier_token": settings.identifier_token,
            "base_model": base.name,
            "base_model_revision": base.revision,
            "training_fingerprint": planned.fingerprints.training,
        }
    )
    losses = tuple(float(loss) for loss in trained.losses)
    return ResidualRow(
        concept_id=planned.concept_id,
        macro_class=planned.row.macro_class,
        training_fingerprint=planned.fingerprints.training,
        base_model=base.name,
        base_model_revision=base.revision,
        identifier_token=settings.identifier_token,
        ranks=trained.residual.ranks,
        residual=blob,
        losses=losses,
        final_loss=float(np.mean(losses[-LOSSES_IN_FINAL:])),
        iterations=len(losses),
        seconds=trained.seconds,
        metadata=dict(planned.row.metadata),
        remedy=trained.remedy,
        reference_thumbnails=tuple(thumbnails),
    )


def rendering_row(
    planned: PlannedConcept, rendering: Rendering, scores: QualityScores | None, settings: SamplingSettings
) -> RenderingRow:
    """Return the row of an image: its PNG, its scores (None without a scorer), and how it was rendered."""
    request = rendering.request
    height, width = rendering.image.shape[:2]
    return RenderingRow(
        concept_id=request.concept_id,
        training_fingerprint=planned.fingerprints.training,
        rendering_fingerprint=planned.fingerprints.rendering,
        prompt_index=request.prompt_index,
        image_index=request.image_index,
        prompt_template=request.template,
        prompt=rendering.prompt,
        seed=request.seed,
        variant=request.variant,
        guidance_scale=rendering.guidance_scale,
        steps=settings.steps,
        width=width,
        height=height,
        image=_png(rendering.image),
        image_path=f"{request.concept_id}/{request.variant}-{request.prompt_index}-{request.image_index}.png",
        prompt_score=scores.prompt if scores else None,
        identity_score=scores.identity if scores else None,
        passed=scores.passed if scores else None,
        remedy=rendering.remedy,
    )


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
