"""A run from start to end: plan, lease, workers, summary, report. `submit` and `demo` call `submit_local`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from ..core.errors import CatalogHeld, PersresError, StoreError
from ..core.exit_codes import ExitCode
from ..core.timing import DRIVER_STORE_RETRY_S
from ..pipeline.catalog.commit_record import CommittedConcept, ShardCommit
from ..pipeline.catalog.index import COMPACT_AFTER, compact, read_committed
from ..pipeline.catalog.layout import AttemptPaths
from ..pipeline.catalog.lease import Lease, hold_lease, owner_here
from ..pipeline.catalog.missing_files import read_present
from ..pipeline.catalog.store import CatalogStore
from ..pipeline.maintenance.forget import forget
from ..pipeline.planning.plan import RunPlan, Shard, make_shards
from ..pipeline.planning.prepare import PreparedRun, prepare_run
from ..pipeline.run.damage import take_back
from ..pipeline.run.documents import RunDocuments
from ..pipeline.run.log import RunEvent, RunLog
from ..pipeline.run.run_id import later_run_id, new_run_id
from ..pipeline.run.run_status import STOPPED_PREFIX
from ..pipeline.run.stop_file import StopFile, watch_stop_file
from ..pipeline.run.summary import RunSummary, account_for
from ..pipeline.spec.prices import Prices
from ..pipeline.spec.run_spec import RunSpec
from ..pipeline.storage.uri import without_credentials
from .cluster.code import installed_versions
from .cluster.placement import Placement, connect_ray
from .cluster.run_jobs import JobMetadata
from .cluster.session_folder import check_session_folder
from .driver.observer import Observers
from .driver.progress import RunOutcome
from .observe.display import RunDisplay, progress_bar
from .observe.event_printer import LogFormat, event_printer
from .observe.holder_notices import HolderNotices
from .observe.log_observer import LogObserver, log_failure, log_run_end, log_run_start
from .observe.model_progress import fetch_planned_models
from .observe.recorder import RunRecorder
from .observe.signals import StopRequest, stop_on_signals
from .terminal.consoles import error_console, silent_console

if TYPE_CHECKING:
    from .driver.shard_queue import ShardAttempt

ASSUMED_PACK_SIZE = 8
"""With `pack_size: auto`, which the workers measure later, shards are cut to whole packs of this size."""


class RunStopped(PersresError):
    """The run was stopped by a signal or by `persres-batch stop`; what was committed is kept."""

    def __init__(self, message: str, *, exit_code: ExitCode = ExitCode.INTERRUPTED) -> None:
        super().__init__(message, fix="submit again, which does only what is missing")
        self.exit_code = exit_code  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that has ended.

    Attributes:
        report: the URI of its report; None if there was nothing to do, and so nothing was written.
        pruned: how many concepts were forgotten because the manifest no longer lists them.
    """

    summary: RunSummary
    report: str | None
    pruned: int = 0


def submit_local(
    manifest_uri: str,
    spec: RunSpec,
    catalog_uri: str,
    *,
    placement: Placement | None = None,
    wait: bool = False,
    prune: bool = False,
    console: Console | None = None,
    run_id: str | None = None,
    on_run: Callable[[str], None] = lambda run_id: None,
    log_format: LogFormat = "text",
) -> FinishedRun:
    """Bring a catalog up to date with a manifest. Blocks until that is done.

    If there is nothing to do, no Ray is started and nothing is written.

    Args:
        wait: while another run holds the catalog, wait for it to end.
        prune: at the end, forget the concepts that the manifest no longer lists.
        console: shows progress; standard error by default.
        run_id: an id made by `later_run_id`; a new one by default. If the catalog has a run with a later id, whose
            results readers would prefer, the run gets a new id and reports it.
        on_run: called with the run's id once it holds the catalog, where it will write its documents.
        log_format: what is printed on the console: a bar and lines for people, or every event as a line of JSON.

    Raises:
        InvalidInput: the manifest or the spec cannot be used; nothing was started.
        CatalogHeld: another run holds the catalog.
        RunStopped: stopped by a signal or by `persres-batch stop`.
        PersresError: the run failed, because of the store or because no worker starts.
    """
    console = console or error_console()
    submission = _Submission(
        manifest_uri=manifest_uri,
        spec=spec,
        catalog_uri=absolute_uri(catalog_uri),
        placement=placement or Placement(),
        wait=wait,
        prune=prune,
        run_id=run_id,
        on_run=on_run,
        console=console if log_format == "text" else silent_console(),
        on_event=event_printer(console, log_format),
    )
    if not submission.placement.join_cluster:
        check_session_folder()
    with stop_on_signals() as stop:
        try:
            return submission.execute(stop)
        except KeyboardInterrupt:
            raise RunStopped("stopped before any work was started", exit_code=stop.exit_code) from None


