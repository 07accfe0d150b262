"""The documents of a run in its catalog: spec and plan at its start; failures, report and summary at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ...core.errors import ConceptFailure
from ..catalog.index import read_records
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..planning.plan import RunPlan
from ..spec.run_spec import RunSpec
from .summary import RunSummary

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class RunDocuments:
    """The documents of one run."""

    store: CatalogStore
    run_id: str

    def write_plan(
        self, manifest_uri: str, spec: RunSpec, plan: RunPlan, *, prune: bool, job: str | None = None
    ) -> None:
        """Write the run spec and the plan, with which the run has begun for `status`.

        Args:
            manifest_uri: without credentials.
            prune: whether concepts that the manifest no longer lists are removed at the end.
            job: the submission id, if the run is the job of a cluster.
        """
        content = {
            "run_id": self.run_id,
            "manifest": manifest_uri,
            "train": [concept.concept_id for concept in plan.train],
            "render_only": [concept.concept_id for concept in plan.render_only],
            "current": len(plan.current),
            "removed": list(plan.removed),
            "prune": prune,
            "failed": [failure.concept_id for failure in plan.failures],
            **({"job": job} if job else {}),
        }
        self.store.write(RunPaths(self.run_id).spec, spec.to_yaml().encode())
        self.store.write(RunPaths(self.run_id).plan, _json(content))

    def write_end(
        self,
        summary: RunSummary,
        incidents: Sequence[str],
        references: Callable[[str], Sequence[np.ndarray]],
    ) -> str:
        """Write failures, report and, last, the summary, with which the run has ended. Returns the report's URI.

        Args:
            references: loads a concept's reference images for the report, H x W x 3 uint8.
        """
        from .report import build_report  # here, because only the end of a run needs jinja2 and PIL

        self._write_failures(summary.failed, incidents, None)
        page = build_report(self.store, summary=summary, failures=summary.failed, references=references)
        self.store.write(RunPaths(self.run_id).report, page.encode())
        self.store.write(RunPaths(self.run_id).summary, summary.to_json())
        return self.store.url(RunPaths(self.run_id).report)

    def write_abort(self, planned: Sequence[ConceptFailure], incidents: Sequence[str], ended_by: str) -> None:
        """Write the failures so far of a run that was stopped or failed.

        Args:
            planned: the failures of rows that could not be planned; the workers' are read from the commit records.
            ended_by: why the run stopped or failed.
        """
        recorded = [failure for record in read_records(self.store, self.run_id) for failure in record.failures]
        self._write_failures((*planned, *recorded), incidents, ended_by)

    def _write_failures(
        self, failures: Sequence[ConceptFailure], incidents: Sequence[str], ended_by: str | None
    ) -> None:
        content = {
            "failures": [asdict(failure) for failure in failures],
            "incidents": list(incidents),
            "ended_by": ended_by,
        }
        self.store.write(RunPaths(self.run_id).failures, _json(content))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
