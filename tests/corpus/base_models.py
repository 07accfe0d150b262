"""Base models and scorers that are incomplete, of the wrong kind, or only pickled: exit code 2."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bad_input import BadInput
from .sandbox import Sandbox

Damage = Callable[[Path], object]


def _damaged(damage: Damage) -> Callable[[Sandbox], list[str]]:
    def set_up(sandbox: Sandbox) -> list[str]:
        model = sandbox.own_model()
        damage(model)
        return sandbox.submit(spec=sandbox.spec(base_model=str(model)))

    return set_up


def _named(**settings: Any) -> Callable[[Sandbox], list[str]]:
    return lambda sandbox: sandbox.submit(spec=sandbox.spec(**settings))


def _removed(name: str) -> Damage:
    return lambda model: shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()


def _cut_to(name: str, bytes_kept: int) -> Damage:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:bytes_kept])


def _written(name: str, content: bytes) -> Damage:
    return lambda model: (model / name).write_bytes(content)


def _changed(name: str, **values: Any) -> Damage:
    """Change some values of a JSON file; None removes one."""

    def damage(model: Path) -> None:
        content = json.loads((model / name).read_text()) | values
        (model / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def _pickled(model: Path) -> None:
    (model / _UNET).rename(model / "unet" / "diffusion_pytorch_model.bin")


def _scorer(damage: Damage) -> Callable[[Sandbox], list[str]]:
    def set_up(sandbox: Sandbox) -> list[str]:
        from ..support.tiny_models import write_tiny_scorer

        scorer = write_tiny_scorer(sandbox.path("scorer"))
        damage(scorer)
        return sandbox.submit(spec=sandbox.spec(scorer=str(scorer)))

    return set_up


_EIGHT_EIB = struct.pack("<Q", 2**63) + b"{}"
_UNET = "unet/diffusion_pytorch_model.safetensors"


def _flux(model: Path) -> None:
    _changed("model_index.json", unet=None, transformer=["diffusers", "FluxTransformer2DModel"])(model)
    (model / "unet").rename(model / "transformer")


def base_models() -> list[BadInput]:
    """Every base model of the corpus."""
    cases: list[tuple[str, Callable[[Sandbox], list[str]], tuple[str, ...]]] = [
        ("a missing folder", _named(base_model="./no/such/folder"), ("no folder here and no Hub id",)),
        ("a misspelt name", _named(base_model="spritworld"), ("did you mean 'spriteworld'",)),
        ("an invalid Hub id", _named(base_model="team/--"), ("not on the Hub",)),
        ("no model_index.json", _damaged(_removed("model_index.json")), ("it has no model_index.json",)),
        ("a damaged model_index.json", _damaged(_cut_to("model_index.json", 40)), ("its model_index.json is damaged",)),
        ("a missing part", _damaged(_removed("vae")), ("lacks the folder 'vae'",)),
        ("a missing configuration", _damaged(_removed("unet/config.json")), ("unet/config.json cannot be read",)),
        ("a missing vocabulary", _damaged(_removed("tokenizer")), ("lacks the folder 'tokenizer'",)),
        ("a damaged vocabulary", _damaged(_written("tokenizer/tokenizer.json", b"{")), ("tokenizer cannot be read",)),
        ("a damaged configuration", _damaged(_cut_to("unet/config.json", 40)), ("unet/config.json cannot be read",)),
        ("no weights", _damaged(_removed(_UNET)), ("no weights (*.safetensors) in unet",)),
        ("weights that are only a pickle", _damaged(_pickled), ("weights only as a pickle", "safe_serialization")),
        ("weights cut off in the middle", _damaged(_cut_to(_UNET, 5000)), ("is damaged or cut off",)),
        ("empty weights", _damaged(_written(_UNET, b"")), ("is damaged or cut off",)),
        ("weights whose header claims 8 EiB", _damaged(_written(_UNET, _EIGHT_EIB)), ("is damaged or cut off",)),
        ("an error page instead of weights", _damaged(_written(_UNET, b"<html></html>")), ("is damaged or cut off",)),
        ("an index that names missing weights", _damaged(_written(
            "unet/diffusion_pytorch_model.safetensors.index.json", b'{"weight_map": {"a": "part-1.safetensors"}}')),
            ("names 'part-1.safetensors'",)),
        ("a model of another kind", _damaged(_flux), ("a transformer, FluxTransformer2DModel, and no UNet",)),
        ("an unsupported text encoder", _damaged(_changed(
            "model_index.json", text_encoder=["transformers", "T5EncoderModel"])), ("its text_encoder is T5",)),
        ("a part with custom code", _damaged(_changed(
            "model_index.json", unet=["my_unet", "MyUNet"])), ("its unet is MyUNet",)),
        ("an inpainting model", _damaged(_changed("unet/config.json", in_channels=9)), ("takes 9 channels",)),
        ("a missing scorer", _named(scorer="./no/scorer"), ("scorer './no/scorer' is no folder",)),
        ("a scorer that is not a CLIP model", _scorer(_changed("config.json", model_type="bert")), ("is not a CLIP",)),
        ("a scorer that is only a pickle", _scorer(
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")), ("as a pickle",)),
        ("a scorer cut off in the middle", _scorer(_cut_to("model.safetensors", 5000)), ("is damaged or cut off",)),
    ]  # fmt: skip
    offline = BadInput("a Hub id in offline mode", _named(base_model="team/model"), 1, ("HF_HUB_OFFLINE",))
    return [*(BadInput(name, set_up, 2, expected) for name, set_up, expected in cases), offline]
