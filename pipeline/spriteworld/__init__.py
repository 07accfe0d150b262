"""Spriteworld, the embedded default: a small drawn world with its own base model and scorer.

Real pretrained weights cannot be shipped, so this package carries a world in which everything is real and measurable:
captioned sprites on describable backgrounds, a StableDiffusionPipeline folder and a CLIPModel folder, both trained from
scratch by the scripts in training/. `python -m persres.pipeline.spriteworld.training.regenerate` makes all of it again.

    world.py           what a picture is               train_vae.py        the autoencoder
    captions.py        what is said about it           train_diffusion.py  UNet and text encoder
    dataset.py         many of both, on disk           train_scorer.py     the CLIPModel
    demo_catalog.py    a manifest to try things on     train_judge.py      the classifier that evaluate.py asks
"""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def base_model_path() -> Path:
    """The folder that `StableDiffusionPipeline.from_pretrained` reads."""
    return WEIGHTS / "base"


def scorer_path() -> Path:
    """The folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read."""
    return WEIGHTS / "scorer"


def _revision() -> str:
    stored = WEIGHTS / "REVISION"
    return stored.read_text().strip() if stored.exists() else "unknown"


REVISION = _revision()
"""A digest of the weight files' content, stored by `regenerate`."""
