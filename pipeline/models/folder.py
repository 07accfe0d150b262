"""The files of a model's folder: which are read, and which make it unusable.

Weights are read from safetensors only: loading a pickle can run any code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...core.errors import InvalidInput
from ...core.weights.files import (
    COPY_AGAIN,
    VARIANTS,
    WEIGHTS,
    Library,
    UnusableWeights,
    check_file,
    damaged,
    entry_names,
    is_index,
    is_lfs_pointer,
    missing_part,
    read_index,
    weights_entry,
)

Role = Literal["base_model", "scorer"]
"""A base model is a diffusers pipeline folder, a scorer a folder with a CLIP model."""

ENTRY_FILE: Mapping[Role, str] = {"base_model": "model_index.json", "scorer": "config.json"}
"""The file that identifies a folder as such a model."""

CHECKSUMS = "SHA256SUMS"
"""An optional list of a model's files in the format of `sha256sum`; not a file of the model itself."""

UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
CHECKPOINTS = (WEIGHTS, ".ckpt")
"""Suffixes of whole models in one file."""

_OF_OTHERS = (".msgpack", ".h5", ".onnx", ".onnx_data", ".md")
_KIND: Mapping[Role, str] = {"base_model": "a diffusers pipeline", "scorer": "a CLIP model"}
_OF_VARIANT = "|".join(VARIANTS)
_VARIANT = re.compile(
    rf"\.({_OF_VARIANT})(-\d+-of-\d+)?\.safetensors(\.index\.json)?$|\.safetensors\.index\.({_OF_VARIANT})\.json$"
)
_WITH_WEIGHTS: Mapping[Role, Mapping[str, Library]] = {
    "base_model": {
        "unet": "diffusers", "vae": "diffusers", "text_encoder": "transformers", "text_encoder_2": "transformers"
    },
    "scorer": {"": "transformers"},
}  # fmt: skip


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
    """The paths of all files in a folder, relative and with `/`; without hidden ones. Links to folders are followed."""
    return sorted(_files_below(folder, "", ()))


