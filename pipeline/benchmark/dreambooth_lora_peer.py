"""The peer: what the training scripts in diffusers' examples/dreambooth compute, written anew for comparison.

They are train_dreambooth_lora.py, and for Stable Diffusion XL train_dreambooth_lora_sdxl.py.

Kept as they have them, at their defaults:
- one concept at a time; Accelerator (its mixed precision where the model is bfloat16), `accelerator.prepare`,
  UNet, VAE and text encoder frozen in one number format (XL: the VAE in float32, its latents in the UNet's format),
  the UNet in train mode with diffusers' own SDPA attention;
- peft LoRA through `unet.add_adapter`, gaussian start, alpha = rank, its weights in the UNet's number format (the
  scripts lift them to float32 for fp16 only);
- a DataLoader with shuffle that resizes, crops at random and normalizes every picture anew (XL: once); in every step
  VAE encoding and a sample of its posterior, the text encoder (XL: both encoders once, before the first step; every
  step repeats their states and the pooled state for its pictures and adds size and crop), noise, timesteps, one UNet
  pass, MSE in float32, backward, gradient clipping to norm 1, AdamW (weight decay 0.01), the constant rate's scheduler,
  zero_grad, and reading the loss.

Changed so that it does the same job as ours: LoRA sits on `proj_out` (theirs: the attention projections), with the
layers' own ranks, and learning rate, batch size, prompt and iterations are ours. V* is frozen, as in the scripts.

Cached: --pre_compute_text_embeddings, which XL's script always does, and the latents computed once as --cache_latents
does in the advanced scripts beside these; the posterior is kept, sampled anew in every step, and pictures are not
touched again.

Left out, all in the peer's favour: starting Python and loading the model for every concept, reading files, logging and
progress bars, checkpoints, validation, saving.
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
from .twin import twin

WEIGHT_DECAY = 1e-2
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class PeerModels:
    """What a script loads for one concept; the UNet is its own to change, the weights are the base model's."""

    base: BaseModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @classmethod
    def load(cls, base: BaseModel) -> PeerModels:
        require_peft()
        keeps_vae = base.text_encoder_2 is not None or base.vae.dtype == base.dtype
        return cls(base, twin(base.unet), base.vae if keeps_vae else twin(base.vae, base.dtype))

    @property
    def is_xl(self) -> bool:
        return self.base.text_encoder_2 is not None


@dataclass(frozen=True, slots=True, eq=False)
class PeerTrained:
    """`losses`: of every step. `unet`: with its trained LoRA inside."""

    losses: list[float]
    unet: UNet2DConditionModel

    def lora_weights(self) -> dict[str, Tensor]:
        """The LoRA as the script hands it to `save_lora_weights`."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        weights: dict[str, Tensor] = get_peft_model_state_dict(self.unet)
        return convert_state_dict_to_diffusers({name: weight.float() for name, weight in weights.items()})

    def lora_config(self) -> dict[str, Any]:
        """What a loader has to know besides the weights, since ranks differ between layers."""
        config: Any = self.unet.peft_config["default"]  # type: ignore[attr-defined]
        return config.to_dict()


def require_peft() -> None:
    """Raises:
    InvalidInput: peft, which the peer is made of, is not installed.
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
        models: loaded for this concept; its UNet is changed.
        references: H x W x 3 uint8 pictures.
        cached: text states and latents are computed once, before the first step; XL's text states always are.
        on_step: called with the number of steps done.
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

    # The script is a process of its own, and accelerate remembers the first device and precision a process asked for.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = base.device.type == "cpu"
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if base.dtype == torch.bfloat16 else "no")


def _add_lora(models: PeerModels, settings: TrainingSettings) -> list[Tensor]:
    from peft import LoraConfig

    ranks = {layer.name: layer.rank(settings.rank_fraction) for layer in models.base.target_layers}
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
    """One step's forward pass; the frozen encoders keep no graph, since nothing that reaches them needs a gradient."""
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
    """Epoch after epoch, until `steps` batches were given."""
    given = 0
    while True:
        for batch in loader:
            if given == steps:
                return
            given += 1
            yield batch


class _Examples(Dataset[dict[str, Tensor]]):
    """A picture an example, made ready anew each time it is asked for; or what was computed once from each."""

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

    kept: list[dict[str, Tensor]] = []
    if not cached and not models.is_xl:
        return _Examples(len(references), lambda i: {"pixels": _pixels(references[i], side), "ids": tokens()})
    if not cached:
        kept = [{"pixels": _pixels(reference, side)} for reference in references]
        return _Examples(len(kept), kept.__getitem__)
    with torch.no_grad():
        for reference in references:
            pixels = _pixels(reference, side)[None].to(base.device, models.vae.dtype)
            posterior = models.vae.encode(pixels, return_dict=False)[0]
            kept.append({"mean": posterior.mean[0], "std": posterior.std[0]})
    return _Examples(len(kept), kept.__getitem__)


def _pixels(reference: np.ndarray, side: int) -> Tensor:
    """[3, side, side] in [-1, 1]: the shorter side scaled to `side`, then a square cut out at random."""
    picture = Image.fromarray(reference)
    scale = side / min(picture.size)
    size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (int(torch.randint(0, extent - side + 1, ())) for extent in size)
    values = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def _collate(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
