"""Whether there is a catalog at an address: the one place that decides it.

A mistyped address must not be taken for an empty catalog: a weekly check of one would find it sound for ever.
"""

from __future__ import annotations

from contextlib import suppress

from ...core.errors import InvalidInput, StoreError
from . import layout
from .layout import AttemptPaths, RunPaths
from .store import CatalogStore

_FOLDERS = (layout.LEASES, layout.INDEX, layout.RUNS, layout.COMMITS, layout.RESIDUALS, layout.RENDERINGS)
"""Where to look, the smallest first: every run leaves a lease."""
_LEVELS_BELOW = 2
_FOLDERS_SEARCHED = 100
_NAMED = 3


def open_catalog(uri: str, *, place: str = "", fix: str = "check the path, or submit a manifest first") -> CatalogStore:
    """The catalog at `uri`, which exists.

    Args:
        place: where the address is from, for the message.
        fix: what to do if there is none, unless one is near.

    Raises:
        InvalidInput: there is none, or the address cannot be a catalog's; the message names catalogs that are near.
        StoreError: the store cannot be read.
    """
    return require_catalog(CatalogStore(uri), place=place, fix=fix)


def require_catalog(
    store: CatalogStore, *, place: str = "", fix: str = "check the path, or submit a manifest first"
) -> CatalogStore:
    """`store`, as `open_catalog`."""
    if is_catalog(store):
        return store
    if around := _catalog_around(store):
        fix = f"give the catalog that it lies in: {around}"
    elif below := _catalogs_below(store):
        more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        fix = f"give the catalog below it: {', '.join(below[:_NAMED])}{more}"
    raise InvalidInput(f"there is no catalog at {store.uri}" + (f" ({place})" if place else ""), fix=fix)


def is_catalog(store: CatalogStore) -> bool:
    """Whether a run has left anything there: a lease, an index, a document, a record or a data file.

    Raises:
        StoreError: the store cannot be read.
    """
    return any(_is_object_of_catalog(path) for folder in _FOLDERS for path in store.list(folder))


def _is_object_of_catalog(path: str) -> bool:
    if path.startswith(layout.LEASES):
        return layout.lease_generation(path) is not None
    if path.startswith(layout.INDEX):
        return (path.endswith(".parquet") and "_" in path) or layout.index_version_number(path) is not None
    if run := RunPaths.parse(path):
        return path in (run.plan, run.spec, run.log, run.failures, run.summary, run.report, run.stop_request)
    return AttemptPaths.parse(path) is not None


def _catalogs_below(store: CatalogStore) -> list[str]:
    found: list[str] = []
    folders = [""]
    for _ in range(_LEVELS_BELOW):
        with suppress(StoreError):
            folders = [child for folder in folders for child in store.folders(folder)][:_FOLDERS_SEARCHED]
            found += [store.url(folder) for folder in folders if _looks_like_catalog(store, folder)]
    return found


def _looks_like_catalog(store: CatalogStore, folder: str) -> bool:
    names = {f"{child.removeprefix(folder).strip('/')}/" for child in store.folders(folder)}
    return not names.isdisjoint(_FOLDERS) and is_catalog(CatalogStore(store.url(folder), retry_s=store.retry_s))


def _catalog_around(store: CatalogStore) -> str | None:
    """The catalog whose own folder the address is, such as catalog/commits."""
    parent, _, name = store.uri.rstrip("/").rpartition("/")
    if f"{name}/" not in _FOLDERS or parent.endswith("/"):
        return None
    with suppress(StoreError, InvalidInput):
        if is_catalog(CatalogStore(parent or ".", retry_s=store.retry_s)):
            return parent or "."
    return None
