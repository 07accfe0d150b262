"""Warnings of a report about concepts of classes that the run's embedded models do not know."""

from __future__ import annotations

from collections.abc import Iterable

from ...core.errors import InvalidInput
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..planning.run_models import drawn_world_warnings
from ..spec.run_spec import RunSpec
from .catalog_status import newest_run_with


def drawn_class_warnings(store: CatalogStore, macro_classes: Iterable[str]) -> list[str]:
    """The warnings about a catalog's macro classes by the run spec of its newest run.

    None if there is no run, or another version wrote its run spec.

    Raises:
        StoreError: the catalog cannot be read.
    """
    run_id = newest_run_with(store, store.run_ids(), lambda paths: paths.spec)
    if run_id is None:
        return []
    path = RunPaths(run_id).spec
    try:
        spec = RunSpec.from_yaml(store.read(path), name=store.url(path))
    except InvalidInput:
        return []
    return drawn_world_warnings(spec, macro_classes)
