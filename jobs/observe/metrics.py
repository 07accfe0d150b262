"""What Prometheus can ask about a run: the driver's numbers, as series named ray_persres_… on its node's metrics port.

Everything is counted in the driver, so a worker that dies takes no number with it. Ray labels every series with the
process, node and session it comes from: queries sum over all of that, and keep `run`.

Two things about Ray's export are worth knowing: it forgets a gauge that has not been set for a few report intervals, so
`progress` sets them all, every time; and the `_sum` of a histogram is made of its buckets' midpoints, so that only its
buckets and its count say anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ...pipeline.shard.work import DEVICE_PHASES, ShardSummary
from ..driver.progress import RunProgress

if TYPE_CHECKING:
    from ray.util import metrics

Kind = Literal["gauge", "counter", "histogram"]

SHARD_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: its name without Ray's prefix, and what tells its values apart beside the run."""

    name: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        name = f"ray_{self.name}"
        if self.kind == "counter":
            return (f"{name}_total",)
        return (f"{name}_bucket", f"{name}_count") if self.kind == "histogram" else (name,)


CONCEPTS = Series("persres_concepts", "gauge", "Concepts of the run: committed, failed, underway, waiting", ("state",))
WORKERS = Series("persres_workers", "gauge", "Workers that have loaded their model")
SHARDS_WAITING = Series("persres_shards_waiting", "gauge", "Shards that no worker has taken yet")
BUSY_SHARE = Series("persres_device_busy_share", "gauge", "Device time of ended shards, as a part of the workers' time")
SECONDS_TO_GO = Series("persres_seconds_to_go", "gauge", "How long the run is likely to go on, as its terminal says")
PACK_SIZE = Series("persres_pack_size", "gauge", "Concepts trained together in the shard that ended last")
PHASE_SECONDS = Series("persres_phase_seconds", "counter", "Workers' time by phase, in seconds", ("phase",))
SHARDS_ENDED = Series("persres_shards_ended", "counter", "Shards that were carried out")
RETRIES = Series("persres_shard_retries", "counter", "Attempts that shards needed beyond their first")
INCIDENTS = Series("persres_incidents", "counter", "Workers lost, shards split, stores that failed and the like")
BYTES_WRITTEN = Series("persres_bytes_written", "counter", "Bytes of data files committed")
SHARD_TIME = Series("persres_shard_seconds", "histogram", "A shard's time in all its phases, in seconds")

ALL_SERIES = (
    CONCEPTS, WORKERS, SHARDS_WAITING, SECONDS_TO_GO, BUSY_SHARE, PACK_SIZE, PHASE_SECONDS, SHARDS_ENDED, RETRIES,
    INCIDENTS, BYTES_WRITTEN, SHARD_TIME,
)  # fmt: skip


class RunMetrics:
    """The metrics of one run, in the process of its driver, which has to be connected to Ray.

    Args:
        run_id: the label `run` of every series.
        clock: seconds that only grow; tests bring their own.
    """

    def __init__(self, run_id: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard = clock()
        self._workers = 0
        self._worker_seconds = 0.0
        self._device_seconds = 0.0
        self._pack_size: int | None = None
        self._made = {series: _make(series, run_id) for series in ALL_SERIES}

    def progress(self, progress: RunProgress, seconds_to_go: float | None = None) -> None:
        """Take down how far the run is; to be called all the time, at least every few seconds."""
        underway = min(float(progress.left), progress.underway)
        states = {
            "committed": progress.committed,
            "failed": progress.failed,
            "underway": underway,
            "waiting": progress.left - underway,
        }
        for state, count in states.items():
            self._set(CONCEPTS, count, state=state)
        self._set(WORKERS, progress.workers)
        self._set(SHARDS_WAITING, progress.shards_waiting)
        self._set(SECONDS_TO_GO, seconds_to_go)
        self._set(PACK_SIZE, self._pack_size)
        self._set(BUSY_SHARE, self._busy_share(progress.workers))

    def shard_ended(self, summary: ShardSummary) -> None:
        """Count what one attempt at a shard gave."""
        for phase, seconds in summary.seconds.items():
            self._add(PHASE_SECONDS, seconds, phase=phase)
        self._device_seconds += sum(summary.seconds.get(phase, 0.0) for phase in DEVICE_PHASES)
        self._observe(SHARD_TIME, sum(summary.seconds.values()))
        self._add(SHARDS_ENDED, 1)
        self._add(RETRIES, int(summary.attempt) - 1)
        self._add(BYTES_WRITTEN, summary.bytes_written)
        if summary.pack_size is not None:
            self._pack_size = summary.pack_size

    def incident(self, text: str) -> None:
        """Count something that went wrong and was dealt with. Its text goes to the run's log, not into a label."""
        self._add(INCIDENTS, 1)

    def _busy_share(self, workers: int) -> float | None:
        """Device time of what has ended, as a part of the time that workers have been there; None before any is."""
        now = self._clock()
        self._worker_seconds += self._workers * (now - self._heard)
        self._heard, self._workers = now, workers
        return min(1.0, self._device_seconds / self._worker_seconds) if self._worker_seconds > 0 else None

    def _set(self, series: Series, value: float | None, **labels: str) -> None:
        cast("metrics.Gauge", self._made[series]).set(value, labels)  # which does nothing with None

    def _add(self, series: Series, value: float, **labels: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            cast("metrics.Counter", self._made[series]).inc(value, labels)

    def _observe(self, series: Series, value: float) -> None:
        cast("metrics.Histogram", self._made[series]).observe(value, {})


def _make(series: Series, run_id: str) -> metrics.Metric:
    from ray.util import metrics

    tags = ("run", *series.labels)
    if series.kind == "histogram":
        made = metrics.Histogram(series.name, series.description, list(SHARD_SECONDS), tag_keys=tags)
    else:
        kind = metrics.Counter if series.kind == "counter" else metrics.Gauge
        made = kind(series.name, series.description, tag_keys=tags)
    made.set_default_tags({"run": run_id})
    return made
