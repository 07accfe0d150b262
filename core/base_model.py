"""The frozen text-to-image model that every concept shares: tokenizers, text encoders, VAE, UNet, noise schedule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .errors import InvalidInput
from .weights.files import COPY_AGAIN, Library, UnusableWeights, damaged, is_lfs_pointer
from .weights.fit import check_part, load_clip, load_diffusers


@dataclass(frozen=True, slots=True)
class TargetLayer:
    """A `proj_out` that gets a residual: dW = A B is width x width.

    Attributes:
        name: its path in the UNet, such as "down_blocks.0.attentions.0.proj_out".
        width: m, its number of input and of output channels.
        kind: "conv" (SD 1.x: a 1x1 convolution over [S, m, h, w]) or "linear" (SD 2.x and XL: over [S, N, m]).
    """

    name: str
    width: int
    kind: Literal["conv", "linear"]

    @property
    def transformer(self) -> str:
        """The path of the Transformer2DModel that this layer belongs to."""
        return self.name.removesuffix(".proj_out")

    def rank(self, rank: int | float) -> int:
        """The rank r of its residual: `rank` if an int (at most m), else max(1, round(rank x m)); paper: 0.05."""
        return min(rank, self.width) if isinstance(rank, int) else max(1, round(rank * self.width))


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A latent diffusion model of Stable Diffusion's architecture (1.x, 2.x or XL), frozen and in eval mode.

    Attributes:
        name: `base_model` of the run spec.
        revision: the commit or the content digest that pins its weights.
        tokenizer_2, text_encoder_2: SDXL's second tokenizer and encoder, else None.
        zeros_for_empty_prompt: whether an empty negative prompt of SDXL is all zeros; else it is encoded like another.
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
    zeros_for_empty_prompt: bool = True

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
        """The side, in pixels, of the square images that the model was trained on."""
        return int(self.unet.config["sample_size"]) * self.pixels_per_latent

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.noise_schedule.config["prediction_type"])

    @cached_property
    def target_layers(self) -> tuple[TargetLayer, ...]:
        """The `proj_out` of every Transformer2DModel, in the UNet's order (16 in SD 1.x)."""
        return find_target_layers(self.unet)

    def layer(self, target: TargetLayer) -> torch.nn.Module:
        return self.unet.get_submodule(target.name)


def find_target_layers(unet: UNet2DConditionModel) -> tuple[TargetLayer, ...]:
    """Return the layers of a UNet that get a residual. Reads no weights."""
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
    """Return the target layers of the base model in a folder, from its configuration alone."""
    config: Any = UNet2DConditionModel.load_config(path, subfolder="unet", local_files_only=True)
    with torch.device("meta"):
        return find_target_layers(cast(UNet2DConditionModel, UNet2DConditionModel.from_config(config)))


def load_xl_layers_per_block(path: str | Path) -> int | None:
    """Return `layers_per_block` of the UNet in a folder if it is Stable Diffusion XL's, else None."""
    config: Any = UNet2DConditionModel.load_config(path, subfolder="unet", local_files_only=True)
    return int(config["layers_per_block"]) if config.get("addition_embed_type") == "text_time" else None


_WITH_WEIGHTS: dict[str, tuple[Any, Library]] = {
    "unet": (UNet2DConditionModel, "diffusers"),
    "vae": (AutoencoderKL, "diffusers"),
    "text_encoder": (CLIPTextModel, "transformers"),
    "text_encoder_2": (CLIPTextModelWithProjection, "transformers"),
}
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_PARTS = {part: (kind.__name__,) for part, (kind, _) in _WITH_WEIGHTS.items()} | {
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}
_XL_ONLY = ("text_encoder_2", "tokenizer_2")


def check_parts(path: str | Path, name: str) -> int:
    """Check the parts of the base model in a folder, from its configuration alone.

    Args:
        name: `base_model` of the run spec, for messages.

    Returns:
        The side, in pixels, of the square that one latent encodes.

    Raises:
        InvalidInput: a part is missing, has an unsupported class, or does not fit the other parts.
    """
    index = _configuration(path, "model_index.json", name)
    for part, classes in _PARTS.items():
        found = _class_of(index, part)
        if found not in classes and not (found is None and part in _XL_ONLY):
            which = f" ({index['_class_name']})" if isinstance(index.get("_class_name"), str) else ""
            reason = f"base model {name!r}{which}: its {part} is {found or 'missing'}, not {' or '.join(classes)}"
            raise InvalidInput(reason, fix=_STABLE_DIFFUSION)
    unet, vae = (_configuration(path, f"{part}/config.json", name) for part in ("unet", "vae"))
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if channels != latents:
        reason = f"base model {name!r}: its unet takes {channels} channels, its vae produces {latents}"
        fix = "give a text-to-image model; one for inpainting or editing takes more channels"
        raise InvalidInput(reason, fix=fix)
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise InvalidInput(f"base model {name!r}: its vae/config.json has no block_out_channels", fix=_STABLE_DIFFUSION)
    _check_prediction_type(_configuration(path, "scheduler/scheduler_config.json", name), name)
    return 2 ** (len(blocks) - 1)


