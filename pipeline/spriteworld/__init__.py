"""Spriteworld: a small drawn world with a base model and a scorer of its own, the default of the package.

Real pretrained weights are too large to ship. In this world the truth about every image is known: which sprite it shows
on which background. Its base model (a StableDiffusionPipeline folder) and its scorer (a CLIPModel folder) were trained
from scratch; `python -m persres.pipeline.spriteworld.training.regenerate` trains them again.

    world.py           the sprites            backgrounds.py    the backgrounds
    captions.py        captions, tokenizer    demo_catalog.py   the demo's manifest and references
    weights/           the trained models     training/         the scripts that train and evaluate them
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def base_model_path() -> Path:
    """Return the folder of the base model, for `StableDiffusionPipeline.from_pretrained`."""
    return WEIGHTS / "base"


def scorer_path() -> Path:
    """Return the folder of the scorer, for `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`."""
    return WEIGHTS / "scorer"


def _revision() -> str:
    stored = WEIGHTS / "REVISION"
    return stored.read_text().strip() if stored.exists() else "unknown"


REVISION = _revision()
"""The digest of the weight files, written by `regenerate`."""