@dataclass(frozen=True, slots=True)
class _Submission:
    """The arguments of `submit_local`. Bars are shown on `console`, all other output goes to `on_event`."""

    manifest_uri: str
    spec: RunSpec
    catalog_uri: str
    placement: Placement
    wait: bool
    prune: bool
    run_id: str | None
    on_run: Callable[[str], None]
    console: Console
    on_event: Callable[[RunEvent], None]

    def execute(self, stop: StopRequest) -> FinishedRun:
        """Plan, and if there is something to do, acquire the lease and execute the run."""
        recorder, store = RunRecorder(), CatalogStore(self.catalog_uri)
        committed = read_present(store, self.warn)
        with progress_bar(self.console, "reading references") as on_digest:
            prepared = prepare_run(self.manifest_uri, self.spec, committed, on_digest=on_digest)
        for warning in prepared.warnings:
            self.warn(warning)
        plan, ttl_s = prepared.plan(committed), self.spec.recovery.lease_seconds
        while self._has_work(plan):
            run_id = self._choose_run_id(store)
            on_held = HolderNotices(self.notice) if self.wait else None
            with hold_lease(store, run_id, owner_here(), ttl_s, wait=on_held) as lease:
                if store.run_ids()[-1:] > [run_id]:
                    continue  # a later run began while this one waited: readers would prefer its results
                if lease.warning:
                    self.warn(lease.warning)
                # Planned again, because the previous holder may have done some of it.
                plan = prepared.plan(read_present(store))
                if self._has_work(plan):
                    return self._execute_run(run_id, prepared, plan, lease, stop, recorder)
        run_id = self.run_id or later_run_id((), datetime.now(UTC), secrets.token_hex(3))  # nothing will bear it
        idle = _summarize(plan, {}, _NO_OUTCOME, recorder, run_id=run_id, prices=self.spec.prices)
        return FinishedRun(idle, None)

    def warn(self, text: str) -> None:
        self.notice(f"warning: {text}")

    def notice(self, text: str) -> None:
        """Report something outside of the run's log."""
        RunLog(None, self.run_id or "", self.on_event).emit("notice", text)

    def _execute_run(
        self,
        run_id: str,
        prepared: PreparedRun,
        plan: RunPlan,
        lease: Lease,
        stop: StopRequest,
        recorder: RunRecorder,
    ) -> FinishedRun:
        if self.run_id not in (None, run_id):
            self.notice(f"run {self.run_id} is now {run_id}: the catalog has a run that began later")
        self.on_run(run_id)
        store = CatalogStore(self.catalog_uri, retry_s=DRIVER_STORE_RETRY_S)
        with RunLog(store, run_id, self.on_event) as log:
            return _Run(self, run_id, prepared, plan, lease, stop, recorder, log).execute()

    def _choose_run_id(self, store: CatalogStore) -> str:
        """The requested run id, unless the catalog has a later one; else a new one."""
        if self.run_id is not None and store.run_ids()[-1:] < [self.run_id]:
            return self.run_id
        return new_run_id(store)

    def _has_work(self, plan: RunPlan) -> bool:
        return bool(plan.has_work or plan.failures or (self.prune and plan.removed))


