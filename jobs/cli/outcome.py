"""How a `submit` ended, for whoever is not a person at a terminal: the JSON of `--json`, and the webhook's message."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...core.errors import CatalogHeld, InvalidInput, ManifestInvalid, PersresError, Problem
from ...pipeline.manifest.row import without_credentials
from ...pipeline.run.summary import RunSummary
from ..format import cost_words, duration
from ..observe.webhook import Webhook
from ..submit import FinishedRun, RunStopped

State = Literal["ended", "nothing", "failed", "stopped", "refused", "held"]
"""ended: every concept is done or failed. nothing: all were current. failed: the run says why. stopped: somebody wanted
that. refused: the manifest, the spec or the command cannot be used. held: another run has the catalog."""

MESSAGE_VERSION = 1
OK, CONCEPTS_FAILED = 0, 3


@dataclass(slots=True)
class RunEnding:
    """How one `submit` ended, as far as is known yet. A run has its id once it holds the catalog, a job sooner.

    Attributes:
        report: where the page lies of this run, or of the last run that made one.
        error: what ended it, if it did not come to its end; `fix` is what to do then.
        webhook: whom to tell, if anybody.
        has_begun: the run holds, or held, the catalog.
    """

    manifest: str
    catalog: str
    run_id: str | None = None
    state: State | None = None
    exit_code: int = OK
    summary: RunSummary | None = None
    report: str | None = None
    pruned: int = 0
    error: str | None = None
    fix: str | None = None
    problems: tuple[Problem, ...] = ()
    webhook: Webhook | None = None
    has_begun: bool = False

    def begun(self, run_id: str) -> None:
        """The run holds its catalog under this id."""
        self.run_id, self.has_begun = run_id, True

    def finished(self, finished: FinishedRun, report: str | None) -> None:
        """The run came to its end."""
        summary = finished.summary
        did_something = summary.committed or summary.failed or finished.pruned
        self.run_id, self.state = summary.run_id, "ended" if did_something else "nothing"
        self.exit_code = CONCEPTS_FAILED if summary.failed else OK
        self.summary, self.report, self.pruned = summary, report, finished.pruned

    def broken_off(self, error: Exception) -> None:
        """The run did not come to its end, or did not begin."""
        self.state = _state(error, begun=self.has_begun)
        if isinstance(error, PersresError):
            where = f"concept {error.concept_id}: " if error.concept_id else ""
            self.exit_code, self.error, self.fix = error.exit_code, where + error.message, error.fix
        else:
            self.exit_code, self.error = 1, f"{type(error).__name__}: {error}"
        if isinstance(error, ManifestInvalid):
            self.problems = error.problems

    def to_json(self) -> str:
        """One object: of a run that came to its end its summary, of any other what went wrong."""
        told: dict[str, Any] = {"state": self.state, "exit_code": self.exit_code, "report": self.report}
        if self.summary is not None:
            told |= {**json.loads(self.summary.to_json()), "pruned": self.pruned}
        else:
            told |= {"run_id": self.run_id, "manifest": without_credentials(self.manifest), "catalog": self.catalog}
            told |= {"error": self.error, "fix": self.fix, "problems": [asdict(problem) for problem in self.problems]}
        return json.dumps(told, indent=1, sort_keys=True)

    def message(self) -> dict[str, Any]:
        """What a webhook is told. It names no concept: who reads a chat need not know a catalog."""
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
        """All of it in a sentence or two."""
        if self.summary is not None:
            return f"{self.catalog}: {_in_words(self.summary, self.pruned)}" + (
                f". Report: {self.report}" if self.report and self.state == "ended" else ""
            )
        fix = f". Fix: {self.fix}" if self.fix else ""
        run = f"run {self.run_id} " if self.run_id else ""
        return f"{self.catalog}: {run}{self.state}: {self.error}{fix}"


@contextmanager
def telling(ending: RunEnding, *, as_json: bool) -> Iterator[RunEnding]:
    """Whatever becomes of the run in the block is told at its end: as JSON on standard output, and to its webhook.

    Nothing is told if the block leaves the ending open, as one does that only hands the run to somebody else. A webhook
    that cannot be reached is a warning on standard error.
    """
    try:
        yield ending
    except Exception as error:
        if not _is_exit(error):
            ending.broken_off(error)
        raise
    finally:
        if ending.state is not None:
            if as_json:
                print(ending.to_json(), flush=True)
            warning = ending.webhook.tell(ending.state, ending.message()) if ending.webhook else None
            if warning:
                print(f"warning: {warning}", file=sys.stderr)


def _is_exit(error: Exception) -> bool:
    """Whether it is the command line's way of ending with an exit code."""
    import typer

    return isinstance(error, typer.Exit | typer.Abort)


def _state(error: Exception, *, begun: bool) -> State:
    if isinstance(error, RunStopped):
        return "stopped"
    if isinstance(error, CatalogHeld):
        return "held"
    return "refused" if isinstance(error, InvalidInput) and not begun else "failed"


def _counts(summary: RunSummary, pruned: int) -> dict[str, int]:
    return {
        "rows": summary.rows,
        "committed": summary.committed,
        "failed": len(summary.failed),
        "current": summary.current,
        "removed": summary.removed,
        "pruned": pruned,
    }


def _in_words(summary: RunSummary, pruned: int) -> str:
    forgotten = f", {pruned} forgotten" if pruned else ""
    if not (summary.committed or summary.failed):
        return f"nothing to do, all {summary.rows} concepts are current{forgotten}"
    counts = f"{summary.committed} done, {len(summary.failed)} failed, {summary.current} current of {summary.rows}"
    cost = f", {cost_words(summary.cost)}" if summary.cost else ""
    return f"{counts}{forgotten} in run {summary.run_id} ({duration(summary.wall_seconds)}{cost})"


def _escaped(text: str) -> str:
    """Without what chats take for mentions and links: an error may repeat what a manifest says."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