def _files_below(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    place = os.path.realpath(folder)
    if place in above or not os.access(folder, os.R_OK | os.X_OK):  # a link to a folder that it lies in
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_below(folder / entry.name, f"{prefix}{entry.name}/", (*above, place))
        elif entry.is_file():
            yield f"{prefix}{entry.name}"


def may_be_read(name: str, role: Role) -> bool:
    """Whether a file may belong to a model, by its path in the folder. Other variants of weights do not."""
    return is_of_model(name, role) and not name.endswith(PICKLES) and not _VARIANT.search(name)


def is_of_model(name: str, role: Role) -> bool:
    """As `may_be_read`, or a pickle or another variant of the weights, which make a difference if there are no others.

    Args:
        name: its path in the folder.
    """
    parts = PurePosixPath(name).parts
    if name.endswith(_OF_OTHERS) or parts[-1] == CHECKSUMS:
        return False
    if role == "scorer":
        return len(parts) == 1
    return name == ENTRY_FILE[role] or (len(parts) > 1 and parts[0] not in UNUSED_COMPONENTS)


def readable_files(names: Iterable[str], role: Role) -> list[str]:
    """The files of a model that are read, by the paths of all files in its folder.

    A part whose weights are there as a variant only, such as `model.fp16.safetensors`, is read as that variant.
    """
    names = list(names)
    variants = {part: variant for part, variant in variants_read(names, role).items() if variant}

    def is_read(name: str) -> bool:
        found = _VARIANT.search(name) if name.rpartition("/")[0] in variants else None
        if found is None:
            return may_be_read(name, role)
        return variants[name.rpartition("/")[0]] in (found[1], found[4])

    return [name for name in names if is_read(name)]


def variants_read(names: Iterable[str], role: Role) -> dict[str, str | None]:
    """The variant of each part whose weights are not there under their plain name; None if there are none at all."""
    files: dict[str, set[str]] = {part: set() for part in _WITH_WEIGHTS[role]}
    folders = set()
    for name in names:
        part, _, file = name.rpartition("/")
        folders.add(name.split("/")[0])
        if part in files:
            files[part].add(file)
    entries = {part: weights_entry(files[part], library) for part, library in _WITH_WEIGHTS[role].items()}
    return {
        part: entry and entry[1]
        for part, entry in entries.items()
        if (not part or part in folders) and (entry is None or entry[1] is not None)
    }


def plain_entries(part: str, role: Role) -> list[str]:
    """The paths of the files with which a part's weights begin if they are there under their plain name."""
    names = entry_names(_WITH_WEIGHTS[role][part])
    return [f"{part}/{name}" if part else name for name in names]


def model_files(names: Iterable[str], folder: Path, *, name: str, role: Role) -> list[str]:
    """Select the files of a model that are read.

    Args:
        names: the paths of all files in the model's folder, which may be remote.
        folder: a local folder with its entry file, and the indexes of weights in several files.
        name: the model's name in the run spec.

    Raises:
        InvalidInput: the folder is no such model, lacks a component, has no weights, or has them only as a pickle.
    """
    names = list(names)
    entry = ENTRY_FILE[role]
    if entry not in names:
        raise no_entry_file(names, name, role)
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
    read = [one for files in parts.values() for one in readable_files(files, role)]
    read += _parts_of_indexes(folder, read, names, f"{role} {name!r}")
    if not any(one.endswith(WEIGHTS) for one in read):
        raise InvalidInput(f"{role} {name!r} has no weights (*.safetensors)", fix="complete the folder")
    if role == "base_model":
        return [entry, *read]
    _check_is_clip(folder / entry, name)
    return read


def _parts_of_indexes(folder: Path, read: list[str], names: Iterable[str], what: str) -> list[str]:
    """What the indexes among `read` name beside the others: their files belong to the model whatever they are called.

    Raises:
        InvalidInput: an index is damaged, or names what is no safetensors file in its folder or is not there.
    """
    found: set[str] = set()
    for index in (one for one in read if is_index(one) and (folder / one).is_file()):
        place = index.rpartition("/")[0]
        with weights_of(what, index):
            parts = set(read_index(folder / index).values())
            found |= {f"{place}/{part}" if place else part for part in parts}
            for part in sorted(found.difference(names)):
                raise missing_part(folder / index, part.rpartition("/")[2])
    return sorted(found.difference(read))


@contextmanager
def weights_of(what: str, name: str) -> Iterator[None]:
    """A file that cannot be used is invalid input.

    Args:
        what: the model's name in messages.
        name: the file's path in the model's folder.
    """
    try:
        yield
    except UnusableWeights as error:
        place = name[: name.rfind("/") + 1]
        raise InvalidInput(f"{what}: {place}{error.message}", fix=error.fix) from error


def check_weights(folder: Path, files: Iterable[str], what: str) -> None:
    """Check that weights are complete, by their headers: partial downloads are the usual fault.

    Args:
        what: the model's name in messages.

    Raises:
        InvalidInput: a file is damaged, cut off or missing, or a pointer that Git LFS has not replaced.
    """
    for name in files:
        with weights_of(what, name):
            check_file(folder / name)


def no_entry_file(names: Iterable[str], name: str, role: Role) -> InvalidInput:
    """What to say about a folder without the file that identifies it as a model."""
    reason = f"{role} {name!r} is not {_KIND[role]}: it has no {ENTRY_FILE[role]}"
    single = [one for one in names if "/" not in one and one.endswith(CHECKPOINTS)]
    if single:
        reason += f", but the single file {single[0]}"
    return InvalidInput(reason, fix="give the folder that `save_pretrained` wrote")


def _check_is_clip(config: Path, name: str) -> None:
    kind = _read_json(config, f"scorer {name!r}").get("model_type")
    if kind != "clip":
        reason = f"scorer {name!r} is not a CLIP model: its config.json says {kind!r}"
        raise InvalidInput(reason, fix="give one that CLIPModel saved, such as 'openai/clip-vit-base-patch32'")


def _components(index_file: Path, name: str, folders: set[str]) -> list[str]:
    """The component folders that a pipeline's index names and loading needs."""
    index = _read_json(index_file, f"base_model {name!r}")
    named = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    if "unet" not in named:
        has = f"a transformer, {index['transformer'][-1]}, and " if "transformer" in named else ""
        raise InvalidInput(
            f"base_model {name!r} is a {index.get('_class_name', 'pipeline')}: it has {has}no UNet",
            fix="give a Stable Diffusion 1.x, 2.x or XL model: only those, which have a UNet, can be personalized",
        )
    needed = [key for key in named if key not in UNUSED_COMPONENTS]
    missing = [key for key in needed if key not in folders]
    if missing:
        is_link = (index_file.parent / missing[0]).is_symlink()
        what = f"lacks the folder {missing[0]!r} that model_index.json names"
        where = f": it is a link to {os.readlink(index_file.parent / missing[0])}" if is_link else ""
        raise InvalidInput(f"base_model {name!r} {what}{where}", fix=COPY_AGAIN)
    return needed


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, dict):
            return found
        error = None
    except (OSError, ValueError, RecursionError) as caught:
        error = caught
    if is_lfs_pointer(file):
        with weights_of(what, file.name):
            raise damaged(file, error)
    raise InvalidInput(f"{what}: its {file.name} is damaged", fix=COPY_AGAIN) from error
