"""Train the autoencoder: 64x64 images to 16x16x4 latents and back.

Shapes: images x_BCHW float [B, 3, 64, 64] in [-1, 1], latents z_BCHW [B, 4, 16, 16]. The network is convolutional, so
most steps train on 32x32 crops, which allows four times as many steps; the last ones train on whole images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..world import SIZE
from . import trainer
from .dataset import Scenes, load_scenes

STEPS = 3_000
WHOLE_FROM = 0.9
CROP = 32
CROP_BATCH, WHOLE_BATCH = 8, 4
PEAK_RATE = 2e-3
KL_WEIGHT = 5e-7
REFINE_STEPS, REFINE_RATE = 2_500, 1e-3


def new_vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,  # type: ignore[arg-type]  # declared narrower than it is
        up_block_types=("UpDecoderBlock2D",) * 3,  # type: ignore[arg-type]
        block_out_channels=(16, 32, 64),  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -4.0  # type: ignore[index, union-attr]  # little posterior noise initially
    return vae


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert images, uint8 [B, 64, 64, 3], to float [B, 3, 64, 64] in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def train_vae(steps: int = STEPS) -> None:
    """Train, or resume from the last checkpoint, and write `work/vae.pt` with the scaling factor."""
    if not (trainer.work_folder() / "vae.pt").exists():
        trainer.run_workers(_train, trainer.work_folder(), steps)


def _train(rank: int, workers: int, work: Path, steps: int) -> None:
    torch.manual_seed(17)
    vae = new_vae()
    parameters = list(vae.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    start = 0
    if saved := trainer.load_checkpoint(work / "vae-last.pt"):
        start = saved["step"]
        vae.load_state_dict(saved["vae"])
        average = saved["average"]
        optimizer.load_state_dict(saved["optimizer"])
    scenes = load_scenes(work, "train")
    for step in range(start, steps):
        x = _batch(scenes, np.random.default_rng((17, rank, step)), whole=step >= WHOLE_FROM * steps)
        trainer.set_learning_rate(optimizer, trainer.learning_rate(step, steps, PEAK_RATE, warm_up=100, hold=0.4))
        loss = _loss(vae, x, torch.Generator().manual_seed(step * workers + rank))
        trainer.optimizer_step(loss, optimizer, parameters, average, step, 0.998)
        if rank == 0 and (step + 1) % 250 == 0:
            kept = {"step": step + 1, "vae": vae.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
            trainer.save_checkpoint(work / "vae-last.pt", kept)
            trainer.log(f"vae step {step + 1}/{steps} loss {loss.item():.4f}")
            if (step + 1) % 500 == 0 and step + 1 < steps:
                trainer.log(f"vae psnr of the running weights {psnr(vae, load_scenes(work, 'held-out'), 128):.2f}")
    if rank == 0:
        _finish(vae, average, work)


def _batch(scenes: Scenes, rng: np.random.Generator, whole: bool) -> Tensor:
    index = rng.integers(len(scenes.images), size=WHOLE_BATCH if whole else CROP_BATCH)
    if whole:
        return to_tensor(scenes.images[index])
    corners = 4 * rng.integers((SIZE - CROP) // 4 + 1, size=(CROP_BATCH, 2))
    crops = [scenes.images[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corners, strict=True)]
    return to_tensor(np.stack(crops))


def _loss(vae: AutoencoderKL, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return the reconstruction loss plus a small KL term."""
    posterior = vae.encode(x_BCHW).latent_dist  # type: ignore[union-attr]
    y_BCHW = vae.decode(posterior.sample(generator)).sample  # type: ignore[union-attr]
    return _difference(y_BCHW, x_BCHW) + KL_WEIGHT * posterior.kl().mean()


def _difference(y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    return 0.5 * F.l1_loss(y_BCHW, x_BCHW) + F.mse_loss(y_BCHW, x_BCHW)


def _finish(vae: AutoencoderKL, average: list[Tensor], work: Path) -> None:
    trainer.copy_average(vae.parameters(), average)
    held_out = load_scenes(work, "held-out")
    means, _ = encode(vae, held_out.images[:512])
    scaling = 1.0 / float(means.std())
    trainer.log(f"vae psnr {psnr(vae, held_out, 512):.2f} dB, scaling factor {scaling:.4f}")
    trainer.save_checkpoint(work / "vae.pt", {"vae": vae.state_dict(), "scaling_factor": scaling})


def refine_decoder(steps: int = REFINE_STEPS) -> None:
    """Train the decoder alone, so that the UNet's latents do not change, and write `work/vae-refined.pt`."""
    if not (trainer.work_folder() / "vae-refined.pt").exists():
        trainer.run_workers(_refine, trainer.work_folder(), steps)


def _refine(rank: int, workers: int, work: Path, steps: int) -> None:
    vae = load_vae(work)
    kept = {"vae": vae.state_dict(), "scaling_factor": vae.config["scaling_factor"]}
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]  # type: ignore[union-attr]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, REFINE_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    images = load_scenes(work, "train").images
    means, stds = np.load(work / "latent-means.npy"), np.load(work / "latent-stds.npy")
    for step in range(steps):
        rng = np.random.default_rng((19, rank, step))
        index = rng.integers(len(means), size=WHOLE_BATCH)
        noise = rng.standard_normal(means[index].shape, np.float32)
        z_BCHW = torch.from_numpy((means[index] + noise * stds[index]).astype(np.float32))
        trainer.set_learning_rate(optimizer, trainer.learning_rate(step, steps, REFINE_RATE, warm_up=50, hold=0.3))
        loss = _difference(vae.decode(z_BCHW).sample, to_tensor(images[index]))  # type: ignore[union-attr]
        trainer.optimizer_step(loss, optimizer, parameters, average, step, 0.998)
        if rank == 0 and (step + 1) % 250 == 0:
            trainer.log(f"decoder step {step + 1}/{steps} loss {loss.item():.4f}")
    if rank == 0:
        trainer.copy_average(parameters, average)
        trainer.log(f"vae psnr with the refined decoder {psnr(vae, load_scenes(work, 'held-out'), 512):.2f} dB")
        trainer.save_checkpoint(work / "vae-refined.pt", {**kept, "vae": vae.state_dict()})


def load_vae(work: Path) -> AutoencoderKL:
    """Load the trained autoencoder, the refined one if it exists, with the scaling factor in its configuration."""
    refined = work / "vae-refined.pt"
    saved = torch.load(refined if refined.exists() else work / "vae.pt", weights_only=True)
    vae = new_vae()
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(scaling_factor=round(saved["scaling_factor"], 4))
    return vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return the posterior means and standard deviations of images, each [n, 4, 16, 16], unscaled."""
    means, stds = [], []
    for i in range(0, len(images), batch):
        posterior = vae.encode(to_tensor(images[i : i + batch])).latent_dist  # type: ignore[union-attr]
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def psnr(vae: AutoencoderKL, scenes: Scenes, count: int) -> float:
    """Return the mean peak signal-to-noise ratio of reconstructions, in dB."""
    x = to_tensor(scenes.images[:count])
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(64)]).clamp(-1, 1)  # type: ignore[union-attr]
    error = ((x - y) / 2).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean())
