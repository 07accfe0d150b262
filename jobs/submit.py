"""A run from end to end: plan, lease, workers, accounting, report. The commands `submit` and `demo` both are this."""

from __future__ import annotations

import getpass
import json
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console

from ..core.errors import PersresError, StoreError
from ..pipeline.catalog_lease import Lease, hold_lease
from ..pipeline.catalog_store import CatalogStore
from ..pipeline.commit_index import COMPACT_AFTER, compact
from ..pipeline.manifest_row import without_credentials
from ..pipeline.plan import RunPlan, Shard, make_shards
from ..pipeline.reference_images import load_references
from ..pipeline.report import build_report
from ..pipeline.run_accounting import RunSummary, account_for
from ..pipeline.run_id import new_run_id
from ..pipeline.run_spec import RunSpec
from ..pipeline.shard_commit import read_committed
from .local_ray import embedded_ray, joined_ray
from .prepare_run import PreparedRun, prepare_run
from .run_display import RunDisplay, counting

if TYPE_CHECKING:
    from .run_shards import RunOutcome

DeviceChoice = Literal["auto", "cpu", "cuda"]
WORKERS_ON_CPU = 2
PACK_BEFORE_MEASURING = 8
"""Shards are cut to whole packs of this size where the workers have yet to measure how large theirs are."""


class RunStopped(PersresError):
    """Somebody stopped the run; what was committed is kept."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """How a run ended. `report` is where its page lies; None when there was nothing to do and nothing was written."""

    summary: RunSummary
    report: str | None


@dataclass(frozen=True, slots=True)
class WhereToRun:
    """On what the workers run.

    Attributes:
        workers: how many at once; None: the spec's number, or one for every GPU, or up to two on CPU cores.
        device: "auto" takes GPUs where there are any now.
        join_cluster: use the Ray cluster this process runs in, rather than an embedded one.
        dashboard: serve the embedded Ray's dashboard.
    """

    workers: int | None = None
    device: DeviceChoice = "auto"
    join_cluster: bool = False
    dashboard: bool = False


def submit_local(
    manifest_uri: str,
    spec: RunSpec,
    catalog_uri: str,
    *,
    where: WhereToRun | None = None,
    console: Console | None = None,
) -> FinishedRun:
    """Bring a catalog up to date with a manifest, and wait until that is done.

    A run that has nothing to do starts no Ray and writes nothing.

    Args:
        console: where progress is shown; standard error by default.

    Raises:
        InvalidInput: the manifest or the spec cannot be used; nothing was started.
        CatalogHeld: another run holds the catalog.
        RunStopped: interrupted, by Ctrl-C or a termination signal.
        PersresError: the run cannot go on, because the store or every worker fails.
    """
    try:
        return _submit(manifest_uri, spec, catalog_uri, where or WhereToRun(), console or Console(stderr=True))
    except KeyboardInterrupt:
        raise RunStopped("stopped before any work was started", fix="submit again") from None


def _submit(manifest_uri: str, spec: RunSpec, catalog_uri: str, where: WhereToRun, console: Console) -> FinishedRun:
    started = time.monotonic()
    catalog_uri = absolute_uri(catalog_uri)
    store = CatalogStore(catalog_uri)
    committed = read_committed(store)
    with counting(console, "reading references") as on_digest:
        prepared = prepare_run(manifest_uri, spec, committed, on_digest=on_digest)
    for warning in prepared.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    run_id = new_run_id(store)
    plan = prepared.plan(committed)
    if not plan.has_work and not plan.failures:
        return FinishedRun(_nothing_done(plan, run_id, time.monotonic() - started), None)
    with hold_lease(store, run_id, _owner()) as lease:
        # Planned again, since the run that held the catalog until now may have done some of it.
        run = _Run(run_id, manifest_uri, spec, store, catalog_uri, prepared, prepared.plan(read_committed(store)))
        try:
            run.record_plan()
            return run.carry_out(where, lease, console, started)
        except KeyboardInterrupt:
            raise run.stopped() from None


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: str
    manifest_uri: str
    spec: RunSpec
    store: CatalogStore
    catalog_uri: str
    prepared: PreparedRun
    plan: RunPlan

    def carry_out(self, where: WhereToRun, lease: Lease, console: Console, started: float) -> FinishedRun:
        failures, incidents, seconds, ready_seconds, workers = (), (), {}, 0.0, 0
        if self.plan.has_work:
            outcome, workers = self._work(where, lease, console)
            failures, incidents = outcome.failures, outcome.incidents
            seconds, ready_seconds = outcome.seconds, outcome.ready_seconds
        summary = account_for(
            self.plan,
            read_committed(self.store),
            failures,
            run_id=self.run_id,
            seconds=seconds,
            ready_seconds=ready_seconds,
            wall_seconds=round(time.monotonic() - started, 3),
            workers=workers,
            versions=_versions(),
        )
        report = self._record_end(summary, incidents)
        try:
            compact(self.store, after=COMPACT_AFTER)
        except StoreError as error:  # the results are committed, and the next run folds their records
            console.print(f"warning: {error}", highlight=False, markup=False, soft_wrap=True)
        return FinishedRun(summary, report)

    def _work(self, where: WhereToRun, lease: Lease, console: Console) -> tuple[RunOutcome, int]:
        with _ray(where, self.spec) as (workers, device), _interruptible():
            from .gpu_worker import worker_maker  # Ray reads its environment when it is imported
            from .run_shards import run_shards

            make_worker = worker_maker(
                self.spec,
                self.prepared.base,
                self.prepared.scorer,
                catalog_uri=self.catalog_uri,
                run_id=self.run_id,
                device=device,
            )
            with RunDisplay(console, len(self.plan.train) + len(self.plan.render_only)) as display:
                outcome = run_shards(
                    shards_of(self.plan, self.spec, workers),
                    make_worker=make_worker,
                    workers=workers,
                    on_progress=display.show,
                    on_incident=display.print,
                    check=lease.check,
                )
        return outcome, workers

    def record_plan(self) -> None:
        """Leave what is about to be done in the run's folder, where `status` finds it."""
        plan = {
            "run_id": self.run_id,
            "manifest": without_credentials(self.manifest_uri),
            "train": [concept.concept_id for concept in self.plan.train],
            "render_only": [concept.concept_id for concept in self.plan.render_only],
            "current": len(self.plan.current),
            "removed": list(self.plan.removed),
            "failed": [failure.concept_id for failure in self.plan.failures],
        }
        self._write("spec.yaml", self.spec.to_yaml().encode())
        self._write("plan.json", _json(plan))

    def _record_end(self, summary: RunSummary, incidents: Sequence[str]) -> str:
        failures = {"failures": [asdict(failure) for failure in summary.failed], "incidents": list(incidents)}
        self._write("failures.json", _json(failures))
        page = build_report(self.store, summary=summary, failures=summary.failed, references=self._references())
        self._write("report.html", page.encode())
        self._write("summary.json", summary.to_json())
        return self.store.url(self.store.run_file(self.run_id, "report.html"))

    def _references(self) -> Callable[[str], Sequence[np.ndarray]]:
        rows = {concept.concept_id: concept.row for concept in self.prepared.planned}

        def references(concept_id: str) -> Sequence[np.ndarray]:
            row = rows.get(concept_id)
            return load_references(row, self.spec.references) if row else ()

        return references

    def _write(self, name: str, data: bytes) -> None:
        self.store.write(self.store.run_file(self.run_id, name), data)

    def stopped(self) -> RunStopped:
        """What to tell somebody who has stopped this run."""
        work = len(self.plan.train) + len(self.plan.render_only)
        missing = self.prepared.plan(read_committed(self.store))
        done = work - len(missing.train) - len(missing.render_only)
        return RunStopped(
            f"stopped run {self.run_id} with {done} of {work} concepts done and committed",
            fix="submit again, which does only what is missing",
        )


