"""How fast the runs of a catalog have been: what shards took, on which device, under which settings that count.

Every shard measures itself. Its commit record keeps that, and the summary of its run adds all of them up, for records
disappear when they are compacted. Concepts and images are counted, and so are the pack steps and batches that they were
done in: short packs and batches are padded, so a pack of one concept takes as long as a full one.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...core.errors import StoreError
from ..catalog.commit_record import Measured
from ..catalog.store import CatalogStore
from .fingerprint import digest_of

if TYPE_CHECKING:  # importing it loads torch, which reading a history does not need
    from ..spec.run_spec import RunSpec

RUNS_READ = 20
"""A history is that of so many newest runs, so that reading it takes few requests however old a catalog is."""
RECORDS_READ = 64
"""Of runs that left no summary, because they are under way or died, so many commit records are looked at."""

# What a step takes does not depend on these. Iterations do count where trainings end early: fewer than they say.
_FREE_IN_TRAINING = frozenset(
    {
        "iterations",
        "learning_rate",
        "identifier_learning_rate",
        "initialization",
        "random_std",
        "prompt",
        "identifier_token",
        "max_residual_norm",
        "warm_start",
        "pack_size",
    }
)
_FREE_IN_RENDERING = frozenset({"guidance_scale", "mask_quantile", "negative_prompt", "images_per_prompt"})


@dataclass(frozen=True, slots=True)
class Pace:
    """Two digests of the settings and the base model: equal where a pack step, or a batch, takes equally long.

    Attributes:
        pack_size: what the settings fix; None where it is measured on each kind of device.
    """

    training: str
    rendering: str
    pack_size: int | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run of a history.

    Attributes:
        held_seconds: how long its workers were there, from the moment each had loaded its model, summed over them; None
            of a run that left no summary.
        start_seconds: from its beginning until the first worker had loaded its model, if known.
    """

    run_id: str
    measured: tuple[Measured, ...]
    held_seconds: float | None = None
    start_seconds: float | None = None


def pace_of(spec: RunSpec, base_revision: str) -> Pace:
    """At what pace a run of this spec with this base model works, whatever the device."""
    training, sampling = spec.training.model_dump(mode="json"), spec.sampling.model_dump(mode="json")
    ends_early = spec.training.early_stopping is not None
    free = _FREE_IN_TRAINING - {"iterations"} if ends_early else _FREE_IN_TRAINING
    steps = {name: value for name, value in training.items() if name not in free}
    batches = {name: value for name, value in sampling.items() if name not in _FREE_IN_RENDERING}
    batches |= {"guided": spec.sampling.guidance_scale > 1, "scorer": spec.scorer}
    pack_size = None if spec.training.pack_size == "auto" else spec.training.pack_size
    return Pace(
        digest_of({"base": base_revision, "training": steps}),
        digest_of({"base": base_revision, "sampling": batches, "scoring": spec.scoring.batch_size}),
        pack_size,
    )


def pack_steps(iterations: Iterable[int], pack_size: int) -> int:
    """Steps that a pack takes for concepts of so many iterations each: a slot that is free takes the next one."""
    slots = [0] * pack_size
    for own in iterations:
        heapq.heapreplace(slots, slots[0] + own)
    return max(slots)


def batches_of(images: int, batch_size: int) -> int:
    """Batches that so many images are rendered in, the last one padded."""
    return math.ceil(images / batch_size)


def added_up(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    """One for each device, pace and pack size, in a fixed order."""
    sums: dict[tuple[str, str, str, int], Measured] = {}
    for one in measured:
        key = (one.device, one.training, one.rendering, one.pack_size)
        held = sums.get(key)
        sums[key] = one if held is None else _sum(held, one)
    return tuple(sums[key] for key in sorted(sums))


def _sum(one: Measured, other: Measured) -> Measured:
    whole = ("shards", "concepts", "iterations", "pack_steps", "images", "batches")
    counts = {name: getattr(one, name) + getattr(other, name) for name in whole}
    return replace(
        one,
        **counts,
        train_seconds=round(one.train_seconds + other.train_seconds, 3),
        render_seconds=round(one.render_seconds + other.render_seconds, 3),
    )


def read_history(store: CatalogStore, *, runs: int = RUNS_READ, records: int = RECORDS_READ) -> list[MeasuredRun]:
    """What the newest runs of a catalog measured, the newest first. Runs of earlier versions, which did not, are left
    out. Reads at most `runs` summaries and `records` commit records, and lists two folders.

    Raises:
        StoreError: the catalog cannot be read.
    """
    while True:
        ended = {path.split("/")[1]: path for path in store.list(store.RUNS) if path.endswith("/summary.json")}
        summaries = [ended[run_id] for run_id in sorted(ended, reverse=True)[:runs]]
        loose = [path for path in store.list(store.COMMITS) if path.endswith(".json") and _run_of(path) not in ended]
        wanted = sorted(loose, key=_run_of, reverse=True)[:records]
        try:
            texts = store.read_many([*summaries, *wanted])
            break
        except StoreError:
            if set(wanted) <= set(store.list(store.COMMITS)):
                raise
            # A compaction took records away meanwhile: look again.
    found = [_of_summary(path.split("/")[1], texts[path]) for path in summaries]
    by_run: dict[str, list[Measured]] = {}
    for path in wanted:
        by_run.setdefault(_run_of(path), []).extend(_measured(_values(texts[path]).get("measured")))
    found += [MeasuredRun(run_id, added_up(measured)) for run_id, measured in by_run.items()]
    return sorted((run for run in found if run.measured), key=lambda run: run.run_id, reverse=True)


def _run_of(record: str) -> str:
    return record.split("/")[1].split("_")[0]


def _of_summary(run_id: str, text: bytes) -> MeasuredRun:
    told = _values(text)
    measured = [one for raw in told.get("measured") or () for one in _measured(raw)]
    cost = told.get("cost") or {}
    hours = cost.get("device_hours")
    return MeasuredRun(run_id, tuple(measured), None if hours is None else hours * 3600, told.get("start_seconds"))


def _measured(raw: Any) -> Sequence[Measured]:
    """None where nothing was measured, or not as this version does: a history is only good for an estimate."""
    try:
        return [Measured.from_values(raw)]
    except TypeError:
        return []


def _values(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:  # a torn record
        return {}
    return values if isinstance(values, dict) else {}
