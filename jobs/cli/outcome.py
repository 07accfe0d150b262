"""The end of one `submit` for programs: the JSON of `--json`, and the message of the webhook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ...core.errors import CatalogHeld, InvalidInput, ManifestInvalid, PersresError, Problem
from ...core.exit_codes import ExitCode
from ...pipeline.run.duration import format_duration
from ...pipeline.run.states import SubmitOutcome
from ...pipeline.run.summary import RunSummary
from ...pipeline.storage.uri import without_credentials
from ..format import format_cost
from ..observe.webhook import Webhook
from ..submit import FinishedRun, RunStopped
from ..terminal.output import echo, echo_document
from .printing import all_current

MESSAGE_VERSION = 1


@dataclass(slots=True)
class SubmitResult:
    """The end of one `submit`, as far as it is known. A run has its id once it holds the catalog, a job sooner.

    Attributes:
        catalog: None until it is chosen.
        spec: the run spec's path without credentials; None for the default settings.
        report: the page of this run, or of the latest run that wrote one.
        error: why the run failed or did not start, with its `fix`.
        webhook: the webhook to notify, if any.
        has_begun: whether the run holds, or held, the catalog.
    """

    manifest: str
    catalog: str | None
    spec: str | None = None
    run_id: str | None = None
    state: SubmitOutcome | None = None
    exit_code: int = ExitCode.OK
    summary: RunSummary | None = None
    report: str | None = None
    pruned: int = 0
    error: str | None = None
    fix: str | None = None
    problems: tuple[Problem, ...] = ()
    webhook: Webhook | None = None
    has_begun: bool = False

    def start(self, run_id: str) -> None:
        """Record that the run holds its catalog under this id."""
        self.run_id, self.has_begun = run_id, True

    def finish(self, finished: FinishedRun, report: str | None) -> None:
        """Record that the run ended, or had nothing to do."""
        summary = finished.summary
        did_something = summary.committed or summary.failed or finished.pruned
        self.run_id, self.state = summary.run_id, "ended" if did_something else "idle"
        self.exit_code = ExitCode.CONCEPTS_FAILED if summary.failed else ExitCode.OK
        self.summary, self.report, self.pruned = summary, report, finished.pruned

    def fail(self, error: Exception) -> None:
        """Record that the run did not end, or did not start."""
        self.state = _outcome_of(error, has_begun=self.has_begun)
        if isinstance(error, PersresError):
            concept = f"concept {error.concept_id}: " if error.concept_id else ""
            self.exit_code, self.error, self.fix = error.exit_code, concept + error.message, error.fix
        else:
            self.exit_code, self.error = ExitCode.FAILED, f"{type(error).__name__}: {error}"
        if isinstance(error, ManifestInvalid):
            self.problems = error.problems

    def to_json(self) -> str:
        """One object, with the summary of a run that ended, or the error of any other."""
        values: dict[str, Any] = {
            "state": self.state,
            "exit_code": self.exit_code,
            "report": self.report,
            "spec": self.spec,
            "catalog": self.catalog,
        }
        if self.summary is not None:
            values |= {**json.loads(self.summary.to_json()), "pruned": self.pruned}
        else:
            values |= {"run_id": self.run_id, "manifest": without_credentials(self.manifest)}
            values |= {"error": self.error, "fix": self.fix, "problems": [asdict(problem) for problem in self.problems]}
        return json.dumps(values, indent=1, sort_keys=True)

    def message(self) -> dict[str, Any]:
        """The webhook's message. It names no concept: readers of a chat need not know what a catalog holds."""
        summary = self.summary
        return {
            "text": _escaped(self.text()),
            "version": MESSAGE_VERSION,
            "run_id": self.run_id,
            "state": self.state,
            "exit_code": self.exit_code,
            "manifest": without_credentials(self.manifest),
            "catalog": self.catalog,
            "report": self.report,
            "counts": None if summary is None else _counts(summary, self.pruned),
            "cost": asdict(summary.cost) if summary is not None and summary.cost else None,
            "wall_seconds": None if summary is None else summary.wall_seconds,
            "error": self.error,
            "fix": self.fix,
        }

    def text(self) -> str:
        """The same in a sentence or two."""
        subject = self.catalog or without_credentials(self.manifest)
        if self.summary is not None:
            return f"{subject}: {_summary_text(self.summary, self.pruned)}" + (
                f". Report: {self.report}" if self.report and self.state == "ended" else ""
            )
        fix = f". Fix: {self.fix}" if self.fix else ""
        run = f"run {self.run_id} " if self.run_id else ""
        return f"{subject}: {run}{self.state}: {self.error}{fix}"


@contextmanager
def reporting(result: SubmitResult, *, as_json: bool) -> Iterator[SubmitResult]:
    """Report the result of the block at its end: as JSON on standard output, and to its webhook.

    An exception of the block is recorded in the result and raised again. A block that leaves the state open, such as
    one that only submits to a cluster, reports nothing. If the webhook cannot be reached, a warning is printed.
    """
    try:
        yield result
    except Exception as error:
        if not _is_exit(error):
            result.fail(error)
        raise
    finally:
        if result.state is not None:
            if as_json:
                echo_document(result.to_json())
            warning = result.webhook.notify(result.state, result.message()) if result.webhook else None
            if warning:
                echo(f"warning: {warning}", error=True)


def _is_exit(error: Exception) -> bool:
    """Whether the exception is Typer's way to end with an exit code."""
    import typer

    return isinstance(error, typer.Exit | typer.Abort)


def _outcome_of(error: Exception, *, has_begun: bool) -> SubmitOutcome:
    if isinstance(error, RunStopped):
        return "stopped"
    if isinstance(error, CatalogHeld):
        return "held"
    return "refused" if isinstance(error, InvalidInput) and not has_begun else "failed"


def _counts(summary: RunSummary, pruned: int) -> dict[str, int]:
    return {
        "rows": summary.rows,
        "committed": summary.committed,
        "failed": len(summary.failed),
        "current": summary.current,
        "removed": summary.removed,
        "pruned": pruned,
    }


def _summary_text(summary: RunSummary, pruned: int) -> str:
    forgotten = f", {pruned} forgotten" if pruned else ""
    if not (summary.committed or summary.failed):
        return f"nothing to do, {all_current(summary.rows)}{forgotten}"
    counts = f"{summary.committed} done, {len(summary.failed)} failed, {summary.current} current of {summary.rows}"
    cost = f", {format_cost(summary.cost)}" if summary.cost else ""
    return f"{counts}{forgotten} in run {summary.run_id} ({format_duration(summary.wall_seconds)}{cost})"


def _escaped(text: str) -> str:
    """Escape what chats take for mentions and links: an error may repeat what a manifest says."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
