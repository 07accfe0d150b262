"""A run from end to end: plan, lease, workers, accounting, report. The commands `submit` and `demo` both are this."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from ..core.errors import PersresError, StoreError
from ..pipeline.catalog.commit_record import ShardCommit
from ..pipeline.catalog.index import COMPACT_AFTER, compact, read_committed
from ..pipeline.catalog.lease import Lease, LeaseState, hold_lease, owner_here
from ..pipeline.catalog.store import CatalogStore
from ..pipeline.maintenance.forget import forget
from ..pipeline.manifest.row import without_credentials
from ..pipeline.planning.plan import RunPlan, Shard, make_shards
from ..pipeline.planning.prepare import PreparedRun, prepare_run
from ..pipeline.references.images import load_references
from ..pipeline.run.documents import RunFolder
from ..pipeline.run.log import LogFormat, RunEvent, RunLog, event_printer
from ..pipeline.run.run_id import new_run_id
from ..pipeline.run.state import STOPPED
from ..pipeline.run.stop_file import StopWord, heeding_catalog
from ..pipeline.run.summary import RunSummary, account_for
from ..pipeline.spec.run_spec import RunSpec
from ..pipeline.timing import DRIVER_STORE_RETRY_S, WAIT_NOTICE_INTERVAL_S
from .cluster.code import versions_here
from .cluster.placement import WhereToRun, workplace
from .cluster.run_jobs import JobMetadata
from .driver.progress import RunOutcome
from .observe.display import Pace, RunDisplay, counting
from .observe.model_progress import fetch_planned
from .observe.observer import RunWatch, tell_end, tell_plan
from .observe.run_books import RunBooks
from .observe.signals import StopRequest, heeding_signals

if TYPE_CHECKING:
    from .driver.shard_queue import ShardAttempt

PACK_BEFORE_MEASURING = 8
"""Shards are cut to whole packs of this size where the workers have yet to measure how large theirs are."""


class RunStopped(PersresError):
    """Somebody stopped the run; what was committed is kept."""

    exit_code = 130

    def __init__(self, message: str, *, request: StopRequest) -> None:
        super().__init__(message, fix="submit again, which does only what is missing")
        self.exit_code = request.exit_code  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """How a run ended. `report` is where its page lies; None when there was nothing to do and nothing was written.

    `pruned` counts the concepts that were forgotten because the manifest no longer lists them.
    """

    summary: RunSummary
    report: str | None
    pruned: int = 0


def submit_local(
    manifest_uri: str,
    spec: RunSpec,
    catalog_uri: str,
    *,
    where: WhereToRun | None = None,
    wait: bool = False,
    prune: bool = False,
    console: Console | None = None,
    run_id: str | None = None,
    on_run: Callable[[str], None] = lambda run_id: None,
    log_format: LogFormat = "text",
) -> FinishedRun:
    """Bring a catalog up to date with a manifest, and wait until that is done.

    A run that has nothing to do starts no Ray and writes nothing.

    Args:
        wait: while another run holds the catalog, wait for it to end.
        prune: at the end, forget the concepts that the manifest no longer lists.
        console: where progress is shown; standard error by default.
        run_id: the run's name, as `later_run_id` makes it; by default a new one. It gets a later one, and says so, if
            the catalog has seen a run that began after it: readers believe the latest.
        on_run: told the run's id as soon as it holds the catalog, and so will leave its documents there.
        log_format: what is printed on the console: lines and a bar for people, or every event as a line of JSON.

    Raises:
        InvalidInput: the manifest or the spec cannot be used; nothing was started.
        CatalogHeld: another run holds the catalog.
        RunStopped: interrupted, by Ctrl-C or a termination signal.
        PersresError: the run cannot go on, because the store or every worker fails.
    """
    console = console or Console(stderr=True)
    on_event = event_printer(console, log_format)
    submission = _Submission(
        manifest_uri,
        spec,
        absolute_uri(catalog_uri),
        where or WhereToRun(),
        prune,
        console if log_format == "text" else Console(quiet=True, force_terminal=False),
        run_id,
        on_run,
        on_event,
    )
    with heeding_signals() as stop:
        try:
            return submission.carry_out(stop, wait=wait)
        except KeyboardInterrupt:
            raise RunStopped("stopped before any work was started", request=stop) from None


@dataclass(frozen=True, slots=True)
class _Submission:
    """What somebody asked for, and how to tell them what is going on: bars on `console`, all else by `on_event`."""

    manifest_uri: str
    spec: RunSpec
    catalog_uri: str
    where: WhereToRun
    prune: bool
    console: Console
    run_id: str | None = None
    on_run: Callable[[str], None] = lambda run_id: None
    on_event: Callable[[RunEvent], None] = lambda event: None

    def carry_out(self, stop: StopRequest, *, wait: bool) -> FinishedRun:
        started = time.monotonic()
        store = CatalogStore(self.catalog_uri)
        committed = read_committed(store)
        with counting(self.console, "reading references") as on_digest:
            prepared = prepare_run(self.manifest_uri, self.spec, committed, on_digest=on_digest)
        for warning in prepared.warnings:
            self.say(f"warning: {warning}")
        plan, ttl_s = prepared.plan(committed), self.spec.recovery.lease_seconds
        while self._has_anything_to_do(plan):
            run_id = self._name(store)
            on_held = _WaitNotice(self.say) if wait else None
            with hold_lease(store, run_id, owner_here(), ttl_s, wait=on_held) as lease:
                if store.run_ids()[-1:] > [run_id]:
                    continue  # a run that began while this one waited: readers would believe its results, not ours
                if lease.warning:
                    self.say(f"warning: {lease.warning}")
                # Planned again, since the run that held the catalog until now may have done some of it.
                plan = prepared.plan(read_committed(store))
                if self._has_anything_to_do(plan):
                    if self.run_id not in (None, run_id):
                        self.say(f"run {self.run_id} is now {run_id}: the catalog has seen a run that began later")
                    self.on_run(run_id)
                    return self._run(run_id, prepared, plan, lease, stop, RunBooks(started))
        return FinishedRun(_nothing_done(plan, self._name(store), time.monotonic() - started), None)

    def say(self, text: str) -> None:
        RunLog(None, self.run_id or "", self.on_event).tell("notice", text)

    def _run(
        self,
        run_id: str,
        prepared: PreparedRun,
        plan: RunPlan,
        lease: Lease,
        stop: StopRequest,
        books: RunBooks,
    ) -> FinishedRun:
        store = CatalogStore(self.catalog_uri, patience_s=DRIVER_STORE_RETRY_S)
        with RunLog(store, run_id, self.on_event) as log:
            return _Run(self, run_id, prepared, plan, lease, stop, books, log).carry_out()

    def _name(self, store: CatalogStore) -> str:
        """What the run is called: as somebody has decided, while no run of the catalog sorts after that."""
        if self.run_id is not None and store.run_ids()[-1:] < [self.run_id]:
            return self.run_id
        return new_run_id(store)

    def _has_anything_to_do(self, plan: RunPlan) -> bool:
        return bool(plan.has_work or plan.failures or (self.prune and plan.removed))


class _WaitNotice:
    """Says who holds the catalog that a run waits for: at once, when that changes, and now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._token = ""
        self._said = float("-inf")

    def __call__(self, holder: LeaseState) -> None:
        if holder.token == self._token and time.monotonic() - self._said < WAIT_NOTICE_INTERVAL_S:
            return
        self._token, self._said = holder.token, time.monotonic()
        since = datetime.fromtimestamp(holder.acquired_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._say(f"waiting for run {holder.run_id} of {holder.owner}, which holds the catalog since {since}")


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that holds its catalog."""

    asked: _Submission
    run_id: str
    prepared: PreparedRun
    plan: RunPlan
    lease: Lease
    stop: StopRequest
    books: RunBooks
    log: RunLog
    incidents: list[str] = field(default_factory=list)
    watches: list[RunWatch] = field(default_factory=list)

    def carry_out(self) -> FinishedRun:
        store = CatalogStore(self.asked.catalog_uri, patience_s=self.asked.spec.recovery.store_patience_seconds)
        try:
            with heeding_catalog(store, self.run_id, self._asked_to_stop):
                return self._carry_out(store)
        except KeyboardInterrupt:
            error = self._stopped()
            self._leave_word(error)
            raise error from None
        except Exception as error:
            self._leave_word(error)
            raise

    def _carry_out(self, store: CatalogStore) -> FinishedRun:
        asked, folder = self.asked, RunFolder(store, self.run_id)
        manifest, job = without_credentials(asked.manifest_uri), os.environ.get("PERSRES_JOB")
        folder.write_plan(manifest, asked.spec, self.plan, prune=asked.prune, job=job)
        tell_plan(self.log, self.plan, manifest=manifest, base_model=asked.spec.base_model)
        outcome = self._work() if self.plan.has_work else None
        if outcome is not None and outcome.left:
            raise self._stopped()
        summary = account_for(
            self.plan,
            read_committed(store),
            outcome.failures if outcome else (),
            run_id=self.run_id,
            seconds=outcome.seconds if outcome else {},
            ready_seconds=outcome.ready_seconds if outcome else 0.0,
            wall_seconds=round(time.monotonic() - self.books.started, 3),
            workers=outcome.workers if outcome else 0,
            versions=versions_here(),
            measured=self.books.measured,
            start_seconds=self.books.start_seconds,
            prices=asked.spec.prices,
        )
        pruned = self._prune(store)
        report = folder.write_end(summary, self.incidents, self._references())
        tell_end(self.log, summary, report)
        try:
            compact(store, after=COMPACT_AFTER)
        except StoreError as error:  # the results are committed, and the next run folds their records
            asked.say(f"warning: {error}")
        return FinishedRun(summary, report, pruned)

    def _work(self) -> RunOutcome:
        asked, spec = self.asked, self.asked.spec
        if not asked.where.join_cluster:  # the workers will be on this machine, and here somebody sees how it goes
            fetch_planned(spec, self.prepared.base, self.prepared.scorer, asked.console)
        metadata = JobMetadata.here(self.run_id, asked.manifest_uri, asked.catalog_uri)
        with workplace(asked.where, spec, metadata=metadata.to_ray(), say=asked.say) as place, self.stop.orderly():
            from .cluster.nodes import resources_in_words  # Ray reads its environment when it is imported
            from .driver.gpu_worker import worker_maker
            from .driver.run_shards import run_shards
            from .observe.metrics import RunMetrics

            make_worker = worker_maker(
                spec,
                self.prepared.base,
                self.prepared.scorer,
                catalog_uri=asked.catalog_uri,
                run_id=self.run_id,
                device=place.device,
            )
            total = len(self.plan.train) + len(self.plan.render_only)
            with RunDisplay(asked.console, total) as display:
                watch = RunWatch(display, RunMetrics(self.run_id), self.log, self.books, Pace(total), self.incidents)
                self.watches.append(watch)
                return run_shards(
                    shards_of(self.plan, spec, place.workers()),
                    make_worker=make_worker,
                    workers=place.workers,
                    recovery=spec.recovery,
                    on_progress=watch.progress,
                    on_incident=watch.incident,
                    on_notice=watch.notice,
                    on_start=watch.shard_started,
                    on_shard=watch.shard_ended,
                    check=self.lease.check,
                    may_start=self.lease.is_certain,
                    stop_asked=lambda: bool(self.stop),
                    capacity=lambda: resources_in_words(place.device),
                    find_commit=self._commit_of,
                )

    def _commit_of(self, attempt: ShardAttempt) -> ShardCommit | None:
        store = CatalogStore(self.asked.catalog_uri, patience_s=DRIVER_STORE_RETRY_S)  # the driver must not stand still
        path = store.commit_record(self.run_id, attempt.shard.shard_id, attempt.attempt)
        return ShardCommit.from_json(store.read(path), path=path) if store.exists(path) else None

    def _prune(self, store: CatalogStore) -> int:
        """Forget what the manifest no longer lists, if asked to: before the report is made, which would show it."""
        if not (self.asked.prune and self.plan.removed):
            return 0
        with counting(self.asked.console, "forgetting") as on_progress:
            forget(store, self.plan.removed, on_progress=on_progress, check=self.lease.check)
        return len(self.plan.removed)

    def _references(self) -> Callable[[str], Sequence[np.ndarray]]:
        rows = {concept.concept_id: concept.row for concept in self.prepared.planned}

        def references(concept_id: str) -> Sequence[np.ndarray]:
            row = rows.get(concept_id)
            return load_references(row, self.asked.spec.references) if row else ()

        return references

    def _asked_to_stop(self, word: StopWord) -> None:
        self.log.tell("notice", f"{word.by} wants this run to stop, since {word.at}")
        self.stop.ask()

    def _stopped(self) -> RunStopped:
        """What to tell somebody who has stopped this run."""
        latest = self.watches[-1].latest if self.watches else None
        done = latest.committed if latest else 0
        work = len(self.plan.train) + len(self.plan.render_only)
        return RunStopped(
            f"{STOPPED} {self.run_id} with {done} of {work} concepts done and committed", request=self.stop
        )

    def _leave_word(self, error: BaseException) -> None:
        """What happened is in the run's folder also where the run did not come to its end, if the store takes it."""
        stopped = isinstance(error, RunStopped)
        self.log.tell("run_stopped" if stopped else "run_failed", str(error), level="warning" if stopped else "error")
        store = CatalogStore(self.asked.catalog_uri, patience_s=DRIVER_STORE_RETRY_S)
        with suppress(StoreError):
            RunFolder(store, self.run_id).write_abort(self.plan.failures, self.incidents, str(error))


def absolute_uri(uri: str) -> str:
    """A local path made absolute, for workers start elsewhere; a URI stays as it is."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def shards_of(plan: RunPlan, spec: RunSpec, workers: int) -> list[Shard]:
    """A plan's shards, as so many workers share them."""
    asked = spec.training.pack_size
    return make_shards(
        plan, spec.shard_size, workers=workers, pack_size=PACK_BEFORE_MEASURING if asked == "auto" else asked
    )


def _nothing_done(plan: RunPlan, run_id: str, wall_seconds: float) -> RunSummary:
    return account_for(
        plan,
        {},
        (),
        run_id=run_id,
        seconds={},
        ready_seconds=0.0,
        wall_seconds=round(wall_seconds, 3),
        workers=0,
        versions=versions_here(),
    )
