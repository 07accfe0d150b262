"""The throughput that earlier runs of a catalog measured, by device and by the settings that affect it.

Each shard measures itself; its commit record stores the measurement, and the run's summary their sums, because records
are deleted by compaction. Besides concepts and images, pack steps and batches are counted: short packs and batches are
padded, so a pack of one concept takes as long as a full one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ...core.errors import StoreError
from ..catalog import layout
from ..catalog.commit_record import Measured
from ..catalog.layout import AttemptPaths, RunPaths
from ..catalog.store import CatalogStore
from ..spec.run_spec import RunSpec
from ..storage.json_document import DamagedDocument, as_document, parse_document
from .fingerprint import digest_of

T = TypeVar("T")

MAX_RUNS = 20
"""Only the newest runs are read, so that an old catalog takes few requests."""
MAX_RECORDS = 64
"""Of runs without a summary, because they are running or lost, the newest commit records are read."""

# The time of a pack step does not depend on these settings. With early stopping, `iterations` affects how many are run.
_NO_EFFECT_ON_STEP_TIME = frozenset(
    {
        "iterations",
        "learning_rate",
        "identifier_learning_rate",
        "initialization",
        "random_std",
        "prompt",
        "identifier_token",
        "schedule",
        "warmup_iterations",
        "decay_iterations",
        "timesteps",
        "timestep_range",
        "reference_order",
        "antithetic_noise",
        "min_snr_gamma",
        "max_gradient_norm",
        "averaging",
        "averaging_iterations",
        "max_residual_norm",
        "warm_start",
        "pack_size",
    }
)
_NO_EFFECT_ON_BATCH_TIME = frozenset({"guidance_scale", "mask_quantile", "negative_prompt", "images_per_prompt"})


@dataclass(frozen=True, slots=True)
class ThroughputKey:
    """Identifies measurements that can be compared: those of shards with equal keys, on one kind of device.

    Attributes:
        training: a digest of the base model and the settings that affect the time of a pack step.
        rendering: a digest of the base model and the settings that affect the time of a batch.
        pack_size: as set in the run spec; None if it is measured for each kind of device.
    """

    training: str
    rendering: str
    pack_size: int | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The measurements of one run.

    Attributes:
        worker_seconds: worker time from when each worker had loaded its model, summed over workers; None for a run
            without a summary.
        start_seconds: from the start of the run until the first worker had loaded its model, if known.
    """

    run_id: str
    measured: tuple[Measured, ...]
    worker_seconds: float | None = None
    start_seconds: float | None = None


def throughput_key(spec: RunSpec, base_revision: str) -> ThroughputKey:
    """The key of the measurements of runs with this spec and base model."""
    training, sampling = spec.training.digest_fields(), spec.sampling.digest_fields()
    ends_early = spec.training.early_stopping is not None
    number_of_steps = {"iterations", "schedule", "decay_iterations"} if ends_early else set()
    free = _NO_EFFECT_ON_STEP_TIME - number_of_steps
    steps = {name: value for name, value in training.items() if name not in free}
    batches = {name: value for name, value in sampling.items() if name not in _NO_EFFECT_ON_BATCH_TIME}
    batches |= {"guided": spec.sampling.guidance_scale > 1, "scorer": spec.scorer}
    pack_size = None if spec.training.pack_size == "auto" else spec.training.pack_size
    return ThroughputKey(
        digest_of({"base": base_revision, "training": steps}),
        digest_of({"base": base_revision, "sampling": batches, "scoring": spec.scoring.batch_size}),
        pack_size,
    )


def pack_steps(iterations: Iterable[int], pack_size: int) -> int:
    """Steps to train concepts of the given iterations in a pack whose free slots take the next concept."""
    slots = [0] * pack_size
    for count in iterations:
        heapq.heapreplace(slots, slots[0] + count)
    return max(slots)


def batch_count(images: int, batch_size: int) -> int:
    """The number of batches that `images` are rendered in; the last one is padded."""
    return math.ceil(images / batch_size)


def sum_measured(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    """The sums of measurements with the same device, settings and pack size, sorted by these."""
    sums: dict[tuple[str, str, str, int], Measured] = {}
    for one in measured:
        key = (one.device, one.training, one.rendering, one.pack_size)
        sums[key] = _add(sums[key], one) if key in sums else one
    return tuple(sums[key] for key in sorted(sums))


def _add(one: Measured, other: Measured) -> Measured:
    counted = ("shards", "concepts", "iterations", "pack_steps", "images", "batches")
    counts = {name: getattr(one, name) + getattr(other, name) for name in counted}
    return replace(
        one,
        **counts,
        train_seconds=round(one.train_seconds + other.train_seconds, 3),
        render_seconds=round(one.render_seconds + other.render_seconds, 3),
    )


def read_measured_runs(store: CatalogStore, *, runs: int = MAX_RUNS, records: int = MAX_RECORDS) -> list[MeasuredRun]:
    """The measurements of a catalog's newest runs, the newest first, without runs that measured nothing.

    Reads at most `runs` summaries and `records` commit records, and lists two folders.

    Raises:
        StoreError: the catalog cannot be read.
    """
    while True:
        ended = {
            paths.run_id: path
            for path in store.list(layout.RUNS)
            if (paths := RunPaths.parse(path)) and path == paths.summary
        }
        summaries = [(run_id, ended[run_id]) for run_id in sorted(ended, reverse=True)[:runs]]
        loose = [path for path in store.list(layout.COMMITS) if (run_id := _run_of(path)) and run_id not in ended]
        wanted = sorted(loose, key=_run_of, reverse=True)[:records]
        try:
            texts = store.read_many([*(path for _, path in summaries), *wanted])
            break
        except StoreError:
            if set(wanted) <= set(store.list(layout.COMMITS)):
                raise
            # A compaction has deleted some of the records: list them again.
    found = [_parse_summary(run_id, texts[path]) for run_id, path in summaries]
    by_run: dict[str, list[Measured]] = {}
    for path in wanted:
        record = _parse(texts[path], _StoredRecord) or _StoredRecord()
        by_run.setdefault(_run_of(path), []).extend(_known([record.measured]))
    found += [MeasuredRun(run_id, sum_measured(measured)) for run_id, measured in by_run.items()]
    return sorted((run for run in found if run.measured), key=lambda run: run.run_id, reverse=True)


def _run_of(record: str) -> str:
    """The run id of a commit record; empty for another object."""
    paths = AttemptPaths.parse(record)
    return paths.run_id if paths else ""


def _parse_summary(run_id: str, text: bytes) -> MeasuredRun:
    summary = _parse(text, _StoredSummary) or _StoredSummary()
    hours = summary.cost.device_hours if summary.cost else None
    seconds = None if hours is None else hours * 3600
    return MeasuredRun(run_id, tuple(_known(summary.measured)), seconds, summary.start_seconds)


@dataclass(frozen=True, slots=True)
class _StoredCost:
    device_hours: float | None = None


@dataclass(frozen=True, slots=True)
class _StoredSummary:
    measured: tuple[Any, ...] = ()
    cost: _StoredCost | None = None
    start_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _StoredRecord:
    measured: Any = None


def _known(measurements: Iterable[Any]) -> Iterator[Measured]:
    """The measurements that have this version's form."""
    for raw in measurements:
        try:
            yield as_document(raw, Measured, name="", fix="")
        except DamagedDocument:
            continue


def _parse(text: bytes, kind: type[T]) -> T | None:
    """A document; None if it is torn or damaged, since it is only used for estimates."""
    try:
        return parse_document(text, kind, name="", fix="")
    except DamagedDocument:
        return None
