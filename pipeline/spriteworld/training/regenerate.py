"""Regenerate everything in `weights/`: `python -m persres.pipeline.spriteworld.training.regenerate`.

Each step writes its result to the work folder (SPRITEWORLD_WORK, default build/spriteworld) and is skipped if that
exists; a training that was killed resumes from its last checkpoint. Two CPU cores need about two hours.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

from .. import WEIGHTS
from . import trainer
from .dataset import HELD_OUT_IDENTITIES, TRAIN_IDENTITIES, make_scenes
from .evaluate import evaluate
from .model_card import write_model_card
from .train_diffusion import export_pipeline, train_diffusion
from .train_judge import train_judge
from .train_scorer import export_scorer, train_scorer
from .train_vae import refine_decoder, train_vae


def regenerate(weights: Path = WEIGHTS) -> None:
    """Draw, train, export and evaluate; every step whose result exists is skipped."""
    work = trainer.work_folder()
    make_scenes(work, "held-out", HELD_OUT_IDENTITIES)
    make_scenes(work, "test", HELD_OUT_IDENTITIES)
    make_scenes(work, "train", TRAIN_IDENTITIES)
    train_vae()
    train_diffusion()
    refine_decoder()
    train_scorer()
    train_judge()
    weights.mkdir(exist_ok=True)
    export_pipeline(work / "diffusion.pt", weights / "base")
    export_scorer(weights / "scorer")
    (weights / "REVISION").write_text(content_digest(weights) + "\n")
    write_model_card(weights, evaluate(weights, work / "evaluation.json"))
    shutil.copy(work / "evaluation.json", weights / "evaluation.json")


def content_digest(weights: Path) -> str:
    """Return a digest, 16 hex digits, of the names and bytes of all files below base/ and scorer/."""
    digest = hashlib.sha256()
    for path in sorted(p for part in ("base", "scorer") for p in (weights / part).rglob("*") if p.is_file()):
        digest.update(path.relative_to(weights).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    regenerate()
