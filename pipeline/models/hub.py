"""Models of the Hugging Face Hub: at one commit, in the cache that `huggingface_hub` keeps for all programs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...core.errors import InvalidInput, StoreError, StoreRefused
from .folder import (
    ENTRY_FILE,
    UNUSED_COMPONENTS,
    VARIANTS,
    ResolvedModel,
    Role,
    check_weights,
    files_of_folder,
    model_files,
)

_SMALL = (".json", ".txt", ".model")
# A repository's root often holds single-file checkpoints of many gigabytes beside the components that are read.
_WHERE: dict[Role, str] = {"base_model": "*/*", "scorer": "*"}
_OF_VARIANTS = (".safetensors", "-*.safetensors", ".safetensors.index.json")
_IGNORED = [
    *(f"{component}/*" for component in UNUSED_COMPONENTS),
    *(f"*.{variant}{rest}" for variant in VARIANTS for rest in _OF_VARIANTS),
    *(f"*.safetensors.index.{variant}.json" for variant in VARIANTS),
]


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids all requests for models."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_model(name: str, revision: str | None, *, role: Role, weights: bool = True) -> ResolvedModel:
    """A Hub repository's files in the local cache, downloaded if need be: once, however many processes ask.

    Args:
        name: "owner/name".
        revision: a branch, tag or commit; None means its main branch. A commit that is in the cache is not asked for.
        weights: False: only configuration and tokenizer.

    Raises:
        InvalidInput: there is no such repository or revision, it may not be read, or it has no safetensors.
        StoreError: the Hub cannot be reached, and the cache does not have it.
    """
    from huggingface_hub import snapshot_download

    suffixes = (*_SMALL, ".safetensors") if weights else _SMALL
    allowed = [ENTRY_FILE[role], *(f"{_WHERE[role]}{suffix}" for suffix in suffixes)]
    with _told(name, revision, role):
        listed = None if weights else _listing(name, revision)
        path = Path(snapshot_download(name, revision=revision, allow_patterns=allowed, ignore_patterns=_IGNORED))
    if weights:
        check_weights(path, model_files(files_of_folder(path), path, name=name, role=role), f"{role} {name!r}")
    elif listed is not None:
        model_files(listed, path, name=name, role=role)
    return ResolvedModel(str(path), path.name, has_weights=weights)  # a snapshot's folder is named by its commit


def _listing(name: str, revision: str | None) -> list[str] | None:
    """The repository's files, to refuse one without safetensors before any worker starts; None: it cannot be asked."""
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
    except Exception as error:  # the HTTP client's own kinds are no OSErrors
        if not _is_of_connection(error):
            raise
        return None
    return [file.rfilename for file in found.siblings or ()]


@contextmanager
def _told(name: str, revision: str | None, role: Role) -> Iterator[None]:
    """The Hub client's errors, as what they mean for the run."""
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
    except Exception as error:  # the HTTP client's own kinds are no OSErrors
        if not _is_of_connection(error):
            raise
        raise _not_to_be_had(error, f"{role} {name!r}" + (f" at {revision}" if revision else "")) from error


def _is_of_connection(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "huggingface_hub"))


def _not_to_be_had(error: Exception, what: str) -> StoreError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room, with `hf cache prune` for example, or set HF_HOME to a folder on a larger disk"
        return StoreRefused(f"no room left while {what} was fetched from the Hub", fix=fix)
    if is_offline():
        fix = "run `persres-batch fetch --spec RUN.YAML` on this machine while it is online, without HF_HUB_OFFLINE"
        reason = f"{what} is not in the local cache, or not whole, and HF_HUB_OFFLINE forbids to ask the Hub"
        return StoreRefused(reason, fix=fix)
    fix = "check the connection and HF_ENDPOINT, or give a folder that holds the model"
    return StoreError(f"{what} is not in the local cache and the Hub cannot be reached", fix=fix)
