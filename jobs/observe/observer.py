"""Everybody who wants to know how a run goes, told at once: terminal, metrics, log and books."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...core.errors import ConceptFailure
from ...pipeline.planning.plan import RunPlan
from ...pipeline.run.log import RunLog
from ...pipeline.run.summary import RunSummary
from ...pipeline.shard.work import ShardSummary
from ...pipeline.timing import PROGRESS_LOG_INTERVAL_S
from ..driver.progress import RunProgress
from .display import Pace, RunDisplay, counts, in_words
from .run_books import RunBooks

if TYPE_CHECKING:
    from ..driver.shard_queue import ShardAttempt
    from .metrics import RunMetrics


@dataclass(eq=False)
class RunWatch:
    """What `run_shards` is to call. `latest` is how far the run is; None before anything was heard.

    `log` prints what people are to see as well, so that `display` shows progress alone.
    """

    display: RunDisplay
    metrics: RunMetrics
    log: RunLog
    books: RunBooks
    pace: Pace
    incidents: list[str]
    clock: Callable[[], float] = time.monotonic
    latest: RunProgress | None = None
    _logged: float = field(default=float("-inf"))

    def progress(self, progress: RunProgress) -> None:
        """How far the run is."""
        self.latest = progress
        to_go = self.pace.seconds_to_go(progress)
        self.books.progress(progress)
        self.metrics.progress(progress, to_go)
        self.display.show(progress, to_go)
        if self.clock() - self._logged >= PROGRESS_LOG_INTERVAL_S:
            self._logged = self.clock()
            self._log_progress(progress, to_go)

    def shard_started(self, attempt: ShardAttempt) -> None:
        """A worker was given a shard."""
        shard, number = attempt.shard, attempt.attempt
        self.log.tell(
            "shard_started",
            f"shard {shard.shard_id}, attempt {number}: {len(shard.concepts)} to {_DOING[shard.kind]}",
            shard_id=shard.shard_id,
            attempt=number,
            concepts=list(shard.concept_ids),
        )

    def shard_ended(self, summary: ShardSummary) -> None:
        """An attempt was carried out."""
        self.books.shard_ended(summary)
        self.metrics.shard_ended(summary)
        seconds = {phase: round(value, 3) for phase, value in summary.seconds.items()}
        self.log.tell(
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
            _tell_failure(self.log, failure, shard_id=summary.shard_id, attempt=summary.attempt)

    def incident(self, text: str) -> None:
        """Something went wrong and was dealt with."""
        self.incidents.append(text)
        self.metrics.incident(text)
        self.log.tell("incident", text, level="warning")

    def notice(self, text: str) -> None:
        """What the run waits for."""
        self.log.tell("notice", text)

    def _log_progress(self, progress: RunProgress, to_go: float | None) -> None:
        words = ", ".join(filter(None, (counts(progress), in_words(to_go))))
        self.log.tell(
            "progress",
            words,
            committed=progress.committed,
            failed=progress.failed,
            left=progress.left,
            workers=progress.workers,
            shards_waiting=progress.shards_waiting,
            seconds_to_go=None if to_go is None else round(to_go, 1),
        )


_DOING = {"train": "train and render", "render": "render"}


def tell_plan(log: RunLog, plan: RunPlan, *, manifest: str, base_model: str) -> None:
    """A run begins: of what, and what there is to do.

    Args:
        manifest: its address, without credentials.
    """
    log.tell("run_started", f"run {log.run_id} of {manifest}", manifest=manifest, base_model=base_model)
    log.tell(
        "plan",
        f"{plan.rows} rows: {len(plan.train)} to train and render, {len(plan.render_only)} to render only, "
        f"{len(plan.current)} current, {len(plan.failures)} failed",
        rows=plan.rows,
        train=len(plan.train),
        render_only=len(plan.render_only),
        current=len(plan.current),
        failed=len(plan.failures),
    )
    for failure in plan.failures:
        _tell_failure(log, failure)


def tell_end(log: RunLog, summary: RunSummary, report: str) -> None:
    """A run came to its end.

    Args:
        report: where its page lies.
    """
    log.tell(
        "run_ended",
        f"{summary.rows} rows: {summary.committed} done, {len(summary.failed)} failed, {summary.current} current",
        committed=summary.committed,
        failed=len(summary.failed),
        seconds=dict(summary.seconds),
        wall_seconds=summary.wall_seconds,
        report=report,
    )


def _tell_failure(log: RunLog, failure: ConceptFailure, **where: str) -> None:
    text = f"concept {failure.concept_id} failed ({failure.stage}): {failure.reason}"
    log.tell("concept_failed", text, "warning", concept_id=failure.concept_id, stage=failure.stage, **where)
