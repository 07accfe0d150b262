"""Train the scorer: a CLIPModel with a contrastive loss between images and captions and one between identities.

Shapes: pixel values x_BCHW float [B, 3, 64, 64] in [-1, 1], embeddings e_BD [B, 64] of unit length, labels [B, 5].
A batch holds two images of each identity, on different backgrounds. A quarter of the identities share one class, so
that they can only be separated by colours and patterns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTextConfig, CLIPVisionConfig

from ..captions import BEGIN, END, LENGTH, build_tokenizer, stated_caption
from ..world import CLASSES, SIZE, rng_for
from . import trainer
from .dataset import Scenes, load_scenes
from .train_diffusion import scene_of
from .train_vae import to_tensor

STEPS = 2_200
IDENTITIES = 32
PEAK_RATE = 1e-3
IDENTITY_WEIGHT = 0.3
IDENTITY_TEMPERATURE = 0.1


def new_scorer() -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def new_processor() -> CLIPProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=images, tokenizer=build_tokenizer())


def embed_images(scorer: CLIPModel, x_BCHW: Tensor) -> Tensor:
    return F.normalize(scorer.visual_projection(scorer.vision_model(pixel_values=x_BCHW).pooler_output), dim=-1)


def embed_texts(scorer: CLIPModel, ids: Tensor) -> Tensor:
    return F.normalize(scorer.text_projection(scorer.text_model(input_ids=ids).pooler_output), dim=-1)


def train_scorer(steps: int = STEPS, workers: int = trainer.WORKERS) -> None:
    """Train, or resume from the last checkpoint, and write `work/scorer.pt`."""
    if not (trainer.work_folder() / "scorer.pt").exists():
        trainer.run_workers(_train, trainer.work_folder(), steps, workers=workers)


def _train(rank: int, workers: int, work: Path, steps: int) -> None:
    torch.manual_seed(61)
    scorer = new_scorer()
    parameters = list(scorer.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    start = 0
    if saved := trainer.load_checkpoint(work / "scorer-last.pt"):
        start, average = saved["step"], saved["average"]
        scorer.load_state_dict(saved["scorer"])
        optimizer.load_state_dict(saved["optimizer"])
    scenes, tokenizer = load_scenes(work, "train"), build_tokenizer()
    of_class = [np.flatnonzero(scenes.labels[::2, 0] == kind) for kind in range(len(CLASSES))]
    for step in range(start, steps):
        trainer.set_learning_rate(optimizer, trainer.learning_rate(step, steps, PEAK_RATE, warm_up=150, hold=0.3))
        rng = rng_for("scorer batch", step, rank)
        index, names = _batch_index(of_class, rng)
        labels = scenes.labels[index]
        captions, stated = zip(*(stated_caption(scene_of(f), rng) for f in labels), strict=True)
        ids = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        images = embed_images(scorer, _augment(to_tensor(scenes.images[index]), rng))
        loss = _caption_loss(scorer, images, embed_texts(scorer, ids), labels, np.array(stated))
        loss = loss + IDENTITY_WEIGHT * _identity_loss(images, torch.from_numpy(names))
        trainer.optimizer_step(loss, optimizer, parameters, average, step, 0.998)
        if rank == 0 and (step + 1) % 200 == 0:
            trainer.log(f"scorer step {step + 1}/{steps} loss {loss.item():.3f}")
            kept = {
                "step": step + 1,
                "scorer": scorer.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
            }
            trainer.save_checkpoint(work / "scorer-last.pt", kept)
    if rank == 0:
        trainer.save_checkpoint(work / "scorer.pt", {"average": average})


def _batch_index(of_class: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a batch: indices of images [2n] and of identities [2n], a quarter of the identities from one class."""
    same = rng.choice(of_class[int(rng.integers(len(of_class)))], size=IDENTITIES // 4, replace=False)
    mixed = rng.integers(sum(map(len, of_class)), size=IDENTITIES - len(same))
    names = np.repeat(np.concatenate([same, mixed]), 2)
    return 2 * names + np.tile([0, 1], IDENTITIES), names


def _augment(x_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Augment by blur and noise, as renderings have them."""
    if rng.random() < 0.3:
        x_BCHW = 0.5 * x_BCHW + 0.5 * F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
    return x_BCHW + torch.from_numpy(rng.standard_normal(x_BCHW.shape, np.float32)) * float(rng.uniform(0, 0.1))


def _caption_loss(scorer: CLIPModel, images: Tensor, texts: Tensor, labels: np.ndarray, stated: np.ndarray) -> Tensor:
    """Return the contrastive loss in which caption i matches every image j that has all labels stated in i."""
    equal = labels[:, None, :4] == labels[None, :, :4]
    matches = torch.from_numpy((equal | ~stated[:, None, :]).all(-1).astype(np.float32))
    logits = scorer.logit_scale.exp().clamp(max=50) * texts @ images.T
    by_text = -(matches / matches.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_image = -(matches / matches.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_text + by_image) / 2


def _identity_loss(images: Tensor, names: Tensor) -> Tensor:
    """Return the contrastive loss in which an image matches the other image of its identity."""
    itself = torch.eye(len(names), dtype=torch.bool)
    logits = (images @ images.T / IDENTITY_TEMPERATURE).masked_fill(itself, -1e4)
    same = (names[:, None] == names[None, :]) & ~itself
    return -(logits.log_softmax(1) * same).sum(1).div(same.sum(1)).mean()


def load_trained_scorer(work: Path) -> CLIPModel:
    scorer = new_scorer()
    average = torch.load(work / "scorer.pt", weights_only=True)["average"]
    trainer.copy_average(scorer.parameters(), average)
    return scorer.eval()


def export_scorer(folder: Path) -> None:
    """Write the CLIPModel in float16 and its processor, atomically."""
    partial = folder.with_name(folder.name + ".part")
    load_trained_scorer(trainer.work_folder()).half().save_pretrained(partial)
    new_processor().save_pretrained(partial)
    trainer.replace_folder(partial, folder)


@torch.no_grad()
def identity_similarities(scorer: CLIPModel, held_out: Scenes) -> dict[str, float]:
    """Compare two images of one identity with images of other identities of its class, on different backgrounds.

    Returns:
        The mean cosines, and the shares of images whose own identity is nearer than the mean and than every other.
    """
    e_BD = embed_images(scorer, to_tensor(held_out.images[:]))
    labels = np.asarray(held_out.labels)
    cosine = (e_BD[::2] @ e_BD[1::2].T).numpy()
    same_class = labels[::2, None, 0] == labels[None, 1::2, 0]
    other_background = labels[::2, None, 1] != labels[None, 1::2, 1]
    other = same_class & other_background & ~np.eye(len(cosine), dtype=bool)
    margin = np.array([row[other[i]].mean() < row[i] for i, row in enumerate(cosine)])
    nearest = np.array([row[other[i]].max() < row[i] for i, row in enumerate(cosine)])
    return {
        "same_identity": float(cosine.diagonal().mean()),
        "other_identity": float(cosine[other].mean()),
        "same_above_mean_other": float(margin.mean()),
        "same_above_every_other": float(nearest.mean()),
    }
