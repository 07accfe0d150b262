"""The frozen text-to-image model that every concept shares: tokenizers, text encoders, VAE, UNet, noise schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .errors import InvalidInput


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A `proj_out` that gets a residual: dW = A B is width x width.

    Attributes:
        name: path of the layer inside the UNet, such as "down_blocks.0.attentions.0.proj_out".
        width: m, its number of input and output channels.
        kind: "conv" (SD 1.x: a 1x1 convolution over [S, m, h, w]) or "linear" (SD 2.x: over [S, N, m]).
    """

    name: str
    width: int
    kind: Literal["conv", "linear"]

    @property
    def transformer(self) -> str:
        """Path of the Transformer2DModel whose output this layer projects."""
        return self.name.removesuffix(".proj_out")

    def rank(self, rank_fraction: float) -> int:
        """r = max(1, round(rank_fraction x m)); the paper's fraction is 0.05."""
        return max(1, round(rank_fraction * self.width))


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A Stable-Diffusion-shaped latent diffusion model (1.x, 2.x or XL), frozen and in eval mode.

    Attributes:
        name: what the run spec called it.
        revision: the commit or content digest that pins its weights.
        tokenizer_2, text_encoder_2: the second of SDXL's, else None.
    """

    name: str
    revision: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_schedule: DDPMScheduler
    scheduler_config: dict[str, Any]
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config["in_channels"])

    @property
    def pixels_per_latent(self) -> int:
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def resolution(self) -> int:
        """Side, in pixels, of the square pictures this model was trained on."""
        return int(self.unet.config["sample_size"]) * self.pixels_per_latent

    @property
    def prediction_type(self) -> str:
        """Either "epsilon" or "v_prediction": what the UNet's output means."""
        return str(self.noise_schedule.config["prediction_type"])

    @cached_property
    def target_layers(self) -> tuple[TargetLayer, ...]:
        """The `proj_out` of every Transformer2DModel, in the UNet's own order (16 of them in SD 1.x)."""
        return find_target_layers(self.unet)

    def layer(self, target: TargetLayer) -> torch.nn.Module:
        return self.unet.get_submodule(target.name)


def find_target_layers(unet: UNet2DConditionModel) -> tuple[TargetLayer, ...]:
    """The layers of a UNet that get a residual; its weights are not looked at."""
    layers = []
    for name, module in unet.named_modules():
        if not isinstance(module, Transformer2DModel):
            continue
        projection = module.proj_out
        if isinstance(projection, torch.nn.Conv2d):
            layers.append(TargetLayer(f"{name}.proj_out", projection.in_channels, "conv"))
        else:
            layers.append(TargetLayer(f"{name}.proj_out", int(projection.in_features), "linear"))
    return tuple(layers)


def load_target_layers(path: str | Path) -> tuple[TargetLayer, ...]:
    """The target layers of a base model's folder, from its configuration alone: no weights are read."""
    config: Any = UNet2DConditionModel.load_config(path, subfolder="unet", local_files_only=True)
    with torch.device("meta"):
        return find_target_layers(cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config)))


def load_xl_layers_per_block(path: str | Path) -> int | None:
    """`layers_per_block` of a base model's UNet if it is of Stable Diffusion XL's shape, else None; from its folder."""
    config: Any = UNet2DConditionModel.load_config(path, subfolder="unet", local_files_only=True)
    return int(config["layers_per_block"]) if config.get("addition_embed_type") == "text_time" else None


_PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_ONLY_XL_HAS = ("text_encoder_2", "tokenizer_2")


