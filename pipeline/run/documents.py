"""The documents of a run in its catalog: spec and plan at its start; failures, report and summary at its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ...core.errors import CatalogHeld, ConceptFailure
from ..catalog.index import read_records
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..planning.plan import RunPlan
from ..spec.run_spec import RunSpec
from .damage import Damage
from .summary import RunSummary


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
        on_damage: Callable[[Sequence[Damage]], RunSummary],
        check: Callable[[], None] = lambda: None,
    ) -> tuple[RunSummary, str | None]:
        """Write failures, the summary, with which the run has ended, and then the report.

        Args:
            check: called before and after; raises if the lease is lost. Whoever has taken it over may have forgotten
                concepts that these documents name: then they are removed.
            on_damage: called with the concepts whose results the report found damaged, if there are any; returns the
                summary that counts them.

        Raises:
            CatalogHeld: `check` does.

        Returns:
            The summary as written, and the report's URI; None if a signal interrupted the report.
        """
        from .report import build_report  # here, because only the end of a run needs jinja2 and PIL

        def count(damaged: Sequence[Damage]) -> RunSummary:
            nonlocal summary
            summary = on_damage(damaged)
            self._write_summary(summary, incidents)
            return summary

        check()
        self._write_summary(summary, incidents)
        try:
            page = build_report(self.store, summary=summary, failures=summary.failed, on_damage=count)
            self.store.write(RunPaths(self.run_id).report, page.encode(errors="backslashreplace"))
        except KeyboardInterrupt:  # all work is done and counted, and `persres-batch report` makes the page
            return summary, None
        finally:
            self._keep_if(check)
        return summary, self.store.url(RunPaths(self.run_id).report)

    def _keep_if(self, check: Callable[[], None]) -> None:
        """Remove the documents that name concepts if `check` finds the lease lost."""
        try:
            check()
        except CatalogHeld:
            paths = RunPaths(self.run_id)
            for path in (paths.report, paths.failures, paths.plan, paths.log, paths.summary):
                self.store.delete(path)
            raise

    def _write_summary(self, summary: RunSummary, incidents: Sequence[str]) -> None:
        self._write_failures(summary.failed, incidents, None)
        self.store.write(RunPaths(self.run_id).summary, summary.to_json())

    def write_abort(self, planned: Sequence[ConceptFailure], incidents: Sequence[str], ended_by: str) -> None:
        """Write the failures so far of a run that was stopped or failed.

        Args:
            planned: the failures of rows that could not be planned; the workers' are read from the commit records.
            ended_by: why the run stopped or failed.
        """
        if self.store.exists(RunPaths(self.run_id).summary):
            return  # the run had ended, and was stopped, or failed, in what comes after
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