def absolute_uri(uri: str) -> str:
    """A local path made absolute, for workers start elsewhere; a URI stays as it is."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def shards_of(plan: RunPlan, spec: RunSpec, workers: int) -> list[Shard]:
    """A plan's shards, as so many workers share them."""
    asked = spec.training.pack_size
    return make_shards(
        plan, spec.shard_size, workers=workers, pack_size=PACK_BEFORE_MEASURING if asked == "auto" else asked
    )


def workers_here(where: WhereToRun, spec: RunSpec) -> int:
    """How many workers a run on an embedded Ray has on this machine."""
    gpus, cpus = _devices_here()
    return where.workers or spec.workers or _default_workers(_device(where.device, gpus), gpus, cpus)


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
        versions=_versions(),
    )


@contextmanager
def _ray(where: WhereToRun, spec: RunSpec) -> Iterator[tuple[int, Literal["cpu", "cuda"]]]:
    """Ray for the length of a run; yields how many workers to use, and on what."""
    if where.join_cluster:
        with joined_ray():
            import ray

            gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
            device = _device(where.device, gpus)
            yield where.workers or spec.workers or _default_workers(device, gpus, cpus), device
        return
    gpus, _ = _devices_here()
    device, workers = _device(where.device, gpus), workers_here(where, spec)
    ray_here: AbstractContextManager[None] = embedded_ray(
        workers, gpus=min(gpus, workers) if device == "cuda" else 0, dashboard=where.dashboard
    )
    with ray_here:
        yield workers, device


def _devices_here() -> tuple[int, int]:
    """GPUs, and CPU cores that this process may use."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return torch.cuda.device_count(), cpus


def _device(choice: DeviceChoice, gpus: int) -> Literal["cpu", "cuda"]:
    if choice == "auto":
        return "cuda" if gpus else "cpu"
    return choice


def _default_workers(device: Literal["cpu", "cuda"], gpus: int, cpus: int) -> int:
    return max(1, gpus if device == "cuda" else min(cpus, WORKERS_ON_CPU))


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a termination signal, such as `ray job stop` sends, end the run as Ctrl-C does: orderly, lease released."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in ("persres-batch", "torch", "diffusers", "transformers", "ray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # on a cluster our own code travels with the job and is not installed
    return found


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