def check_parts(path: str | Path, name: str, *, has_weights: bool = True) -> int:
    """Refuse a base model of another kind, or of parts that do not belong together, by its configuration alone.

    Args:
        name: what the run spec calls it.
        has_weights: False: the folder holds configuration only, and its weights are not looked for.

    Returns:
        The pixels, along one side, that one latent stands for.

    Raises:
        InvalidInput: a part is missing, is of another class, or does not fit the others.
    """
    index = _configuration(path, "model_index.json", name)
    for part, classes in _PARTS.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found not in classes and not (found is None and part in _ONLY_XL_HAS):
            reason = f"base model {name!r}: its {part} is {found or 'missing'}, not {' or '.join(classes)}"
            raise InvalidInput(reason, fix=_STABLE_DIFFUSION)
        if not has_weights or not found or part in ("tokenizer", "tokenizer_2"):
            continue
        if not any((Path(path) / part).glob("*.safetensors")):
            raise InvalidInput(f"base model {name!r} has no weights (*.safetensors) in {part}", fix=_STABLE_DIFFUSION)
    unet, vae = (_configuration(path, f"{part}/config.json", name) for part in ("unet", "vae"))
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if channels != latents:
        reason = f"base model {name!r}: its unet reads {channels} channels, its vae makes {latents}"
        fix = "one for inpainting or editing reads more; give a text-to-image model"
        raise InvalidInput(reason, fix=fix)
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise InvalidInput(f"base model {name!r}: its vae/config.json names no blocks", fix=_STABLE_DIFFUSION)
    return 2 ** (len(blocks) - 1)


_STABLE_DIFFUSION = (
    "give a diffusers Stable Diffusion 1.x, 2.x or XL folder with tokenizer, text_encoder, vae, unet and scheduler, "
    "its weights as .safetensors"
)


def _configuration(path: str | Path, file: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads((Path(path) / file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = f"base model {name!r}: {file} cannot be read: {type(error).__name__}"
        raise InvalidInput(reason, fix="copy the folder again") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"base model {name!r}: {file} is no configuration", fix="copy the folder again")
    return found


def load_tokenizer(path: str | Path, subfolder: str = "tokenizer") -> CLIPTokenizer:
    """The tokenizer alone, for checking prompts without loading any weights.

    Raises:
        InvalidInput: it has no files, or damaged ones.
    """
    try:
        return CLIPTokenizer.from_pretrained(path, subfolder=subfolder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise nearly every kind
        reason = f"the base model's {subfolder} cannot be read: {_first_line(error)}"
        raise InvalidInput(
            reason, fix="copy the folder again, with tokenizer_config.json and its vocabulary"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def load_base_model(
    path: str | Path,
    *,
    name: str,
    revision: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> BaseModel:
    """Load a diffusers pipeline folder of Stable Diffusion 1.x, 2.x or XL shape.

    The UNet and the text encoders get `dtype`; the VAE stays in float32, since half-precision VAEs are known for black
    images and it runs once an image. Only safetensors weights are read: a pickle can run code.

    Raises:
        InvalidInput: a part is missing, is not of the right class, or has no safetensors weights.
    """

    def part(cls: Any, subfolder: str, part_dtype: torch.dtype) -> Any:
        return cls.from_pretrained(
            path, subfolder=subfolder, dtype=part_dtype, use_safetensors=True, local_files_only=True
        )

    try:
        tokenizer = load_tokenizer(path)
        schedule: Any = DDPMScheduler.from_pretrained(path, subfolder="scheduler", local_files_only=True)
        text_encoder = part(CLIPTextModel, "text_encoder", dtype)
        is_xl = (Path(path) / "text_encoder_2").is_dir()
        tokenizer_2 = load_tokenizer(path, "tokenizer_2") if is_xl else None
        text_encoder_2 = part(CLIPTextModelWithProjection, "text_encoder_2", dtype) if is_xl else None
        vae = _torch_dtype_part(AutoencoderKL, path, "vae", torch.float32)
        unet = _torch_dtype_part(UNet2DConditionModel, path, "unet", dtype)
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # diffusers, transformers, torch and safetensors each raise their own kinds
        raise InvalidInput(
            f"base model {name!r} could not be loaded: {_first_line(error)}", fix=_STABLE_DIFFUSION
        ) from error
    for module in filter(None, (text_encoder, text_encoder_2, vae, unet)):
        module.to(device).eval().requires_grad_(False)
    # A convolution answers in its weights' layout; with channels last, pictures become attention's sequences uncopied.
    unet.to(memory_format=torch.channels_last)
    config = dict(schedule.config)
    return BaseModel(name, revision, tokenizer, text_encoder, vae, unet, schedule, config, tokenizer_2, text_encoder_2)


def _torch_dtype_part(cls: Any, path: str | Path, subfolder: str, dtype: torch.dtype) -> Any:
    # diffusers models still spell the argument torch_dtype; transformers' spell it dtype.
    return cls.from_pretrained(
        path, subfolder=subfolder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
    )
