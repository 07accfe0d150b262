"""Where a model's files are on this machine, and which weights they are: the demo's, a folder's, or a Hub repository's.

Only safetensors are ever used: reading a pickle runs whatever its author put into it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError, safe_open

from ..core.errors import InvalidInput, StoreError
from .folder_digest import folder_digest
from .spec_fit import check_spec_fits

if TYPE_CHECKING:
    from .run_spec import RunSpec

SPRITEWORLD = "spriteworld"
"""The name of the model that is installed with this package."""

Role = Literal["base_model", "scorer"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_NOT_READ = (*_PICKLES, ".msgpack", ".h5", ".onnx", ".onnx_data", ".md")
_UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
_ENTRY_FILE: dict[Role, str] = {"base_model": "model_index.json", "scorer": "config.json"}
_WHAT: dict[Role, str] = {"base_model": "a diffusers pipeline", "scorer": "a CLIP model"}
# A repository's root often holds single-file checkpoints of many gigabytes beside the components that are read.
_HUB_FILES: dict[Role, list[str]] = {
    "base_model": ["model_index.json", *(f"*/*{suffix}" for suffix in (".json", ".txt", ".model", ".safetensors"))],
    "scorer": ["*.json", "*.txt", "*.model", "*.safetensors"],
}


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """`path`: a folder on this machine. `revision`: what its weights are, the same wherever they are stored."""

    path: str
    revision: str


def resolve_base_model(spec: RunSpec) -> ResolvedModel:
    """The run spec's base model, which goes with the rest of the spec; raises as `resolve_model` does."""
    found = resolve_model(spec.base_model, spec.revision, role="base_model")
    check_spec_fits(spec, found.path)
    return found


def resolve_scorer(spec: RunSpec) -> ResolvedModel | None:
    """The run spec's scorer, None where renderings are not scored; raises as `resolve_model` does."""
    return None if spec.scorer is None else resolve_model(spec.scorer, spec.scorer_revision, role="scorer")


def resolve_model(name: str, revision: str | None = None, *, role: Role = "base_model") -> ResolvedModel:
    """Find a model, downloading it if need be.

    Args:
        name: "spriteworld", a folder (relative ones start at the working directory), or a Hub id "owner/name".
        revision: a Hub repository's branch, tag or commit; None means its main branch.
        role: a base model is a diffusers pipeline folder, a scorer a folder with a CLIP model.

    Raises:
        InvalidInput: there is no such model, it has no safetensors, or a revision is given for what has none.
        StoreError: the Hub cannot be reached.
    """
    is_folder = os.path.isdir(os.path.expanduser(name))
    if revision is not None and (name == SPRITEWORLD or is_folder):
        reason = f"{role} {name!r} has no revisions, but {revision!r} is given"
        raise InvalidInput(reason, fix="set the revision to null")
    if name == SPRITEWORLD:
        return _spriteworld(role)
    if is_folder:
        folder = Path(name).expanduser()
        files = _checked_files(folder, name, role)
        return ResolvedModel(str(folder), folder_digest(folder, files))
    if name.startswith(("/", ".", "~")) or name.count("/") != 1 or "://" in name:
        near = difflib.get_close_matches(name, [SPRITEWORLD], n=1)
        choices = "give 'spriteworld', an existing folder, or a Hub id 'owner/name'"
        fix = f"did you mean {near[0]!r}?" if near else choices
        raise InvalidInput(f"{role} {name!r} is no folder here and no Hub id", fix=fix)
    return _from_hub(name, revision, role)


def _spriteworld(role: Role) -> ResolvedModel:
    from . import spriteworld

    path = spriteworld.base_model_path() if role == "base_model" else spriteworld.scorer_path()
    return ResolvedModel(str(path), spriteworld.REVISION)


