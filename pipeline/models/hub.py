"""Models of the Hugging Face Hub, in the local cache of `huggingface_hub`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from ...core.errors import InvalidInput, StoreError, StoreRefused
from ...core.weights.files import VARIANTS
from ..storage.errors import NO_SPACE
from .folder import (
    ENTRY_FILE,
    UNUSED_COMPONENTS,
    ResolvedModel,
    Role,
    check_weights,
    files_of_folder,
    model_files,
    plain_entries,
    variants_read,
)

_SMALL_SUFFIXES = (".json", ".txt", ".model")
# A repository's root often holds single-file checkpoints of many gigabytes beside the components that are loaded.
_PATTERN: dict[Role, str] = {"base_model": "*/*", "scorer": "*"}
_VARIANT_SUFFIXES = (".safetensors", "-*.safetensors", ".safetensors.index.json")
_IGNORED = [
    *(f"{component}/*" for component in UNUSED_COMPONENTS),
    *(f"*.{variant}{suffix}" for variant in VARIANTS for suffix in _VARIANT_SUFFIXES),
    *(f"*.safetensors.index.{variant}.json" for variant in VARIANTS),
]


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests for models."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_model(name: str, revision: str | None, *, role: Role, weights: bool = True) -> ResolvedModel:
    """Return a Hub repository's files in the local cache, downloaded if needed, by one process only.

    Args:
        name: "owner/name".
        revision: a branch, tag or commit; None: the main branch. A cached commit needs no request.
        weights: False: only configuration and tokenizer.

    Raises:
        InvalidInput: there is no such repository or revision, access is not granted, or it has no safetensors.
        StoreError: the model is not cached and the Hub cannot be reached, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    suffixes = (*_SMALL_SUFFIXES, ".safetensors") if weights else _SMALL_SUFFIXES
    allowed = [ENTRY_FILE[role], *(f"{_PATTERN[role]}{suffix}" for suffix in suffixes)]
    with _hub_errors(name, revision, role):
        listed = None if weights else _listing(name, revision)
        path = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=_IGNORED))
        read = _complete(path, name, role) if weights else []
    if weights:
        check_weights(path, read, f"{role} {name!r}")
    elif listed is not None:
        model_files(listed, path, name=name, role=role)
    return ResolvedModel(str(path), path.name, has_weights=weights)  # a snapshot's folder is named by its commit


def _complete(path: Path, name: str, role: Role) -> list[str]:
    """The files of a model in a snapshot, of which those with other names than usual are fetched now.

    A part's weights may be there as a variant only, such as fp16. The repository's listing says so: what a snapshot
    lacks may only not have been fetched. For runs offline, the Hub's cache remembers which files a commit lacks.

    Raises:
        InvalidInput: as `model_files`.
        StoreError: the model is incomplete, and the Hub cannot be reached.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    commit, here = path.name, files_of_folder(path)
    plain = [entry for part in variants_read(here, role) for entry in plain_entries(part, role)]
    if not plain:
        return model_files(here, path, name=name, role=role)
    listed = _listing(name, commit)
    if listed is None:
        if any(try_to_load_from_cache(name, entry, revision=commit) is not _CACHED_NO_EXIST for entry in plain):
            raise LocalEntryNotFoundError(f"{name} is incomplete")
        return model_files(here, path, name=name, role=role)
    read = model_files(listed, path, name=name, role=role)
    if missing := sorted(set(read).difference(here)):
        snapshot_download(name, revision=commit, allow_patterns=[escape(one) for one in missing])
    for entry in set(plain).difference(listed):
        with suppress(EntryNotFoundError):
            hf_hub_download(name, entry, revision=commit)
    return read


def _listing(name: str, revision: str | None) -> list[str] | None:
    """The repository's files, so that one without safetensors is refused early; None: the Hub is unavailable."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline():
        return None
    try:
        found = HfApi().model_info(name, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise
    except Exception as error:  # the HTTP client's errors are no OSErrors
        if not _is_connection_error(error):
            raise
        return None
    return [file.rfilename for file in found.siblings or ()]


@contextmanager
def _hub_errors(name: str, revision: str | None, role: Role) -> Iterator[None]:
    """Translate the Hub client's errors."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        fix = f"accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
        raise InvalidInput(f"{role} {name!r} is gated", fix=fix) from error
    except RevisionNotFoundError as error:
        fix = "give a branch, tag or commit"
        raise InvalidInput(f"{role} {name!r} has no revision {revision!r}", fix=fix) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        fix = "check the id; for a private repository log in with `hf auth login`"
        raise InvalidInput(f"{role} {name!r} is no folder here and not on the Hub", fix=fix) from error
    except Exception as error:  # the HTTP client's errors are no OSErrors
        if not _is_connection_error(error):
            raise
        raise _unavailable(error, f"{role} {name!r}" + (f" at {revision}" if revision else "")) from error


def _is_connection_error(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))


def _unavailable(error: Exception, what: str) -> StoreError:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        fix = "make room, with `hf cache prune` for example, or set HF_HOME to a folder on a larger disk"
        return StoreRefused(f"no room left while {what} was fetched from the Hub", fix=fix)
    if is_offline():
        fix = "run `persres-batch fetch --spec RUN.YAML` on this machine while it is online, without HF_HUB_OFFLINE"
        reason = f"{what} is not in the local cache, or incomplete, and HF_HUB_OFFLINE forbids requests to the Hub"
        return StoreRefused(reason, fix=fix)
    fix = "check the connection and HF_ENDPOINT, or give a folder that holds the model"
    return StoreError(f"{what} is not in the local cache and the Hub cannot be reached", fix=fix)
