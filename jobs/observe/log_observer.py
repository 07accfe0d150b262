"""The events of a run, written to its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.errors import ConceptFailure
from ...core.plural import plural
from ...core.timing import PROGRESS_LOG_INTERVAL_S
from ...pipeline.planning.plan import RunPlan
from ...pipeline.run.log import RunLog
from ...pipeline.run.summary import RunSummary
from ...pipeline.shard.summary import ShardSummary
from ..driver.observer import RunObserver
from ..driver.progress import RunProgress
from .display import format_counts, format_time_to_go

if TYPE_CHECKING:
    from ..driver.shard_queue import ShardAttempt

_ACTIONS = {"train": "train and render", "render": "render"}


class LogObserver(RunObserver):
    """Writes every event to a run's log, and progress once in `PROGRESS_LOG_INTERVAL_S` seconds.

    Args:
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(self, log: RunLog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock = log, clock
        self._progress_logged_at = float("-inf")

    def on_progress(self, progress: RunProgress) -> None:
        now = self._clock()
        if now - self._progress_logged_at < PROGRESS_LOG_INTERVAL_S:
            return
        self._progress_logged_at = now
        to_go = progress.seconds_to_go
        self._log.emit(
            "progress",
            ", ".join(filter(None, (format_counts(progress), format_time_to_go(to_go)))),
            committed=progress.committed,
            failed=progress.failed,
            left=progress.left,
            workers=progress.workers,
            shards_waiting=progress.shards_waiting,
            seconds_to_go=None if to_go is None else round(to_go, 1),
        )

    def on_shard_start(self, attempt: ShardAttempt) -> None:
        shard, number = attempt.shard, attempt.attempt
        self._log.emit(
            "shard_started",
            f"shard {shard.shard_id}, attempt {number}: {len(shard.concepts)} to {_ACTIONS[shard.kind]}",
            shard_id=shard.shard_id,
            attempt=number,
            concepts=list(shard.concept_ids),
        )

    def on_shard_end(self, summary: ShardSummary) -> None:
        seconds = {phase: round(value, 3) for phase, value in summary.seconds.items()}
        self._log.emit(
            "shard_ended",
            f"shard {summary.shard_id}, attempt {summary.attempt}: {len(summary.committed)} committed, "
            f"{len(summary.failures)} failed, {sum(seconds.values()):.1f} s",
            shard_id=summary.shard_id,
            attempt=summary.attempt,
            concepts=list(summary.committed),
            seconds=seconds,
            pack_size=summary.pack_size,
            bytes_written=summary.bytes_written,
        )
        for failure in summary.failures:
            log_failure(self._log, failure, shard_id=summary.shard_id, attempt=summary.attempt)

    def on_incident(self, text: str) -> None:
        self._log.emit("incident", text, level="warning")

    def on_notice(self, text: str) -> None:
        self._log.emit("notice", text)


def log_run_start(log: RunLog, plan: RunPlan, *, manifest: str, base_model: str) -> None:
    """Log that a run begins, and its plan.

    Args:
        manifest: its URI, without credentials.
    """
    log.emit("run_started", f"run {log.run_id} of {manifest}", manifest=manifest, base_model=base_model)
    log.emit(
        "plan",
        f"{plural(plan.rows, 'row')}: {len(plan.train)} to train and render, {len(plan.render_only)} to render only, "
        f"{len(plan.current)} current, {len(plan.failures)} failed",
        rows=plan.rows,
        train=len(plan.train),
        render_only=len(plan.render_only),
        current=len(plan.current),
        failed=len(plan.failures),
    )
    for failure in plan.failures:
        log_failure(log, failure)


def log_run_end(log: RunLog, summary: RunSummary, report: str | None) -> None:
    """Log that a run has ended.

    Args:
        report: the URI of its report, if it wrote one.
    """
    log.emit(
        "run_ended",
        f"{plural(summary.rows, 'row')}: {summary.committed} done, {len(summary.failed)} failed, "
        f"{summary.current} current",
        committed=summary.committed,
        failed=len(summary.failed),
        seconds=dict(summary.seconds),
        wall_seconds=summary.wall_seconds,
        report=report,
    )


def log_failure(log: RunLog, failure: ConceptFailure, **shard: str) -> None:
    """Log that a concept has failed.

    Args:
        shard: `shard_id` and `attempt`, if an attempt at a shard reported it.
    """
    text = f"concept {failure.concept_id} failed ({failure.stage}): {failure.reason}"
    log.emit("concept_failed", text, "warning", concept_id=failure.concept_id, stage=failure.stage, **shard)
