"""Train the UNet and the text encoder together, on cached latents and random captions.

Shapes: latents z_BCHW [B, 4, 16, 16] (scaled to unit variance), token ids [B, 24], text states [B, 24, 128].
The noise schedule ends in pure noise (rescaled betas), so the model predicts v. Otherwise colour words have no effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..captions import BEGIN, END, LENGTH, Scene, build_tokenizer, caption
from ..world import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, rng_for
from . import trainer
from .dataset import load_scenes
from .train_vae import encode, load_vae

STEPS = 7_600
BATCH = 12
PEAK_RATE = 1.2e-3
EMA_DECAY = 0.999
TEXT_WIDTH = 128
ENCODED_IMAGES = 32_000
_COLOUR_NAMES = tuple(COLOURS)


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_unet() -> UNet2DConditionModel:
    """Build the UNet: 3.8M weights, and seven target layers (convolutional proj_out) at 16x16, 8x8 and 4x4."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 96, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".proj_out")) or name == "conv_out":  # initially the identity, which trains faster
            nn.init.zeros_(cast(nn.Conv2d, module).weight)
    return unet


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
    )
    return CLIPTextModel(config)


def scene_of(labels: np.ndarray) -> Scene:
    kind, background, body, pattern, trim = (int(x) for x in labels)
    return Scene(CLASSES[kind], BACKGROUNDS[background], _COLOUR_NAMES[body], PATTERNS[pattern], _COLOUR_NAMES[trim])


def cache_latents(work: Path) -> None:
    """Encode the first `ENCODED_IMAGES` training images: means and deviations, float16 [n, 4, 16, 16], unscaled."""
    if not (work / "latent-stds.npy").exists():
        trainer.run_workers(_cache_part, work)
        for name in ("means", "stds"):
            parts = [np.load(work / f"latent-{name}-{rank}.npy") for rank in range(trainer.WORKERS)]
            np.save(work / f"latent-{name}.npy", np.concatenate(parts))


def _cache_part(rank: int, workers: int, work: Path) -> None:
    images = np.array_split(load_scenes(work, "train").images[:ENCODED_IMAGES], workers)[rank]
    for name, values in zip(("means", "stds"), encode(load_vae(work), images), strict=True):
        np.save(work / f"latent-{name}-{rank}.npy", values.half().numpy())


def train_diffusion(steps: int = STEPS) -> None:
    """Train, or resume from the last checkpoint, and write `work/diffusion.pt`."""
    work = trainer.work_folder()
    cache_latents(work)
    if not (work / "diffusion.pt").exists():
        trainer.run_workers(_train, work, steps)


def _train(rank: int, workers: int, work: Path, steps: int) -> None:
    torch.manual_seed(29)
    tokenizer, scheduler = build_tokenizer(), new_scheduler()
    unet, text = new_unet(), new_text_encoder(tokenizer)
    both = nn.ModuleList([unet, text])
    parameters = list(both.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    start = 0
    if saved := trainer.load_checkpoint(work / "diffusion-last.pt"):
        start, average = saved["step"], saved["average"]
        both.load_state_dict(saved["both"])
        optimizer.load_state_dict(saved["optimizer"])
    batches = _Batches(work, tokenizer, rank)
    running = 0.0
    for step in range(start, steps):
        z_BCHW, ids, t, noise = batches[step]
        trainer.set_learning_rate(optimizer, trainer.learning_rate(step, steps, PEAK_RATE, warm_up=200, hold=0.5))
        noisy = scheduler.add_noise(z_BCHW, noise, t)  # type: ignore[arg-type]
        target = scheduler.get_velocity(z_BCHW, noise, t)  # type: ignore[arg-type]
        loss = F.mse_loss(unet(noisy, t, encoder_hidden_states=text(ids)[0]).sample, target)
        trainer.optimizer_step(loss, optimizer, parameters, average, step, EMA_DECAY)
        running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and (step + 1) % 50 == 0:
            trainer.log(f"diffusion step {step + 1}/{steps} loss {running:.4f}")
        if rank == 0 and ((step + 1) % 200 == 0 or step + 1 == steps):
            kept = {
                "step": step + 1,
                "both": both.state_dict(),
                "average": average,
                "optimizer": optimizer.state_dict(),
            }
            trainer.save_checkpoint(work / "diffusion-last.pt", kept)
    if rank == 0:
        trainer.save_checkpoint(work / "diffusion.pt", {"step": steps, "average": average})


class _Batches:
    """Latents, token ids, timesteps and noise of each step, which depend on the step and the worker's rank alone."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, rank: int) -> None:
        self.means, self.stds = np.load(work / "latent-means.npy"), np.load(work / "latent-stds.npy")
        self.labels = load_scenes(work, "train").labels
        self.scaling = float(load_vae(work).config["scaling_factor"])
        self.tokenizer, self.rank = tokenizer, rank

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = rng_for("diffusion batch", step, self.rank)
        index = rng.integers(len(self.means), size=BATCH)
        shape = (BATCH, *self.means.shape[1:])
        spread = rng.standard_normal(shape, np.float32) * self.stds[index]
        z = torch.from_numpy((self.means[index] + spread).astype(np.float32)) * self.scaling
        captions = [caption(scene_of(self.labels[i]), rng) for i in index]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        strata = (rng.permutation(BATCH) + rng.random(BATCH)) / BATCH  # one timestep in every twelfth of the range
        t = torch.from_numpy((strata * 1000).astype(np.int64))
        return z, ids, t, torch.from_numpy(rng.standard_normal(shape, np.float32))


def export_pipeline(checkpoint: Path, folder: Path) -> None:
    """Write the averaged weights of a checkpoint as a StableDiffusionPipeline folder in float16, atomically."""
    work = trainer.work_folder()
    tokenizer = build_tokenizer()
    unet, text = new_unet(), new_text_encoder(tokenizer)
    average = torch.load(checkpoint, weights_only=True)["average"]
    trainer.copy_average(nn.ModuleList([unet, text]).parameters(), average)
    vae = load_vae(work)
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half().eval(),
        tokenizer=tokenizer,
        unet=unet.half().eval(),
        scheduler=new_scheduler(),  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    partial = folder.with_name(folder.name + ".part")
    pipeline.save_pretrained(partial, safe_serialization=True)
    trainer.replace_folder(partial, folder)