@dataclass(frozen=True, slots=True)
class _Run:
    """A run that holds its catalog."""

    submission: _Submission
    run_id: str
    prepared: PreparedRun
    plan: RunPlan
    lease: Lease
    stop: StopRequest
    recorder: RunRecorder
    log: RunLog

    def execute(self) -> FinishedRun:
        """Execute the plan and write the run's documents; also if it is stopped or fails."""
        store_retry_s = self.submission.spec.recovery.store_patience_seconds
        store = CatalogStore(self.submission.catalog_uri, retry_s=store_retry_s)
        try:
            with watch_stop_file(store, self.run_id, self._on_stop_file):
                return self._execute_plan(store)
        except KeyboardInterrupt:
            error = self._stopped()
            self._record_abort(error)
            raise error from None
        except Exception as error:
            self._record_abort(error)
            raise

    def _execute_plan(self, store: CatalogStore) -> FinishedRun:
        documents = RunDocuments(store, self.run_id)
        self._compact(store)  # names the records of a run that was lost, so that none of them can vanish unnoticed
        self._record_start(documents)
        outcome = self._run_workers() if self.plan.has_work else _NO_OUTCOME
        if outcome.left:
            raise self._stopped()
        prices = self.submission.spec.prices
        committed = read_committed(store)
        summary = _summarize(self.plan, committed, outcome, self.recorder, run_id=self.run_id, prices=prices)
        pruned = self._prune(store)
        on_damage = partial(
            take_back,
            store,
            self.plan,
            committed,
            summary,
            lease_generation=self.lease.generation,
            on_failure=partial(log_failure, self.log),
        )
        summary, report = documents.write_end(summary, self.recorder.incidents, on_damage, self.lease.confirm)
        log_run_end(self.log, summary, report)
        if report is None:
            self.log.emit("notice", "stopped after its last concept: `persres-batch report` makes the report")
        try:
            self._compact(store)
        except KeyboardInterrupt:  # the results are committed
            self.log.emit("notice", "stopped while it compacted its records: the next run does that")
        return FinishedRun(summary, report, pruned)

    def _compact(self, store: CatalogStore) -> None:
        """Compact the commit records, unless the run is to stop: the next one does."""
        if self.stop:
            return
        try:
            compact(store, after=COMPACT_AFTER)
        except (StoreError, CatalogHeld) as error:
            self.submission.warn(str(error))

    def _record_start(self, documents: RunDocuments) -> None:
        spec, prune = self.submission.spec, self.submission.prune
        manifest, job = without_credentials(self.submission.manifest_uri), os.environ.get("PERSRES_JOB")
        documents.write_plan(manifest, spec, self.plan, prune=prune, job=job)
        log_run_start(self.log, self.plan, manifest=manifest, base_model=spec.base_model)

    def _run_workers(self) -> RunOutcome:
        submission, spec, prepared = self.submission, self.submission.spec, self.prepared
        if not submission.placement.join_cluster:  # workers on this machine would fetch them without a progress bar
            fetch_planned_models(spec, prepared.base, prepared.scorer, submission.console)
        metadata = JobMetadata.here(self.run_id, submission.manifest_uri, submission.catalog_uri).to_ray()
        connect = connect_ray(submission.placement, spec, metadata=metadata, notify=submission.notice)
        with connect as connection, self.stop.graceful():
            from .cluster.nodes import describe_resources  # Ray reads its environment when it is imported
            from .driver.gpu_worker import worker_factory
            from .driver.run_shards import run_shards
            from .observe.metrics import RunMetrics

            make_worker = worker_factory(
                spec,
                prepared.base,
                prepared.scorer,
                catalog_uri=submission.catalog_uri,
                run_id=self.run_id,
                device=connection.device,
                lease_generation=self.lease.generation,
            )
            with RunDisplay(submission.console, _count_work(self.plan)) as display:
                return run_shards(
                    split_into_shards(self.plan, spec, connection.workers()),
                    make_worker=make_worker,
                    workers=connection.workers,
                    recovery=spec.recovery,
                    observer=Observers(self.recorder, RunMetrics(self.run_id), display, LogObserver(self.log)),
                    lease=self.lease,
                    stop_requested=lambda: bool(self.stop),
                    capacity=lambda: describe_resources(connection.device),
                    find_commit=self._find_commit,
                )

    def _find_commit(self, attempt: ShardAttempt) -> ShardCommit | None:
        store = CatalogStore(self.submission.catalog_uri, retry_s=DRIVER_STORE_RETRY_S)
        path = AttemptPaths(self.run_id, attempt.shard.shard_id, attempt.attempt).record
        return ShardCommit.from_json(store.read(path), path=path) if store.exists(path) else None

    def _prune(self, store: CatalogStore) -> int:
        """Forget what the manifest no longer lists, if requested; before the report is made, which would show it."""
        if not (self.submission.prune and self.plan.removed):
            return 0
        with progress_bar(self.submission.console, "forgetting") as on_progress:
            forget(
                store,
                self.plan.removed,
                generation=self.lease.generation,
                on_progress=on_progress,
                check=self.lease.confirm,
            )
        return len(self.plan.removed)

    def _on_stop_file(self, stop_file: StopFile) -> None:
        self.log.emit("notice", f"{stop_file.by} requested a stop of this run at {stop_file.at}")
        self.stop.set()

    def _stopped(self) -> RunStopped:
        done, work = self.recorder.committed, _count_work(self.plan)
        text = f"{STOPPED_PREFIX} {self.run_id} with {done} of {work} concepts done and committed"
        return RunStopped(text, exit_code=self.stop.exit_code)

    def _record_abort(self, error: BaseException) -> None:
        """Write why the run was stopped or failed to its log and documents, if the store accepts it."""
        stopped = isinstance(error, RunStopped)
        self.log.emit("run_stopped" if stopped else "run_failed", str(error), level="warning" if stopped else "error")
        if isinstance(error, CatalogHeld):
            return  # whoever holds the catalog now may be forgetting concepts that the failures name
        store = CatalogStore(self.submission.catalog_uri, retry_s=DRIVER_STORE_RETRY_S)
        with suppress(StoreError):
            RunDocuments(store, self.run_id).write_abort(self.plan.failures, self.recorder.incidents, str(error))


