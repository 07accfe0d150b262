"""The files of a model's folder: which are read, and which make it unusable.

Weights are read from safetensors only: loading a pickle can run any code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from safetensors import SafetensorError, safe_open

from ...core.errors import InvalidInput

Role = Literal["base_model", "scorer"]
"""A base model is a diffusers pipeline folder, a scorer a folder with a CLIP model."""

ENTRY_FILE: Mapping[Role, str] = {"base_model": "model_index.json", "scorer": "config.json"}
"""The file that identifies a folder as such a model."""

CHECKSUMS = "SHA256SUMS"
"""An optional list of a model's files in the format of `sha256sum`; not a file of the model itself."""

UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
WEIGHTS = ".safetensors"

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_NOT_READ = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".md")
_KIND: Mapping[Role, str] = {"base_model": "a diffusers pipeline", "scorer": "a CLIP model"}
# Suffixes of the same weights in another precision or from another point of training; loaders skip these files.
VARIANTS = ("fp16", "bf16", "fp32", "non_ema", "ema")
_OF_VARIANT = "|".join(VARIANTS)
_VARIANT = re.compile(
    rf"\.({_OF_VARIANT})(-\d+-of-\d+)?\.safetensors(\.index\.json)?$|\.safetensors\.index\.({_OF_VARIANT})\.json$"
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on this machine.

    Attributes:
        path: its folder.
        revision: identifies its weights: the digest of a folder's files, independent of their location; the commit of a
            Hub repository; or the fixed revision of the embedded model.
        has_weights: False if the folder holds only the configuration and tokenizer, which suffice for planning.
    """

    path: str
    revision: str
    has_weights: bool = True


def files_of_folder(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative and with `/`; without hidden ones."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def may_be_read(name: str, role: Role) -> bool:
    """Whether a file may belong to a model, by its path in the folder."""
    parts = PurePosixPath(name).parts
    is_readable = not name.endswith(_NOT_READ) and not _VARIANT.search(name) and parts[-1] != CHECKSUMS
    if role == "scorer":
        return is_readable and len(parts) == 1
    return name == ENTRY_FILE[role] or (is_readable and len(parts) > 1 and parts[0] not in UNUSED_COMPONENTS)


def model_files(names: Iterable[str], folder: Path, *, name: str, role: Role) -> list[str]:
    """Select the files of a model that are read.

    Args:
        names: the paths of all files in the model's folder, which may be remote.
        folder: a local folder with its entry file.
        name: the model's name in the run spec.

    Raises:
        InvalidInput: the folder is no such model, lacks a component, has no weights, or has them only as a pickle.
    """
    names = list(names)
    entry = ENTRY_FILE[role]
    if entry not in names:
        reason = f"{role} {name!r} is not {_KIND[role]}: it has no {entry}"
        raise InvalidInput(reason, fix="give the folder that `save_pretrained` wrote")
    if role == "scorer":
        parts = {"": [one for one in names if "/" not in one]}
    else:
        folders = {one.split("/")[0] for one in names if "/" in one}
        components = _components(folder / entry, name, folders)
        parts = {part: [one for one in names if one.startswith(f"{part}/")] for part in components}
    for files in parts.values():
        pickles = [one for one in files if one.endswith(PICKLES)]
        if pickles and not any(one.endswith(WEIGHTS) for one in files):
            reason = f"{role} {name!r} has weights only as a pickle: {pickles[0]}"
            fix = "reading a pickle can run any code; save the model with safe_serialization=True, or choose another"
            raise InvalidInput(reason, fix=fix)
    read = [one for files in parts.values() for one in files if may_be_read(one, role)]
    if not any(one.endswith(WEIGHTS) for one in read):
        raise InvalidInput(f"{role} {name!r} has no weights (*.safetensors)", fix="complete the folder")
    if role == "base_model":
        return [entry, *read]
    _check_is_clip(folder / entry, name)
    return read


def check_weights(folder: Path, files: Iterable[str], what: str) -> None:
    """Check that weights are complete, by their headers: partial downloads are the usual fault.

    Args:
        what: the model's name in messages.

    Raises:
        InvalidInput: a file is damaged, cut off or missing.
    """
    for name in files:
        _check_file(folder / name, f"{what}: {name}")


def _check_file(file: Path, what: str) -> None:
    try:
        if file.suffix == WEIGHTS:
            with safe_open(file, framework="numpy"):
                pass
        elif file.name.endswith(".safetensors.index.json"):
            parts = set(json.loads(file.read_text("utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (file.parent / part).is_file())
            if missing:
                raise InvalidInput(f"{what} names {missing[0]!r}, which is not there", fix="copy the folder again")
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise InvalidInput(f"{what} is damaged or cut off: {error}", fix="copy the folder again") from error


def _check_is_clip(config: Path, name: str) -> None:
    try:
        kind = json.loads(config.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"scorer {name!r}: its config.json is damaged", fix="copy the folder again") from error
    if kind != "clip":
        reason = f"scorer {name!r} is not a CLIP model: its config.json says {kind!r}"
        raise InvalidInput(reason, fix="give one that CLIPModel saved, such as 'openai/clip-vit-base-patch32'")


def _components(index_file: Path, name: str, folders: set[str]) -> list[str]:
    """The component folders that a pipeline's index names and loading needs."""
    try:
        index = json.loads(index_file.read_text("utf-8"))
        named = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    except (ValueError, AttributeError, RecursionError) as error:
        reason = f"base_model {name!r}: its model_index.json is damaged"
        raise InvalidInput(reason, fix="copy the folder again") from error
    needed = [key for key in named if key not in UNUSED_COMPONENTS]
    missing = [key for key in needed if key not in folders]
    if missing:
        reason = f"base_model {name!r} lacks the folder {missing[0]!r} that model_index.json names"
        raise InvalidInput(reason, fix="copy the folder again")
    return needed
