"""Where a model's files are on this machine, and which weights they are: the demo's, a folder's, a Hub repository's, or
those of a folder in an object store.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from ...core.errors import InvalidInput, StoreRefused
from .cache import REVISION, ModelCache
from .folder import ResolvedModel, Role, check_weights, files_of_folder, model_files
from .folder_digest import folder_digest
from .hub import hub_model, is_offline
from .names import SPRITEWORLD, check_model_uri, is_uri
from .remote_folder import OnBytes

_COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_model(
    name: str,
    revision: str | None = None,
    *,
    role: Role = "base_model",
    weights: bool = True,
    on_bytes: OnBytes | None = None,
) -> ResolvedModel:
    """Find a model, downloading what is not on this machine.

    Args:
        name: "spriteworld", a folder (relative ones start at the working directory), a Hub id "owner/name", or the URI
            of a folder in an object store.
        revision: a Hub repository's branch, tag or commit, None for its main branch; a URI's digest "sha256:…", None
            for whatever is there.
        weights: False: what planning needs is enough, where the revision can be known without the weights.
        on_bytes: called with (bytes so far, of how many) while a URI is fetched; by default the log says so.

    Raises:
        InvalidInput: there is no such model, it has no safetensors, or it cannot have that revision.
        StoreError: the Hub or the store cannot be reached, or there is no room.
    """
    if is_uri(name):
        return _from_store(name, revision, role, weights, on_bytes)
    folder = Path(name.removeprefix("file://")).expanduser()
    if revision is not None and (name == SPRITEWORLD or folder.is_dir()):
        reason = f"{role} {name!r} has no revisions, but {revision!r} is given"
        raise InvalidInput(reason, fix="set the revision to null")
    if name == SPRITEWORLD:
        return _spriteworld(role)
    if folder.is_dir():
        return _in_folder(folder, name, role)
    if name.startswith(("/", ".", "~", "file:")) or name.count("/") != 1:
        near = difflib.get_close_matches(name, [SPRITEWORLD], n=1)
        choices = "give 'spriteworld', an existing folder, a Hub id 'owner/name', or a URI such as s3://bucket/model"
        fix = f"did you mean {near[0]!r}?" if near else choices
        raise InvalidInput(f"{role} {name!r} is no folder here and no Hub id", fix=fix)
    return hub_model(name, revision, role=role, weights=weights)


def model_on_this_machine(
    planned: ResolvedModel, name: str, role: Role, *, on_bytes: OnBytes | None = None
) -> ResolvedModel:
    """The model whose revision the driver planned with, on a worker's own machine, weights and all.

    Args:
        planned: as the driver resolved it; its path may mean something else here, or nothing.
        name: as the run spec has it.

    Raises:
        InvalidInput: it cannot be had here, or another revision of it is what this machine has.
        StoreError: the Hub or the store cannot be reached, or there is no room.
    """
    if name == SPRITEWORLD:
        found = _spriteworld(role)
    elif is_uri(name) or _COMMIT.fullmatch(planned.revision):
        found = resolve_model(name, planned.revision, role=role, on_bytes=on_bytes)
    else:  # the driver may have named its folder relative to its own working directory
        found = resolve_model(planned.path if os.path.isdir(planned.path) else name, role=role)
    if found.revision != planned.revision:
        raise InvalidInput(
            f"{role} {name!r} is revision {found.revision} on this worker, "
            f"but {planned.revision} where the run started",
            fix="install the same version of persres-batch and of the model on every node",
        )
    return found


def pinned_revision(name: str, revision: str) -> str | None:
    """What `resolve_model` takes to find again a model that was once found at `revision`; None: it has one only."""
    return revision if is_uri(name) or _COMMIT.fullmatch(revision) else None


def _spriteworld(role: Role) -> ResolvedModel:
    from .. import spriteworld

    path = spriteworld.base_model_path() if role == "base_model" else spriteworld.scorer_path()
    return ResolvedModel(str(path), spriteworld.REVISION)


def _in_folder(folder: Path, name: str, role: Role) -> ResolvedModel:
    files = model_files(files_of_folder(folder), folder, name=name, role=role)
    check_weights(folder, files, f"{role} {name!r}")
    return ResolvedModel(str(folder), folder_digest(folder, [folder / file for file in files]))


def _from_store(uri: str, revision: str | None, role: Role, weights: bool, on_bytes: OnBytes | None) -> ResolvedModel:
    check_model_uri(uri, role)
    if revision is not None and not REVISION.fullmatch(revision):
        reason = f"{role} {uri!r} has no revision {revision!r}: a folder's revision is the digest of its files"
        raise InvalidInput(reason, fix="set it to null, or to 'sha256:…' as rows of a catalog or `fetch` show it")
    cache = ModelCache()
    if not is_offline():
        return cache.fetch(uri, role=role, revision=revision, weights=weights, on_bytes=on_bytes)
    known = revision or cache.last_of(uri, role=role)
    found = cache.find(known, weights=weights) if known else None
    if found is None:
        fix = "run `persres-batch fetch --spec RUN.YAML` on this machine while it is online, without HF_HUB_OFFLINE"
        raise StoreRefused(f"{role} {uri!r} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it", fix=fix)
    return found