def absolute_uri(uri: str) -> str:
    """Make a local path absolute, because workers have another working directory; a URI is returned unchanged."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def split_into_shards(plan: RunPlan, spec: RunSpec, workers: int) -> list[Shard]:
    """The shards of a plan, sized for a number of workers."""
    pack_size = spec.training.pack_size
    return make_shards(
        plan, spec.shard_size, workers=workers, pack_size=ASSUMED_PACK_SIZE if pack_size == "auto" else pack_size
    )


_NO_OUTCOME = RunOutcome((), (), {}, 0.0, ())


def _summarize(
    plan: RunPlan,
    committed: Mapping[str, CommittedConcept],
    outcome: RunOutcome,
    recorder: RunRecorder,
    *,
    run_id: str,
    prices: Prices,
) -> RunSummary:
    return account_for(
        plan,
        committed,
        outcome.failures,
        run_id=run_id,
        seconds=outcome.seconds,
        ready_seconds=outcome.ready_seconds,
        wall_seconds=recorder.elapsed_seconds,
        workers=outcome.workers,
        versions=installed_versions(),
        measured=recorder.measured,
        start_seconds=recorder.start_seconds,
        prices=prices,
    )


def _count_work(plan: RunPlan) -> int:
    return len(plan.train) + len(plan.render_only)
