"""A residual as LoRA files of diffusers/PEFT and kohya (ComfyUI, A1111), and V* as a textual-inversion file.

dW = A B is a LoRA on `proj_out` with alpha = rank, so with scale 1. A LoRA's "A" (down) is the paper's B, and its "B"
(up) is the paper's A. LoRA loaders apply the residual everywhere: LAG needs this package's sampler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from safetensors.torch import save
from torch import Tensor

from .base_model import TargetLayer
from .errors import PersresError
from .residual import Residual, check_residual

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
TEXTUAL_INVERSION_FILE = "learned_embeds.safetensors"


def diffusers_lora(residual: Residual, target_layers: Sequence[TargetLayer]) -> bytes:
    """Return a safetensors file for diffusers' `load_lora_weights`.

    Its metadata holds each layer's rank and alpha: without them PEFT would scale all layers by one common rank.

    Raises:
        PersresError: the residual does not fit the target layers.
    """
    check_residual(residual, target_layers)
    weights: dict[str, Tensor] = {}
    for layer in target_layers:
        down, up = _as_weights(residual, layer)
        weights[f"unet.{layer.name}.lora_A.weight"] = down
        weights[f"unet.{layer.name}.lora_B.weight"] = up
    ranks = residual.ranks
    common = max(set(ranks.values()), key=lambda rank: (list(ranks.values()).count(rank), rank))
    others = {name: rank for name, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }
    return _safetensors(weights, {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})})


def kohya_lora(
    residual: Residual, target_layers: Sequence[TargetLayer], *, title: str = "", xl_layers_per_block: int | None = None
) -> bytes:
    """Return a safetensors file with kohya's names, which ComfyUI and A1111 read.

    Args:
        title: the title in the file's metadata.
        xl_layers_per_block: for Stable Diffusion XL, the UNet's `layers_per_block`: readers of these files expect the
            layer names of SDXL's original code.

    Raises:
        PersresError: the residual does not fit the target layers.
    """
    check_residual(residual, target_layers)
    weights: dict[str, Tensor] = {}
    for layer in target_layers:
        name = layer.name if xl_layers_per_block is None else _sgm_name(layer.name, xl_layers_per_block)
        key = "lora_unet_" + name.replace(".", "_")
        down, up = _as_weights(residual, layer)
        weights |= {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.alpha": down.new_tensor(float(down.shape[0])),
        }
    return _safetensors(weights, {"ss_network_module": "networks.lora", "modelspec.title": title})


def textual_inversion(residual: Residual, token: str) -> bytes:
    """Return a safetensors file for diffusers' `load_textual_inversion`: V*'s embedding, to be used as `token`.

    Raises:
        PersresError: V* was not trained.
    """
    if residual.identifier is None:
        raise PersresError("V* was not trained with this residual", fix="use the identifier token itself in prompts")
    return _safetensors({token: residual.identifier[None].contiguous()}, {})


def _sgm_name(name: str, layers_per_block: int) -> str:
    """Return a layer's name in SDXL's original code, which also counts resnets, samplers and the first convolution.

    For two layers per block, "down_blocks.1.attentions.0.proj_out" becomes "input_blocks.4.1.proj_out".
    """
    block, *numbers, layer = name.replace("attentions.", "").split(".")
    if block == "mid_block":
        return f"middle_block.1.{layer}"
    position = int(numbers[0]) * (layers_per_block + 1) + int(numbers[1])
    return f"input_blocks.{1 + position}.1.{layer}" if block == "down_blocks" else f"output_blocks.{position}.1.{layer}"


def _as_weights(residual: Residual, layer: TargetLayer) -> tuple[Tensor, Tensor]:
    """Return (down, up) in the shape of the layer's weights: [r, m, 1, 1] and [m, r, 1, 1] for a convolution."""
    down, up = residual.b[layer.name].contiguous(), residual.a[layer.name].contiguous()
    return (down[..., None, None], up[..., None, None]) if layer.kind == "conv" else (down, up)


def _safetensors(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    return save(dict(weights), metadata={"format": "pt", **{key: value for key, value in metadata.items() if value}})