def _from_hub(name: str, revision: str | None, role: Role) -> ResolvedModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    ignored = [f"{component}/*" for component in _UNUSED_COMPONENTS]
    try:
        path = snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES[role], ignore_patterns=ignored)
    except GatedRepoError as error:
        fix = f"accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
        raise InvalidInput(f"{role} {name!r} is gated", fix=fix) from error
    except RevisionNotFoundError as error:
        fix = "give a branch, tag or commit"
        raise InvalidInput(f"{role} {name!r} has no revision {revision!r}", fix=fix) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        fix = "check the id; for a private repository log in with `hf auth login`"
        raise InvalidInput(f"{role} {name!r} is no folder here and not on the Hub", fix=fix) from error
    except (LocalEntryNotFoundError, OSError) as error:
        fix = "check the connection, or give a folder that holds the model"
        raise StoreError(f"{role} {name!r} is not in the local cache and the Hub cannot be reached", fix=fix) from error
    _checked_files(Path(path), name, role)
    return ResolvedModel(path, Path(path).name)  # a snapshot's folder is named by its commit


def _checked_files(folder: Path, name: str, role: Role) -> list[Path]:
    """The files of a model that are read, refusing what is none or would have to be unpickled."""
    entry = folder / _ENTRY_FILE[role]
    if not entry.is_file():
        reason = f"{role} {name!r} is not {_WHAT[role]}: it has no {entry.name}"
        raise InvalidInput(reason, fix="give the folder that `save_pretrained` wrote")
    parts = _components(folder, name) if role == "base_model" else [folder]
    files = [entry] if role == "base_model" else []
    for part in parts:
        found = list(_visible_files(part, recursive=role == "base_model"))
        has_safetensors = any(file.suffix == ".safetensors" for file in found)
        pickles = [file for file in found if file.suffix in _PICKLES]
        if pickles and not has_safetensors:
            reason = f"{role} {name!r} has weights only as a pickle: {pickles[0].relative_to(folder).as_posix()}"
            fix = "reading a pickle can run any code; save the model with safe_serialization=True, or choose another"
            raise InvalidInput(reason, fix=fix)
        files += [file for file in found if file.suffix not in _NOT_READ]
    if not any(file.suffix == ".safetensors" for file in files):
        raise InvalidInput(f"{role} {name!r} has no weights (*.safetensors)", fix="complete the folder")
    for file in files:
        _check_weights(file, f"{role} {name!r}: {file.relative_to(folder).as_posix()}")
    if role == "scorer":
        _check_is_clip(entry, name)
    return files


def _check_is_clip(config: Path, name: str) -> None:
    try:
        kind = json.loads(config.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"scorer {name!r}: its config.json is damaged", fix="copy the folder again") from error
    if kind != "clip":
        reason = f"scorer {name!r} is not a CLIP model: its config.json says {kind!r}"
        raise InvalidInput(reason, fix="give one that CLIPModel saved, such as 'openai/clip-vit-base-patch32'")


def _check_weights(file: Path, what: str) -> None:
    """Refuse weights that were cut off or lack a part, by their headers alone: half a download is the usual case."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy"):
                pass
        elif file.name.endswith(".safetensors.index.json"):
            parts = set(json.loads(file.read_text("utf-8"))["weight_map"].values())
            missing = sorted(part for part in parts if not (file.parent / part).is_file())
            if missing:
                raise InvalidInput(f"{what} names {missing[0]!r}, which is not there", fix="copy the folder again")
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise InvalidInput(f"{what} is damaged or cut off: {error}", fix="copy the folder again") from error


def _components(folder: Path, name: str) -> list[Path]:
    try:
        index = json.loads((folder / _ENTRY_FILE["base_model"]).read_text("utf-8"))
        named = [key for key, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    except (ValueError, AttributeError, RecursionError) as error:
        reason = f"base_model {name!r}: its model_index.json is damaged"
        raise InvalidInput(reason, fix="copy the folder again") from error
    missing = [key for key in named if key not in _UNUSED_COMPONENTS and not (folder / key).is_dir()]
    if missing:
        reason = f"base_model {name!r} lacks the folder {missing[0]!r} that model_index.json names"
        raise InvalidInput(reason, fix="copy the folder again")
    return [folder / key for key in named if key not in _UNUSED_COMPONENTS]


def _visible_files(folder: Path, *, recursive: bool) -> Iterator[Path]:
    for path in sorted(folder.rglob("*") if recursive else folder.glob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path
