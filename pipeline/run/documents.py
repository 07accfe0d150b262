"""What a run leaves in its folder of the catalog: spec and plan at its start, failures, report, summary at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...core.errors import ConceptFailure
from ..catalog.index import read_records
from ..catalog.store import CatalogStore
from ..planning.plan import RunPlan
from ..spec.run_spec import RunSpec
from .report import build_report
from .summary import RunSummary


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The documents of one run."""

    store: CatalogStore
    run_id: str

    def write_plan(
        self, manifest_uri: str, spec: RunSpec, plan: RunPlan, *, prune: bool, job: str | None = None
    ) -> None:
        """Leave what is about to be done, where `status` finds it.

        Args:
            manifest_uri: without credentials.
            prune: whether what the manifest no longer lists is removed at the end.
            job: the submission id of a run that is a cluster's job.
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
        self._write("spec.yaml", spec.to_yaml().encode())
        self._write("plan.json", _json(content))

    def write_end(
        self,
        summary: RunSummary,
        incidents: Sequence[str],
        references: Callable[[str], Sequence[np.ndarray]],
    ) -> str:
        """Leave how the run ended, the summary last; returns where the report lies.

        Args:
            references: a concept's pictures, for the report.
        """
        self._write_failures(summary.failed, incidents, None)
        page = build_report(self.store, summary=summary, failures=summary.failed, references=references)
        self._write("report.html", page.encode())
        self._write("summary.json", summary.to_json())
        return self.store.url(self.store.run_file(self.run_id, "report.html"))

    def write_abort(self, planned: Sequence[ConceptFailure], incidents: Sequence[str], ended_by: str) -> None:
        """Leave what is known of a run that did not come to its end, and why.

        Args:
            planned: the failures of rows that could not be planned; those that workers found are in their records.
        """
        told = [failure for record in read_records(self.store, self.run_id) for failure in record.failures]
        self._write_failures((*planned, *told), incidents, ended_by)

    def _write_failures(
        self, failures: Sequence[ConceptFailure], incidents: Sequence[str], ended_by: str | None
    ) -> None:
        failed = [asdict(failure) for failure in failures]
        self._write("failures.json", _json({"failures": failed, "incidents": list(incidents), "ended_by": ended_by}))

    def _write(self, name: str, data: bytes) -> None:
        self.store.write(self.store.run_file(self.run_id, name), data)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
