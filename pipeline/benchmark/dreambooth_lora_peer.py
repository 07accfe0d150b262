"""The peer's training: a reimplementation of the training loop of diffusers' DreamBooth LoRA scripts, for comparison.

The scripts are examples/dreambooth/train_dreambooth_lora.py and, for XL, train_dreambooth_lora_sdxl.py.

The same as in the scripts, with their defaults:
- one concept at a time; Accelerator (mixed precision if the model is bfloat16), `accelerator.prepare`; UNet, VAE and
  text encoder frozen, in one number format (XL: the VAE in float32, its latents in the UNet's format); the UNet in
  train mode with diffusers' own SDPA attention;
- peft LoRA by `unet.add_adapter`, gaussian initialization, alpha = rank, weights in the UNet's number format (the
  scripts convert them to float32 for fp16 only);
- a shuffling DataLoader that resizes, randomly crops and normalizes every image anew (XL: once);
- in every step, VAE encoding and a sample of its posterior, the text encoder (XL: both encoders once, before the first
  step; every step repeats their states and the pooled state for its images and adds size and crop), noise, timesteps,
  one UNet pass, MSE in float32, backward, gradient clipping to norm 1, AdamW (weight decay 0.01), the constant
  learning-rate scheduler, zero_grad, and reading the loss.

Changed to do the same job as ours: LoRA is on `proj_out` (in the scripts, on the attention projections) with our ranks,
and learning rate, batch size, prompt and iterations are ours. V* is frozen, as in the scripts.

Cached: text states as with --pre_compute_text_embeddings, which XL's script always does, and latents as with
--cache_latents of the advanced scripts: the posterior is computed once per image and sampled anew in every step.

Left out, all in the peer's favour: starting Python and loading the model for every concept, reading files, logging,
progress bars, checkpoints, validation, and saving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...core.base_model import BaseModel
from ...core.concept import expand_template
from ...core.errors import InvalidInput
from ...core.identifier_token import tokenize
from ...core.text_conditioning import TextConditioning, encode_text
from ...core.training.settings import TrainingSettings
from .shared_weights import copy_with_shared_weights

WEIGHT_DECAY = 1e-2
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class PeerModels:
    """The modules of one concept's training; the UNet may be changed, its weights are the base model's."""

    base: BaseModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @classmethod
    def load(cls, base: BaseModel) -> PeerModels:
        require_peft()
        keeps_vae = base.text_encoder_2 is not None or base.vae.dtype == base.dtype
        vae = base.vae if keeps_vae else copy_with_shared_weights(base.vae, base.dtype)
        return cls(base, copy_with_shared_weights(base.unet), vae)

    @property
    def is_xl(self) -> bool:
        return self.base.text_encoder_2 is not None


@dataclass(frozen=True, slots=True, eq=False)
class PeerTrained:
    """The losses of all steps, and the UNet with its trained LoRA."""

    losses: list[float]
    unet: UNet2DConditionModel


def require_peft() -> None:
    """Check that the peer's packages are installed.

    Raises:
        InvalidInput: peft or accelerate is not installed.
    """
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        raise InvalidInput(f"the peer to compare with needs {error.name}", fix="pip install peft accelerate") from error


def train_peer(
    models: PeerModels,
    references: Sequence[np.ndarray],
    macro_class: str,
    settings: TrainingSettings,
    *,
    cached: bool,
    on_step: Callable[[int], None] = lambda done: None,
) -> PeerTrained:
    """Train one concept's LoRA for `settings.iterations` steps.

    Args:
        models: loaded for this concept; the UNet gets the LoRA.
        references: images, each H x W x 3 uint8.
        cached: compute text states and latents once, before the first step; XL's text states always are.
        on_step: called after every step with the number of steps done.
    """
    accelerator = _accelerator(models.base)
    parameters = _add_lora(models, settings)
    optimizer: Any = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    prompt = expand_template(settings.prompt, settings.identifier_token, macro_class)
    text = _text_once(models.base, prompt) if cached or models.is_xl else None
    dataset = _dataset(models, references, prompt, cached)
    loader: Any = DataLoader(dataset, batch_size=settings.batch_size, shuffle=True, collate_fn=_collate)
    schedule: Any = get_scheduler("constant", optimizer=optimizer)
    unet: Any
    unet, optimizer, loader, schedule = accelerator.prepare(models.unet, optimizer, loader, schedule)
    noise_scheduler: Any = DDPMScheduler.from_config(models.base.noise_schedule.config)
    unet.train()
    losses: list[float] = []
    for batch in _endless(loader, settings.iterations):
        with accelerator.accumulate(unet):
            loss = _loss(models, unet, noise_scheduler, batch, text)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.detach().item())
        on_step(len(losses))
    return PeerTrained(losses, accelerator.unwrap_model(unet, keep_fp32_wrapper=False))


def _accelerator(base: BaseModel) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # A script is a process of its own, but accelerate keeps the first device and precision of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = base.device.type == "cpu"
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if base.dtype == torch.bfloat16 else "no")


def _add_lora(models: PeerModels, settings: TrainingSettings) -> list[Tensor]:
    from peft import LoraConfig

    ranks = {layer.name: layer.rank(settings.rank) for layer in models.base.target_layers}
    common = max(ranks.values())
    models.unet.add_adapter(
        LoraConfig(
            r=common,
            lora_alpha=common,
            rank_pattern=ranks,
            alpha_pattern=ranks,
            init_lora_weights="gaussian",
            target_modules=list(ranks),
        )
    )
    return [parameter for parameter in models.unet.parameters() if parameter.requires_grad]


@torch.no_grad()
def _text_once(base: BaseModel, prompt: str) -> TextConditioning:
    return encode_text(base, [tokenize(base.tokenizer, prompt)])


def _loss(
    models: PeerModels, unet: Any, noise_scheduler: Any, batch: Mapping[str, Tensor], text: TextConditioning | None
) -> Tensor:
    """Return the loss of one step."""
    latents = _latents(models, batch)
    noise = torch.randn_like(latents)
    last = noise_scheduler.config.num_train_timesteps
    timesteps = torch.randint(0, last, (latents.shape[0],), device=latents.device).long()
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    conditioning = _conditioning(models.base, batch, text, latents.shape[0])
    predicted = unet(noisy, timesteps, **conditioning, return_dict=False)[0]
    v_prediction = models.base.prediction_type == "v_prediction"
    target = noise_scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    return F.mse_loss(predicted.float(), target.float(), reduction="mean")


def _conditioning(
    base: BaseModel, batch: Mapping[str, Tensor], text: TextConditioning | None, samples: int
) -> dict[str, Any]:
    if text is None:
        text = TextConditioning(base.text_encoder(batch["ids"].to(base.device))[0])
    else:
        text = text.repeat(samples)
    return text.unet_arguments(samples, base.resolution, base.resolution)


def _latents(models: PeerModels, batch: Mapping[str, Tensor]) -> Tensor:
    if "mean" in batch:
        sample = batch["mean"] + batch["std"] * torch.randn_like(batch["mean"])
    else:
        pixels = batch["pixels"].to(models.base.device, models.vae.dtype)
        sample = models.vae.encode(pixels, return_dict=False)[0].sample()
    return (sample * float(models.vae.config["scaling_factor"])).to(models.base.dtype)


def _endless(loader: Any, steps: int) -> Iterator[dict[str, Tensor]]:
    """Yield `steps` batches, epoch after epoch."""
    count = 0
    while True:
        for batch in loader:
            if count == steps:
                return
            count += 1
            yield batch


class _Examples(Dataset[dict[str, Tensor]]):
    """One example per image, computed by `example` at each access."""

    def __init__(self, count: int, example: Callable[[int], dict[str, Tensor]]) -> None:
        self.count, self.example = count, example

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.example(index)


def _dataset(models: PeerModels, references: Sequence[np.ndarray], prompt: str, cached: bool) -> _Examples:
    base = models.base
    side, length = base.resolution, base.tokenizer.model_max_length

    def tokens() -> Tensor:
        return base.tokenizer(
            prompt, truncation=True, padding="max_length", max_length=length, return_tensors="pt"
        ).input_ids[0]

    examples: list[dict[str, Tensor]] = []
    if not cached and not models.is_xl:
        return _Examples(len(references), lambda i: {"pixels": _pixels(references[i], side), "ids": tokens()})
    if not cached:
        examples = [{"pixels": _pixels(reference, side)} for reference in references]
        return _Examples(len(examples), examples.__getitem__)
    with torch.no_grad():
        for reference in references:
            pixels = _pixels(reference, side)[None].to(base.device, models.vae.dtype)
            posterior = models.vae.encode(pixels, return_dict=False)[0]
            examples.append({"mean": posterior.mean[0], "std": posterior.std[0]})
    return _Examples(len(examples), examples.__getitem__)


def _pixels(reference: np.ndarray, side: int) -> Tensor:
    """Scale the shorter side to `side` and crop a random square: [3, side, side] in [-1, 1]."""
    image = Image.fromarray(reference)
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (int(torch.randint(0, extent - side + 1, ())) for extent in size)
    values = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def _collate(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
