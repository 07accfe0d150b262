"""The shipped weights: folders that diffusers and transformers open, with the digest of REVISION."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from persres.pipeline.spriteworld import REVISION, WEIGHTS, base_model_path, scorer_path
from persres.pipeline.spriteworld.captions import DEFAULT_INITIALIZER, plain_prompt
from persres.pipeline.spriteworld.training.regenerate import content_digest
from persres.pipeline.spriteworld.world import BACKGROUNDS, CLASSES, draw, random_identity


def test_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 12_000_000


def test_revision_is_the_digest_of_the_content() -> None:
    assert content_digest(WEIGHTS) == REVISION


def test_base_model_is_a_stable_diffusion_pipeline() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base_model_path(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings = pipeline.scheduler.config
    assert (settings["prediction_type"], settings["timestep_spacing"]) == ("v_prediction", "trailing")
    assert settings["rescale_betas_zero_snr"] and not settings["clip_sample"]
    targets = [name for name, _ in pipeline.unet.named_modules() if name.endswith("proj_out")]
    assert len(targets) == 7
    assert len(pipeline.tokenizer(f"a {DEFAULT_INITIALIZER} mug").input_ids) == 5
    prompt = plain_prompt("mug", "grass")
    images = pipeline(prompt, num_inference_steps=2, height=64, width=64, output_type="np").images
    assert np.asarray(images).shape == (1, 64, 64, 3) and np.isfinite(images).all()


def test_scorer_separates_classes_backgrounds_and_identities() -> None:
    scorer = CLIPModel.from_pretrained(scorer_path(), dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(scorer_path())
    pairs = [(kind, background) for kind in CLASSES for background in BACKGROUNDS]
    identities = {kind: random_identity(f"scorer test/{kind}", kind) for kind in CLASSES}
    images = [Image.fromarray(draw(identities[kind], background, "scorer test")[0]) for kind, background in pairs]
    batch = processor(text=[plain_prompt(*pair) for pair in pairs], images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        answer = scorer(**batch)
    best = answer.logits_per_image.argmax(1).tolist()
    assert sum(pairs[b][0] == kind for b, (kind, _) in zip(best, pairs, strict=True)) >= 45
    assert sum(pairs[b][1] == background for b, (_, background) in zip(best, pairs, strict=True)) >= 45
    e = answer.image_embeds / answer.image_embeds.norm(dim=-1, keepdim=True)
    similar = (e @ e.T).reshape(6, 8, 6, 8).mean((1, 3))
    assert (similar.argmax(1) == torch.arange(6)).all()
