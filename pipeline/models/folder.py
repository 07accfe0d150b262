"""What a model's folder has to hold, wherever it lies: which of its files are read, and which make it unusable.

Only safetensors are ever read: reading a pickle runs whatever its author put into it.
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
"""The file that says that a folder is such a model."""

CHECKSUMS = "SHA256SUMS"
"""A list of a model's files that may lie beside them, as `sha256sum` writes it; never counted among them."""

UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
WEIGHTS = ".safetensors"

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_NOT_READ = (*PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".md")
_WHAT: Mapping[Role, str] = {"base_model": "a diffusers pipeline", "scorer": "a CLIP model"}
# The same weights again, in other precisions or as trained further; loaders take the ones without such a word.
VARIANTS = ("fp16", "bf16", "fp32", "non_ema", "ema")
_OF_VARIANT = "|".join(VARIANTS)
_VARIANT = re.compile(
    rf"\.({_OF_VARIANT})(-\d+-of-\d+)?\.safetensors(\.index\.json)?$|\.safetensors\.index\.({_OF_VARIANT})\.json$"
)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model that was found.

    Attributes:
        path: a folder on this machine.
        revision: what its weights are: the digest of a folder's files, the same wherever they are stored; a Hub
            repository's commit; or the installed model's own word.
        has_weights: False: only its configuration and tokenizer are in the folder, which is enough to plan.
    """

    path: str
    revision: str
    has_weights: bool = True


def files_of_folder(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative and with `/`; hidden ones are left out."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]


def may_be_read(name: str, role: Role) -> bool:
    """Whether a file can be one of a model's, by its path in the folder alone."""
    parts = PurePosixPath(name).parts
    is_readable = not name.endswith(_NOT_READ) and not _VARIANT.search(name) and parts[-1] != CHECKSUMS
    if role == "scorer":
        return is_readable and len(parts) == 1
    return name == ENTRY_FILE[role] or (is_readable and len(parts) > 1 and parts[0] not in UNUSED_COMPONENTS)


def model_files(names: Iterable[str], folder: Path, *, name: str, role: Role) -> list[str]:
    """Which of a model's files are read, refusing what is no model or would have to be unpickled.

    Args:
        names: the paths of all that the model's folder holds, wherever that is.
        folder: where its entry file can be read, here.
        name: what the run spec calls it.

    Raises:
        InvalidInput: it is no such model, lacks a part, or has weights only as a pickle, or none.
    """
    names = list(names)
    entry = ENTRY_FILE[role]
    if entry not in names:
        reason = f"{role} {name!r} is not {_WHAT[role]}: it has no {entry}"
        raise InvalidInput(reason, fix="give the folder that `save_pretrained` wrote")
    if role == "scorer":
        parts = {"": [one for one in names if "/" not in one]}
    else:
        there = {one.split("/")[0] for one in names if "/" in one}
        components = _components(folder / entry, name, there)
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
    """Refuse weights that were cut off or lack a part, by their headers alone: half a download is the usual case.

    Raises:
        InvalidInput: naming the file; `what` is what its model is called.
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


def _components(index_file: Path, name: str, there: set[str]) -> list[str]:
    """The folders that a pipeline is made of, as its index names them."""
    try:
        index = json.loads(index_file.read_text("utf-8"))
        named = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    except (ValueError, AttributeError, RecursionError) as error:
        reason = f"base_model {name!r}: its model_index.json is damaged"
        raise InvalidInput(reason, fix="copy the folder again") from error
    needed = [key for key in named if key not in UNUSED_COMPONENTS]
    missing = [key for key in needed if key not in there]
    if missing:
        reason = f"base_model {name!r} lacks the folder {missing[0]!r} that model_index.json names"
        raise InvalidInput(reason, fix="copy the folder again")
    return needed
