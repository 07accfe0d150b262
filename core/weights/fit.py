"""Whether the weights of a part are those of the model that its config.json describes, by name and shape.

The files' headers are compared, which takes milliseconds and no memory. It has to be done before anything is loaded:
the libraries draw a weight that they do not find at random, and say so in a log at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import (
    COPY_AGAIN,
    Library,
    StoredWeight,
    UnusableWeights,
    WeightFiles,
    damaged,
    find_weights,
    is_index,
    is_lfs_pointer,
    require_metadata,
)

# Weights beside a model's own that do no harm: buffers of old releases, averages of training, the rest of a whole CLIP.
_HARMLESS = ("position_ids", "num_batches_tracked", "num_updates")
_OTHER_MODELS = (
    "ema.",
    "ema_model.",
    "model_ema.",
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_",
)
_PROJECTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_PROJECTION = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
_NOT_QUANTIZED = "give a model whose weights are saved as float16, bfloat16 or float32"


@dataclass(frozen=True, slots=True)
class PartWeights:
    """The weights of a part, every one of which its model has found.

    Attributes:
        placed: the stored name of each of the model's weights.
        warning: about stored weights that it has no use for.
    """

    files: WeightFiles
    placed: Mapping[str, str]
    warning: str | None


def check_part(kind: Any, folder: Path, library: Library, part: str = "") -> PartWeights:
    """Compare the weights in a part's folder with the model that its config.json describes. Loads no weights.

    Args:
        kind: the model's class.
        part: what messages call the folder, such as "unet".

    Raises:
        UnusableWeights: the configuration cannot be used, or weights are missing, of another shape, quantized or
            damaged.
    """
    where = f"{part}/" if part else ""
    try:
        files = find_weights(folder, library)
        expected, stored = _shapes_by_config(kind, folder, library), files.stored()
        if library == "diffusers" and is_index(files.entry):
            require_metadata(folder / files.entry)
    except UnusableWeights as error:
        raise UnusableWeights(f"{where}{error.message}", fix=error.fix) from error
    file = f"{where}{files.entry}"
    canonical = _clip_name if library == "transformers" else _attention_name
    if library == "diffusers" and is_index(files.entry):
        canonical = str  # diffusers knows the old names in a single file only
    placed, unused = place_weights(stored, expected, file=file, kind=kind.__name__, canonical=canonical)
    return PartWeights(files, placed, _unused_warning(unused, file, kind.__name__))


def place_weights(
    stored: Mapping[str, StoredWeight],
    expected: Mapping[str, tuple[int, ...]],
    *,
    file: str,
    kind: str,
    canonical: Callable[[str], str] = str,
) -> tuple[dict[str, str], list[str]]:
    """Find the stored weight for each weight of a model, by name and shape.

    Args:
        stored: from `WeightFiles.stored`.
        expected: the model's weights and their shapes.
        file: what messages call the file, such as "unet/diffusion_pytorch_model.safetensors".
        kind: the model's class.
        canonical: maps a stored name, and a model's name, to one that both share if they name the same weight.

    Returns:
        The stored name by the model's, and the stored names that the model has no use for.

    Raises:
        UnusableWeights: weights are missing, of another shape, or not stored as floating-point numbers.
    """
    by_name = {canonical(name): name for name in sorted(stored, reverse=True)} | {name: name for name in stored}
    placed = {name: by_name.get(name, by_name.get(canonical(name), "")) for name in expected}
    missing = sorted(name for name, found in placed.items() if not found)
    unused = sorted(stored.keys() - set(placed.values()))
    if missing:
        raise _missing(missing, unused, len(expected), file, kind)
    reshaped = [name for name, shape in expected.items() if stored[placed[name]].shape != shape]
    if reshaped:
        name, found, wanted = placed[reshaped[0]], stored[placed[reshaped[0]]].shape, expected[reshaped[0]]
        raise UnusableWeights(
            f"{file} has {len(reshaped)} of {len(expected)} weights in another shape than its config.json says, "
            f"such as {name!r}: {list(found)}, not {list(wanted)}",
            fix="give the config.json that belongs to these weights, or the weights that belong to it",
        )
    integers = [name for name in placed.values() if not stored[name].dtype.startswith(("F", "BF"))]
    if integers:
        reason = f"{file} holds quantized weights, such as {integers[0]!r} of type {stored[integers[0]].dtype}"
        raise UnusableWeights(reason, fix=_NOT_QUANTIZED)
    return placed, unused


def _missing(missing: list[str], unused: list[str], count: int, file: str, kind: str) -> UnusableWeights:
    reason = f"{file} lacks {len(missing)} of {count} weights of {kind}, such as {missing[0]!r}"
    if not unused:
        return UnusableWeights(reason, fix="copy the file again, or save the part again with `save_pretrained`")
    prefix = _added_prefix(missing, unused)
    reason = f"{reason}; it has {next((name for name in unused if name.endswith(missing[0])), unused[0])!r}"
    if not prefix:
        return UnusableWeights(reason, fix=f"save a {kind} with `save_pretrained`, or give the folder that it wrote")
    fix = f"save the part itself, not what wraps it and lets its names begin with {prefix!r}: for a compiled module, "
    return UnusableWeights(reason, fix=f"{fix}`module._orig_mod.save_pretrained(...)`")


def _added_prefix(missing: list[str], unused: list[str]) -> str:
    """What stands before every missing name in the file, empty if that is not the fault."""
    there = set(unused)
    for name in unused:
        prefix = name.removesuffix(missing[0])
        if prefix != name and all(prefix + other in there for other in missing):
            return prefix
    return ""


def _unused_warning(unused: Iterable[str], file: str, kind: str) -> str | None:
    """A warning about weights that a model has no use for; None if all of them are known to do no harm."""
    names = [name for name in unused if not name.endswith(_HARMLESS) and not name.startswith(_OTHER_MODELS)]
    if not names:
        return None
    return f"{file} holds {len(names)} weights that {kind} has no use for, such as {names[0]!r}"


def load_clip(kind: Any, folder: Path, dtype: Any, part: str = "") -> Any:
    """Load a model of transformers with its weights by name, each of them from a file that was checked.

    The library is handed the weights and not the folder, in which it would also look for adapters and pickles.

    Raises:
        UnusableWeights: as `check_part`.
    """
    found = check_part(kind, folder, "transformers", part)
    tensors = found.files.load()
    weights = {name: tensors[stored] for name, stored in found.placed.items()}
    config = _clip_config(kind, folder)
    model, info = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True)
    return _require_all(model, info, part or kind.__name__)


def load_diffusers(kind: Any, folder: Path, dtype: Any, part: str = "") -> Any:
    """Load a model of diffusers from the files that `check_part` compares.

    Raises:
        UnusableWeights: as `check_part`.
    """
    variant = check_part(kind, folder, "diffusers", part).files.variant
    # The folder itself and not the one above and `subfolder`: a file of the same name there would be read instead.
    model, info = kind.from_pretrained(
        str(folder),
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        torch_dtype=dtype,
        output_loading_info=True,
    )
    return _require_all(model, info, part or kind.__name__)


def _require_all(model: Any, info: Mapping[str, Any], what: str) -> Any:
    """Return a model of which every weight was read from its files, by what its library says of loading it."""
    unread = {str(name) for key in ("missing_keys", "mismatched_keys") for name in info.get(key) or ()}
    unread |= {name for name, weight in model.state_dict().items() if weight.is_meta}
    if unread:
        reason = f"{what} was loaded without {len(unread)} of its weights, such as {min(unread)!r}"
        raise UnusableWeights(reason, fix=COPY_AGAIN)
    return model


def _shapes_by_config(kind: Any, folder: Path, library: Library) -> dict[str, tuple[int, ...]]:
    """The weights of the model that a part's config.json describes, and their shapes."""
    import torch

    file = folder / "config.json"
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.get("quantization_config"):
            raise UnusableWeights("config.json says that the weights are quantized", fix=_NOT_QUANTIZED)
        with torch.device("meta"):
            model = kind.from_config(content) if library == "diffusers" else kind(_clip_config(kind, folder))
    except UnusableWeights:
        raise
    except Exception as error:  # classes raise many kinds at values that they do not know
        if is_lfs_pointer(file):
            raise damaged(file, error) from error
        text = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UnusableWeights(f"config.json cannot be used for a {kind.__name__}: {text}", fix=COPY_AGAIN) from error
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _clip_config(kind: Any, folder: Path) -> Any:
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    if "/" in str(config._attn_implementation):
        config._attn_implementation = None  # the Hub's id of a kernel, which is code
    return config


def _clip_name(name: str) -> str:
    """A weight's name without what CLIP's classes, and releases of transformers, begin it with or not."""
    return name.removeprefix("clip.").removeprefix("text_model.")


def _attention_name(name: str) -> str:
    """A weight's name with the old names of an attention's projections replaced, as diffusers does it."""
    return _OLD_PROJECTION.sub(lambda found: _PROJECTION[found[1]], name)
