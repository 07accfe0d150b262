"""Measure the weights on held-out prompts and images, and write `evaluation.json`.

Renderings are classified by the judge, which took no part in training; colours are also compared with six anchors.
Images are of the test split: on the held-out split some settings were chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ..captions import plain_prompt
from ..world import BACKGROUNDS, CLASSES, COLOURS
from . import trainer
from .dataset import load_scenes
from .train_diffusion import BATCH, ENCODED_IMAGES
from .train_judge import Judge, judge_accuracy, load_judge
from .train_scorer import embed_images, embed_texts, identity_similarities
from .train_vae import psnr, to_tensor

GUIDANCE, INFERENCE_STEPS = 4.0, 20
ANCHORS = ("red", "yellow", "green", "blue", "purple", "white")
"""Six distant colours."""

_PAIRS = [(kind, background) for kind in range(len(CLASSES)) for background in range(len(BACKGROUNDS))]


def evaluate(weights: Path, out: Path) -> dict[str, Any]:
    """Measure `weights`/base and `weights`/scorer, log the numbers, and write them to `out`."""
    work = trainer.work_folder()
    torch.set_num_threads(1)
    judge = load_judge(work)
    pipeline = load_pipeline(weights / "base")
    numbers: dict[str, Any] = {"guidance": GUIDANCE, "inference_steps": INFERENCE_STEPS, "scheduler": "DDIM, trailing"}
    numbers["train_pictures"] = len(load_scenes(work, "train").images)
    numbers["diffusion_samples"] = (
        torch.load(work / "diffusion.pt", weights_only=True)["step"] * BATCH * trainer.WORKERS
    )
    numbers["diffusion_pictures"] = ENCODED_IMAGES
    numbers["vocabulary"] = len(pipeline.tokenizer)
    numbers["vae_psnr_db"] = psnr(pipeline.vae, load_scenes(work, "test"), 512)
    numbers["judge_accuracy_class_background_colour"] = judge_accuracy(judge, load_scenes(work, "test"))
    numbers |= _class_and_background(pipeline, judge, out.parent)
    numbers |= _colours(pipeline, judge, out.parent)
    numbers |= _scorer(weights / "scorer", work)
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in numbers.items()}
    out.write_text(json.dumps(rounded, indent=2) + "\n")
    trainer.log(json.dumps(rounded, indent=2))
    return rounded


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, guidance: float = GUIDANCE) -> np.ndarray:
    """Render one image per prompt, each with its own seed: uint8 [n, 64, 64, 3]."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        noise = torch.cat([_noise(seed + start + i) for i in range(len(part))])
        images = pipeline(
            part,
            latents=noise,
            num_inference_steps=INFERENCE_STEPS,
            guidance_scale=guidance,
            height=64,
            width=64,
            output_type="np",
        ).images  # type: ignore[union-attr]
        pictures.append((np.asarray(images) * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def _noise(seed: int) -> Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def contact_sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    sheet = Image.fromarray(np.concatenate(rows, 0))
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)


@torch.no_grad()
def _class_and_background(pipeline: StableDiffusionPipeline, judge: Judge, folder: Path) -> dict[str, Any]:
    """Render every class on every background with four seeds, and return the shares that the judge finds right."""
    pairs = _PAIRS * 4
    pictures = sample(pipeline, [plain_prompt(CLASSES[k], BACKGROUNDS[b]) for k, b in pairs], seed=10_000)
    contact_sheet(pictures, len(BACKGROUNDS), folder / "samples.png")
    kinds, backgrounds, _ = judge(to_tensor(pictures))
    truth = torch.tensor(pairs)
    return {
        "renderings": len(pairs),
        "class_right": float((kinds.argmax(1) == truth[:, 0]).float().mean()),
        "background_right": float((backgrounds.argmax(1) == truth[:, 1]).float().mean()),
    }


@torch.no_grad()
def _colours(pipeline: StableDiffusionPipeline, judge: Judge, folder: Path) -> dict[str, Any]:
    """Render six colour words with every class on four backgrounds, and compare the colours with the words."""
    combinations = [(a, k, b) for a in range(len(ANCHORS)) for k in range(len(CLASSES)) for b in range(4)]
    prompts = [plain_prompt(CLASSES[k], BACKGROUNDS[(2 * b + k) % 8], ANCHORS[a]) for a, k, b in combinations]
    pictures = sample(pipeline, prompts, seed=20_000)
    contact_sheet(pictures, 24, folder / "colours.png")
    truth = torch.tensor([a for a, _, _ in combinations])
    _, _, colours = judge(to_tensor(pictures))
    anchors = torch.tensor([list(COLOURS).index(name) for name in ANCHORS])
    middle = np.array([_body_colour(picture) for picture in pictures])
    palette = np.array([COLOURS[name] for name in ANCHORS], float)
    nearest = np.linalg.norm(middle[:, None] - palette[None], axis=-1).argmin(1)
    explained = np.stack([middle[truth.numpy() == a].mean(0) for a in range(len(ANCHORS))])[truth.numpy()]
    return {
        "colour_renderings": len(prompts),
        "colour_judge_of_six": float((colours[:, anchors].argmax(1) == truth).float().mean()),
        "colour_judge_of_twelve": float((anchors[truth] == colours.argmax(1)).float().mean()),
        "colour_nearest_of_six": float((nearest == truth.numpy()).mean()),
        "colour_variance_explained": float(explained.var(0).sum() / middle.var(0).sum()),
    }


def _body_colour(picture: np.ndarray) -> np.ndarray:
    """Return the median colour of the middle of an image, where the sprite's body is."""
    return np.median(picture[30:50, 24:40].reshape(-1, 3), axis=0)


@torch.no_grad()
def _scorer(folder: Path, work: Path) -> dict[str, Any]:
    """Measure the scorer: zero-shot accuracy over the 48 captions "a photo of a CLASS BACKGROUND", and identity."""
    scorer = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    held_out = load_scenes(work, "test")
    captions = [plain_prompt(CLASSES[k], BACKGROUNDS[b]) for k, b in _PAIRS]
    ids = processor.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    best = (embed_images(scorer, to_tensor(held_out.images[:])) @ embed_texts(scorer, ids).T).argmax(1).numpy()
    predicted, labels = np.array(_PAIRS)[best], np.asarray(held_out.labels)
    numbers = {
        "scorer_class": float((predicted[:, 0] == labels[:, 0]).mean()),
        "scorer_background": float((predicted[:, 1] == labels[:, 1]).mean()),
    }
    return numbers | {f"scorer_{name}": value for name, value in identity_similarities(scorer, held_out).items()}
