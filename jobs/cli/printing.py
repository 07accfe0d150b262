"""Lines and JSON that several commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from ...core.plural import plural
from ...pipeline.run.duration import format_duration
from ..format import format_cost
from ..terminal.output import echo

if TYPE_CHECKING:
    from ...core.errors import ConceptFailure, Problem
    from ...pipeline.planning.cost import RunCost
    from ...pipeline.run.states import RunState
    from ...pipeline.run.summary import RunSummary
    from ..observe.event_printer import LogFormat

FAILURES_SHOWN = 10

_STATE_TEXTS: dict[RunState, str] = {
    "waiting": "waiting",
    "running": "running",
    "ended": "ended",
    "stopped": "stopped: submit again to continue",
    "failed": "failed: submit again to continue",
    "lost": "lost: submit again to continue",
}


def json_text(value: Any) -> str:
    """Indented JSON; dataclasses become objects."""

    def plain(item: Any) -> Any:
        return asdict(item) if is_dataclass(item) and not isinstance(item, type) else str(item)

    return json.dumps(value, indent=1, sort_keys=True, default=plain)


def print_choices(*lines: str | None, log_format: LogFormat = "text") -> None:
    """Print on standard error which run spec and catalog a command uses, where the user gave none."""
    shown = [line for line in lines if line is not None]
    if log_format == "text":
        echo(*shown, error=True)
        return
    from ...pipeline.run.log import RunLog
    from ..observe.event_printer import event_printer
    from ..terminal.consoles import error_console

    log = RunLog(None, "", event_printer(error_console(), log_format))
    for line in shown:
        log.emit("notice", line)


def problem_line(problem: Problem) -> str:
    """One problem of a manifest: its place, reason, value and fix."""
    place = [
        *([f"row {problem.row}"] if problem.row is not None else []),
        *([f"concept {problem.concept_id}"] if problem.concept_id else []),
        *([f"column {problem.column}"] if problem.column else []),
    ]
    value = f" (value: {problem.value})" if problem.value else ""
    return f"{', '.join(place) or 'manifest'}: {problem.reason}{value}. Fix: {problem.fix}"


def failure_lines(failures: Sequence[ConceptFailure]) -> Iterator[str]:
    """One line for each of the first failed concepts, and the number of the others."""
    return shortened([_failure_line(failure) for failure in failures], FAILURES_SHOWN)


def summary_lines(summary: RunSummary, report: str | None, *, pruned: int = 0) -> Iterator[str]:
    """A run's failures, counts, number of forgotten concepts, and report."""
    yield from failure_lines(summary.failed)
    if not summary.committed and not summary.failed:
        action = "train or render" if pruned else "do"
        yield f"nothing to {action}: {all_current(summary.rows)} ({summary.wall_seconds:.1f} s)"
    else:
        yield (
            f"{plural(summary.rows, 'row')}: {summary.committed} done, {len(summary.failed)} failed, "
            f"{summary.current} current ({format_duration(summary.wall_seconds)}, {plural(summary.workers, 'worker')}"
            f"{busy_text(summary.device_busy_share)}{cost_text(summary.cost)})"
        )
    if pruned:
        yield f"forgot {plural(pruned, 'concept')} that the manifest no longer lists"
    if report:
        yield f"report: {report}"


def state_text(state: RunState) -> str:
    """A run's state, and what to do about it."""
    return _STATE_TEXTS[state]


def busy_text(share: float | None) -> str:
    """The devices' busy share as the end of a list; empty if it is unknown."""
    return "" if share is None else f", device busy {share:.0%}"


def cost_text(cost: RunCost | None) -> str:
    """A run's cost as the end of a list; empty if it is unknown."""
    return "" if cost is None else f", {format_cost(cost)}"


def shortened(lines: Sequence[str], shown: int) -> Iterator[str]:
    """The first lines, and the number of the others."""
    yield from lines[:shown]
    if len(lines) > shown:
        yield f"  … and {len(lines) - shown} more"


def all_current(rows: int) -> str:
    """That all concepts of a manifest are current, for the end of a sentence."""
    return "the one concept is current" if rows == 1 else f"all {rows} concepts are current"


def _failure_line(failure: ConceptFailure) -> str:
    fix = f". Fix: {failure.fix}" if failure.fix else ""
    return f"  failed: {failure.concept_id} ({failure.stage}): {failure.reason}{fix}"