def _check_prediction_type(scheduler_config: dict[str, Any], name: str) -> None:
    found = scheduler_config.get("prediction_type", "epsilon")
    if found not in ("epsilon", "v_prediction"):
        raise InvalidInput(
            f"base model {name!r} predicts {found!r} (prediction_type in scheduler/scheduler_config.json); residuals "
            "are trained for epsilon and v_prediction alone",
            fix="give a base model of one of these two kinds, as Stable Diffusion 1.x, 2.x and XL are",
        )


def check_weights(path: str | Path, name: str) -> list[str]:
    """Compare the weights of every part of the base model in a folder, by name and shape, with its configuration.

    Loads no weights: the files' headers are enough.

    Args:
        name: as for `check_parts`, which the folder has passed.

    Returns:
        Warnings about weights that are not used.

    Raises:
        InvalidInput: weights are missing, of another shape, quantized or damaged.
    """
    index = _configuration(path, "model_index.json", name)
    parts = [(part, *classes) for part, classes in _WITH_WEIGHTS.items() if _class_of(index, part)]
    with unusable_weights(f"base model {name!r}"):
        found = [check_part(kind, Path(path) / part, library, part) for part, kind, library in parts]
    return [f"base model {name!r}: {one.warning}" for one in found if one.warning]


@contextmanager
def unusable_weights(what: str) -> Iterator[None]:
    """Weights that cannot be used are invalid input; `what`: the name of the model in the message."""
    try:
        yield
    except UnusableWeights as error:
        raise InvalidInput(f"{what}: {error.message}", fix=error.fix) from error


def _class_of(index: dict[str, Any], part: str) -> str | None:
    """The class that model_index.json gives a part; None if it has no such part."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


_STABLE_DIFFUSION = (
    "give a diffusers Stable Diffusion 1.x, 2.x or XL folder with tokenizer, text_encoder, vae, unet and scheduler, "
    "its weights as .safetensors"
)


def _configuration(path: str | Path, file: str, name: str) -> dict[str, Any]:
    try:
        found = json.loads((Path(path) / file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if is_lfs_pointer(Path(path) / file):
            with unusable_weights(f"base model {name!r}"):
                raise damaged(Path(path) / file, error) from error
        reason = f"base model {name!r}: {file} cannot be read: {type(error).__name__}"
        raise InvalidInput(reason, fix=COPY_AGAIN) from error
    if not isinstance(found, dict):
        raise InvalidInput(f"base model {name!r}: {file} is not a JSON object", fix=COPY_AGAIN)
    return found


def load_tokenizer(path: str | Path, subfolder: str = "tokenizer") -> CLIPTokenizer:
    """Load the tokenizer alone, which is enough to check prompts.

    Raises:
        InvalidInput: its files are missing or damaged.
    """
    try:
        tokenizer = CLIPTokenizer.from_pretrained(path, subfolder=subfolder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many kinds
        reason = f"the base model's {subfolder} cannot be read: {_first_line(error)}"
        raise InvalidInput(
            reason, fix="copy the folder again, with tokenizer_config.json and its vocabulary"
        ) from error
    # A tokenizer_config.json without model_max_length allows 10^30 tokens; the text encoder reads as many as this.
    encoder = f"{subfolder.replace('tokenizer', 'text_encoder')}/config.json"
    config = _configuration(path, encoder, str(path)) if (Path(path) / encoder).exists() else {}
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        positions = CLIPTextConfig().max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer


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
    """Load a base model from a diffusers pipeline folder.

    The UNet and the text encoders are loaded in `dtype`, the VAE in float32: half-precision VAEs are known to produce
    black images, and the VAE runs only once per image. Only safetensors weights are read, since a pickle can run code,
    and only if every weight of every part is there.

    Raises:
        InvalidInput: a part is missing, has an unsupported class, or lacks safetensors weights.
    """
    folder, index = Path(path), _configuration(path, "model_index.json", name)
    try:
        tokenizer = load_tokenizer(path)
        schedule: Any = DDPMScheduler.from_pretrained(path, subfolder="scheduler", local_files_only=True)
        _check_prediction_type(schedule.config, name)
        is_xl = _class_of(index, "text_encoder_2") is not None
        tokenizer_2 = load_tokenizer(path, "tokenizer_2") if is_xl else None
        with unusable_weights(f"base model {name!r}"):
            text_encoder = load_clip(CLIPTextModel, folder / "text_encoder", dtype, "text_encoder")
            text_encoder_2 = (
                load_clip(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype, "text_encoder_2")
                if is_xl
                else None
            )
            vae = load_diffusers(AutoencoderKL, folder / "vae", torch.float32, "vae")
            unet = load_diffusers(UNet2DConditionModel, folder / "unet", dtype, "unet")
    except (InvalidInput, MemoryError):
        raise
    except Exception as error:  # diffusers, transformers, torch and safetensors each raise their own kinds
        raise InvalidInput(
            f"base model {name!r} could not be loaded: {_first_line(error)}", fix=_STABLE_DIFFUSION
        ) from error
    for module in filter(None, (text_encoder, text_encoder_2, vae, unet)):
        module.to(device).eval().requires_grad_(False)
    # With channels-last weights, activations become attention's sequences [S, N, C] without a copy.
    unet.to(memory_format=torch.channels_last)
    return BaseModel(
        name,
        revision,
        tokenizer,
        text_encoder,
        vae,
        unet,
        schedule,
        dict(schedule.config),
        tokenizer_2,
        text_encoder_2,
        zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
    )
