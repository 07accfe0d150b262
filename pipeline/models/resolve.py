"""Resolve a model's name (see `names`) to a folder on this machine and a revision."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from ...core.errors import InvalidInput, StoreRefused
from ..storage.uri import normalized
from .cache import ModelCache
from .folder import ResolvedModel, Role, check_weights, files_of_folder, model_files
from .folder_digest import FOLDER_DIGEST, folder_digest
from .hub import hub_model, is_offline
from .names import SPRITEWORLD, check_model_uri, is_uri
from .remote_folder import OnBytes
from .single_file import is_single_file, single_file_error

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_model(
    name: str,
    revision: str | None = None,
    *,
    role: Role = "base_model",
    weights: bool = True,
    on_bytes: OnBytes | None = None,
) -> ResolvedModel:
    """Return a model, downloading what is not on this machine.

    Args:
        name: "spriteworld", a folder (relative to the working directory, or as a file: URI), a Hub id "owner/name", or
            the URI of a folder in an object store.
        revision: a Hub repository's branch, tag or commit, None for its main branch; the digest "sha256:…" of a URI's
            folder, None for its current one.
        weights: False: only what planning needs, if the revision is known without the weights.
        on_bytes: called with (bytes so far, total) while a URI is fetched; by default the progress is logged.

    Raises:
        InvalidInput: there is no such model, it has no safetensors, or it cannot have that revision.
        StoreError: the Hub or the store cannot be reached, or the disk is full.
    """
    place = normalized(name)
    if is_uri(name):
        return _from_store(place, revision, role, weights, on_bytes)
    if revision is not None and (name == SPRITEWORLD or os.path.isdir(place)):
        reason = f"{role} {name!r} has no revisions, but {revision!r} is given"
        raise InvalidInput(reason, fix="set the revision to null")
    if name == SPRITEWORLD:
        return _spriteworld(role)
    if os.path.isdir(place):
        return _from_folder(Path(place), name, role)
    if os.path.isfile(place):
        raise single_file_error(Path(place), name, role)
    if is_single_file(name):
        raise InvalidInput(
            f"{role} {name!r}: there is no such file", fix="check the path; it starts at the folder here"
        )
    if name.lower().startswith(("/", ".", "~", "file:")) or name.count("/") != 1:
        near = difflib.get_close_matches(name, [SPRITEWORLD], n=1)
        choices = "give 'spriteworld', an existing folder, a Hub id 'owner/name', or a URI such as s3://bucket/model"
        fix = f"did you mean {near[0]!r}?" if near else choices
        raise InvalidInput(f"{role} {name!r} is no folder here and no Hub id", fix=fix)
    return hub_model(name, revision, role=role, weights=weights)


def model_on_this_machine(
    planned: ResolvedModel, name: str, role: Role, *, on_bytes: OnBytes | None = None
) -> ResolvedModel:
    """Return the model that the run was planned with, on the worker's machine and with its weights.

    Args:
        planned: the model as the driver resolved it; its path may not exist on this machine.
        name: its name in the run spec.

    Raises:
        InvalidInput: the model cannot be resolved here, or has another revision.
        StoreError: the Hub or the store cannot be reached, or the disk is full.
    """
    if name == SPRITEWORLD:
        found = _spriteworld(role)
    elif is_uri(name) or _COMMIT.fullmatch(planned.revision):
        found = resolve_model(name, planned.revision, role=role, on_bytes=on_bytes)
    else:  # the name may be relative to the driver's working directory
        found = resolve_model(planned.path if os.path.isdir(planned.path) else name, role=role)
    if found.revision != planned.revision:
        raise InvalidInput(
            f"{role} {name!r} is revision {found.revision} on this worker, "
            f"but {planned.revision} where the run started",
            fix="install the same version of persres-batch and of the model on every node",
        )
    return found


def pinned_revision(name: str, revision: str) -> str | None:
    """The `revision` argument with which `resolve_model` returns this model again; None: it takes none."""
    return revision if is_uri(name) or _COMMIT.fullmatch(revision) else None


def _spriteworld(role: Role) -> ResolvedModel:
    from .. import spriteworld

    path = spriteworld.base_model_path() if role == "base_model" else spriteworld.scorer_path()
    return ResolvedModel(str(path), spriteworld.REVISION)


def _from_folder(folder: Path, name: str, role: Role) -> ResolvedModel:
    files = model_files(files_of_folder(folder), folder, name=name, role=role)
    check_weights(folder, files, f"{role} {name!r}")
    return ResolvedModel(str(folder), folder_digest(folder, [folder / file for file in files]))


def _from_store(uri: str, revision: str | None, role: Role, weights: bool, on_bytes: OnBytes | None) -> ResolvedModel:
    check_model_uri(uri, role)
    if revision is not None and not FOLDER_DIGEST.fullmatch(revision):
        reason = f"{role} {uri!r} has no revision {revision!r}: a folder's revision is the digest of its files"
        raise InvalidInput(reason, fix="set it to null, or to 'sha256:…' as rows of a catalog or `fetch` show it")
    cache = ModelCache()
    if not is_offline():
        return cache.fetch(uri, role=role, revision=revision, weights=weights, on_bytes=on_bytes)
    known = revision or cache.last_revision(uri, role=role)
    found = cache.find(known, weights=weights) if known else None
    if found is None:
        fix = "run `persres-batch fetch --spec RUN.YAML` on this machine while it is online, without HF_HUB_OFFLINE"
        raise StoreRefused(f"{role} {uri!r} is not in the local cache, and HF_HUB_OFFLINE forbids requests", fix=fix)
    return found
