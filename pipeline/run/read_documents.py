"""The documents of a run, as its catalog holds them: read by later processes, which may find them damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ...core.errors import ConceptFailure
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..storage.json_document import parse_document
from .summary import RunSummary

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """What `runs/<run id>/plan.json` says about a run; see `RunDocuments.write_plan`."""

    train: tuple[str, ...]
    render_only: tuple[str, ...]
    failed: tuple[str, ...]
    manifest: str = ""
    job: str | None = None

    @property
    def work(self) -> frozenset[str]:
        """The concepts to train or to render."""
        return frozenset((*self.train, *self.render_only))


@dataclass(frozen=True, slots=True)
class StoredFailures:
    """What `runs/<run id>/failures.json` says; `ended_by` is why the run stopped or failed."""

    failures: tuple[ConceptFailure, ...] = ()
    ended_by: str | None = None


def read_plan(store: CatalogStore, run_id: str) -> StoredPlan:
    """The plan of a run that has begun.

    Raises:
        DamagedDocument: it is no plan.
        StoreError: it cannot be read.
    """
    return _read(store, RunPaths(run_id).plan, StoredPlan)


def read_summary(store: CatalogStore, run_id: str) -> RunSummary | None:
    """The summary of a run; None if it has not ended. Raises as `read_plan` does."""
    path = RunPaths(run_id).summary
    return RunSummary.from_json(store.read(path), name=store.url(path)) if store.exists(path) else None


def read_failures(store: CatalogStore, run_id: str) -> StoredFailures:
    """The failures of a run; none if it has not written them. Raises as `read_plan` does."""
    path = RunPaths(run_id).failures
    return _read(store, path, StoredFailures) if store.exists(path) else StoredFailures()


def _read(store: CatalogStore, path: str, kind: type[T]) -> T:
    name = store.url(path)
    fix = f"restore {name} from a copy, or delete it: no result depends on it"
    return parse_document(store.read(path), kind, name=name, fix=fix)
