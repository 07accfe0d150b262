"""Scores of spriteworld identities that are in no training and no demo, against drawings of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from persres.core.base_model import BaseModel
from persres.core.residual import Residual
from persres.core.sampling.lag_sampling import RenderRequest, render
from persres.core.scoring.quality_scores import Scorer
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld.captions import BACKGROUND_PHRASES
from persres.pipeline.spriteworld.training.judge_demo import judge_images
from persres.pipeline.spriteworld.world import BACKGROUNDS, Identity


def backgrounds_of(name: str) -> list[str]:
    """Return all backgrounds in an order that depends on the concept: two for references, the others for prompts."""
    rng = np.random.default_rng(list(name.encode()))
    return [BACKGROUNDS[index] for index in rng.permutation(len(BACKGROUNDS))]


def judge_residuals(
    base: BaseModel,
    scorer: Scorer,
    spec: RunSpec,
    who: Sequence[tuple[str, Identity]],
    residuals: Mapping[str, Residual],
    prompts: int,
) -> np.ndarray:
    """Render each concept with LAG for `prompts` backgrounds, at most four, and judge the renderings.

    Returns:
        Identity, prompt score, and whether the background is right: [concepts, prompts, 3].
    """
    backgrounds = {name: backgrounds_of(name)[2 : 2 + prompts] for name, _ in who}
    requests = [
        RenderRequest(
            name,
            identity.macro_class,
            f"a photo of a {{concept}} {BACKGROUND_PHRASES[background][0]}",
            index,
            0,
            "lag",
            index,
        )
        for name, identity in who
        for index, background in enumerate(backgrounds[name])
    ]
    token = spec.training.identifier_token
    renderings = render(base, residuals, requests, spec.sampling, identifier_token=token)
    return np.asarray(
        [
            list(
                judge_images(
                    scorer,
                    identity,
                    [one.image for one in renderings if one.request.concept_id == name],
                    backgrounds[name],
                )
            )
            for name, identity in who
        ],
        dtype=float,
    )
