"""The Prometheus metrics of a run: series named ray_persres_…, exported at the metrics port of the driver's node.

Everything is counted in the driver, so that a lost worker loses no counts. Ray labels every series with its process,
node and session: queries sum over those, and keep `run`.

Ray drops a gauge that has not been set for a few report intervals, so `on_progress` sets all of them every time. Ray
computes the `_sum` of a histogram from the midpoints of its buckets, so only the buckets and the count are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ...pipeline.shard.summary import DEVICE_PHASES, ShardSummary
from ..driver.observer import RunObserver
from ..driver.progress import RunProgress

if TYPE_CHECKING:
    from ray.util import metrics

Kind = Literal["gauge", "counter", "histogram"]

SHARD_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric. `name` is without Ray's prefix, `labels` without the label `run`, which every metric has."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """Its names in Prometheus."""
        name = f"ray_{self.name}"
        if self.kind == "counter":
            return (f"{name}_total",)
        return (f"{name}_bucket", f"{name}_count") if self.kind == "histogram" else (name,)


CONCEPTS = Series("persres_concepts", "gauge", "Concepts of the run: committed, failed, underway, waiting", ("state",))
WORKERS = Series("persres_workers", "gauge", "Workers that have loaded their model")
SHARDS_WAITING = Series("persres_shards_waiting", "gauge", "Shards that wait for a worker")
BUSY_SHARE = Series(
    "persres_device_busy_share", "gauge", "Device time of ended shards as a fraction of the workers' time"
)
SECONDS_TO_GO = Series("persres_seconds_to_go", "gauge", "Estimated time until the run ends, in seconds")
PACK_SIZE = Series("persres_pack_size", "gauge", "Concepts trained together in the shard that ended last")
PHASE_SECONDS = Series("persres_phase_seconds", "counter", "Workers' time by phase, in seconds", ("phase",))
SHARDS_ENDED = Series("persres_shards_ended", "counter", "Attempts at shards that were committed")
RETRIES = Series("persres_shard_retries", "counter", "Attempts that shards needed beyond their first")
INCIDENTS = Series("persres_incidents", "counter", "Workers lost, shards split, store errors and the like")
BYTES_WRITTEN = Series("persres_bytes_written", "counter", "Bytes of data files committed")
SHARD_TIME = Series("persres_shard_seconds", "histogram", "A shard's time in all its phases, in seconds")

ALL_SERIES = (
    CONCEPTS, WORKERS, SHARDS_WAITING, SECONDS_TO_GO, BUSY_SHARE, PACK_SIZE, PHASE_SECONDS, SHARDS_ENDED, RETRIES,
    INCIDENTS, BYTES_WRITTEN, SHARD_TIME,
)  # fmt: skip


class RunMetrics(RunObserver):
    """The metrics of one run, exported by this process, which has to be connected to Ray.

    Args:
        run_id: the label `run` of every series.
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(self, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._updated_at = clock()
        self._workers = 0
        self._worker_seconds = 0.0
        self._device_seconds = 0.0
        self._pack_size: int | None = None
        self._metrics = {series: _make(series, run_id) for series in ALL_SERIES}

    def on_progress(self, progress: RunProgress) -> None:
        in_progress = min(float(progress.left), progress.in_progress)
        states = {
            "committed": progress.committed,
            "failed": progress.failed,
            "underway": in_progress,
            "waiting": progress.left - in_progress,
        }
        for state, count in states.items():
            self._set(CONCEPTS, count, state=state)
        self._set(WORKERS, progress.workers)
        self._set(SHARDS_WAITING, progress.shards_waiting)
        self._set(SECONDS_TO_GO, progress.seconds_to_go)
        self._set(PACK_SIZE, self._pack_size)
        self._set(BUSY_SHARE, self._busy_share(progress.workers))

    def on_shard_end(self, summary: ShardSummary) -> None:
        for phase, seconds in summary.seconds.items():
            self._add(PHASE_SECONDS, seconds, phase=phase)
        self._device_seconds += sum(summary.seconds.get(phase, 0.0) for phase in DEVICE_PHASES)
        self._observe(SHARD_TIME, sum(summary.seconds.values()))
        self._add(SHARDS_ENDED, 1)
        self._add(RETRIES, int(summary.attempt) - 1)
        self._add(BYTES_WRITTEN, summary.bytes_written)
        if summary.pack_size is not None:
            self._pack_size = summary.pack_size

    def on_incident(self, text: str) -> None:
        self._add(INCIDENTS, 1)

    def _busy_share(self, workers: int) -> float | None:
        """The device time of ended shards as a fraction of the workers' time so far; None before the first worker."""
        now = self._clock()
        self._worker_seconds += self._workers * (now - self._updated_at)
        self._updated_at, self._workers = now, workers
        return min(1.0, self._device_seconds / self._worker_seconds) if self._worker_seconds > 0 else None

    def _set(self, series: Series, value: float | None, **labels: str) -> None:
        cast("metrics.Gauge", self._metrics[series]).set(value, labels)  # a no-op for None

    def _add(self, series: Series, value: float, **labels: str) -> None:
        if value > 0:  # Ray rejects an increment of 0
            cast("metrics.Counter", self._metrics[series]).inc(value, labels)

    def _observe(self, series: Series, value: float) -> None:
        cast("metrics.Histogram", self._metrics[series]).observe(value, {})


def _make(series: Series, run_id: str) -> metrics.Metric:
    from ray.util import metrics

    tags = ("run", *series.labels)
    if series.kind == "histogram":
        metric = metrics.Histogram(series.name, series.description, list(SHARD_SECONDS), tag_keys=tags)
    else:
        kind = metrics.Counter if series.kind == "counter" else metrics.Gauge
        metric = kind(series.name, series.description, tag_keys=tags)
    metric.set_default_tags({"run": run_id})
    return metric
