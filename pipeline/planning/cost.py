"""The cost of a finished run, and an estimate for a planned one from the throughput of earlier runs. Pure functions.

A device hour is an hour in which a worker has its device (a GPU, or a CPU core) with the model loaded, busy or idle.
Starting a node and loading the model are not included: a run does not know when billing of a node starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ..catalog.commit_record import Measured
from ..spec.prices import Prices
from ..spec.run_spec import RunSpec
from .plan import Shard
from .throughput import MeasuredRun, ThroughputKey, batch_count, pack_steps, throughput_key


@dataclass(frozen=True, slots=True)
class RunCost:
    """The device hours of a finished run and their price.

    Attributes:
        amount, currency: None if the run spec has no price.
        devices: the kinds of devices that were used.
    """

    device_hours: float
    amount: float | None = None
    currency: str | None = None
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, worker_seconds: float, measured: Iterable[Measured], prices: Prices) -> RunCost:
        """Compute the cost of a run from the seconds that its workers had their models loaded, summed over workers."""
        hours = round(worker_seconds / 3600, 7)
        amount = prices.of(hours)
        currency = None if amount is None else prices.currency
        return cls(hours, amount, currency, tuple(sorted({one.device for one in measured})))


@dataclass(frozen=True, slots=True)
class ShardWorkload:
    """The work of a shard.

    Attributes:
        iterations: those of each concept to train; empty for a shard that only renders.
        images: the number of images to render.
    """

    iterations: tuple[int, ...]
    images: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a run.

    Attributes:
        key: of the measurements that apply to it.
        batch_size: images rendered together.
        early_stopping: whether training may end before a concept's iterations.
    """

    key: ThroughputKey
    shards: tuple[ShardWorkload, ...]
    batch_size: int
    early_stopping: bool = False

    @property
    def concepts(self) -> int:
        """The number of concepts to train."""
        return sum(len(shard.iterations) for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """The expected cost of a run.

    Attributes:
        concepts, images: how many are to be trained and rendered.
        missing: why there is no estimate; all that follows is then None or 0.
        device: the kind of device that the measurements are from.
        wall_seconds: the expected duration with `workers` workers, including the start of the first worker.
        amount, currency: None if the run spec has no price.
        seconds_per_concept, seconds_per_image: device time; None if there is nothing to train or to render.
        runs, measured_concepts, measured_images: what the estimate is based on.
    """

    concepts: int
    images: int
    workers: int
    missing: str | None = None
    device: str | None = None
    device_hours: float | None = None
    wall_seconds: float | None = None
    amount: float | None = None
    currency: str | None = None
    seconds_per_concept: float | None = None
    seconds_per_image: float | None = None
    runs: int = 0
    measured_concepts: int = 0
    measured_images: int = 0


def workload_of(shards: Sequence[Shard], spec: RunSpec, base_revision: str) -> Workload:
    """The work of a plan's shards."""
    training, sampling = spec.training, spec.sampling
    images_per_prompt = sampling.images_per_prompt * len(sampling.variants)
    warm = training.warm_start

    def of_shard(shard: Shard) -> ShardWorkload:
        iterations = [
            warm.iterations if warm and concept.committed else training.iterations
            for concept in (shard.concepts if shard.kind == "train" else ())
        ]
        prompts = sum(len(concept.row.prompts) for concept in shard.concepts)
        return ShardWorkload(tuple(iterations), images_per_prompt * prompts)

    early_stopping = training.early_stopping is not None
    return Workload(
        throughput_key(spec, base_revision), tuple(map(of_shard, shards)), sampling.batch_size, early_stopping
    )


def estimate_cost(
    workload: Workload,
    runs: Sequence[MeasuredRun],
    prices: Prices,
    workers: int,
    *,
    device: Literal["cpu", "cuda"] | None = None,
) -> CostEstimate:
    """Estimate a run's cost from earlier runs with the same settings and base model.

    Args:
        runs: the newest run first.
        workers: the number of workers of the planned run.
        device: use only measurements on such devices; None: on the kind that was used last.
    """
    trains = any(shard.iterations for shard in workload.shards)
    renders = any(shard.images for shard in workload.shards)
    if not (trains or renders):
        amount = prices.of(0.0)
        return CostEstimate(
            0, 0, workers, device_hours=0.0, wall_seconds=0.0, amount=amount, currency=_currency(prices)
        )
    measured = _Measurements.select(workload, runs, device, trains=trains, renders=renders)
    if measured is None:
        what = " and ".join(word for word, wanted in (("trained", trains), ("rendered", renders)) if wanted)
        where = {"cpu": " on a CPU", "cuda": " on a GPU", None: ""}[device]
        missing = f"no recent run of this catalog has {what} with these settings and this base model{where}"
        return CostEstimate(workload.concepts, workload.images, workers, missing=missing)
    shard_seconds = [measured.seconds(shard, workload) for shard in workload.shards]
    worker_seconds = sum(shard_seconds) / measured.utilization()
    busy_workers = max(1, min(workers, len(shard_seconds)))
    hours = worker_seconds / 3600
    return CostEstimate(
        workload.concepts,
        workload.images,
        workers,
        device=measured.device,
        device_hours=round(hours, 7),
        wall_seconds=round(measured.start_seconds() + max(worker_seconds / busy_workers, *shard_seconds), 3),
        amount=prices.of(hours),
        currency=_currency(prices),
        seconds_per_concept=_rate(measured.train_seconds, measured.concepts) if trains else None,
        seconds_per_image=_rate(measured.render_seconds, measured.images) if renders else None,
        runs=len(measured.runs),
        measured_concepts=measured.concepts if trains else 0,
        measured_images=measured.images if renders else 0,
    )


@dataclass(frozen=True, slots=True)
class _Measurements:
    """The measurements that an estimate is based on, all of one kind of device."""

    device: str
    pack_size: int
    training: tuple[Measured, ...]
    rendering: tuple[Measured, ...]
    runs: tuple[MeasuredRun, ...]

    @classmethod
    def select(
        cls,
        workload: Workload,
        runs: Sequence[MeasuredRun],
        device: Literal["cpu", "cuda"] | None,
        *,
        trains: bool,
        renders: bool,
    ) -> _Measurements | None:
        """Select those of the newest device and pack size for which everything needed was measured, or None."""
        pairs = [(run, one) for run in runs for one in run.measured if _is_on(one, device)]
        training = [(run, one) for run, one in pairs if _has_training_key(one, workload.key)] if trains else []
        rendering = [(run, one) for run, one in pairs if one.rendering == workload.key.rendering and one.batches]
        for _, newest in training if trains else rendering:
            trained = [(run, one) for run, one in training if _has_equal_packs(one, newest)]
            rendered = [(run, one) for run, one in rendering if one.device == newest.device] if renders else []
            if (trained or not trains) and (rendered or not renders):
                used = {run.run_id: run for run, _ in (*trained, *rendered)}
                return cls(
                    newest.device,
                    newest.pack_size,
                    tuple(one for _, one in trained),
                    tuple(one for _, one in rendered),
                    tuple(used.values()),
                )
        return None

    @property
    def concepts(self) -> int:
        return sum(one.concepts for one in self.training)

    @property
    def images(self) -> int:
        return sum(one.images for one in self.rendering)

    @property
    def train_seconds(self) -> float:
        return sum(one.train_seconds for one in self.training)

    @property
    def render_seconds(self) -> float:
        return sum(one.render_seconds for one in self.rendering)

    def seconds(self, shard: ShardWorkload, workload: Workload) -> float:
        """The expected device time of a shard."""
        iterations: Iterable[int] = shard.iterations
        if workload.early_stopping and self.concepts:
            mean = sum(one.iterations for one in self.training) / self.concepts
            iterations = [min(most, round(mean)) for most in shard.iterations]
        steps, batches = pack_steps(iterations, self.pack_size), batch_count(shard.images, workload.batch_size)
        seconds_per_step = self.train_seconds / max(1, sum(one.pack_steps for one in self.training))
        seconds_per_batch = self.render_seconds / max(1, sum(one.batches for one in self.rendering))
        return steps * seconds_per_step + batches * seconds_per_batch

    def utilization(self) -> float:
        """The fraction of worker time in which devices were busy, over all runs where it is known; else 1."""
        known = [run for run in self.runs if run.worker_seconds]
        busy_seconds = sum(one.device_seconds for run in known for one in run.measured)
        worker_seconds = sum(run.worker_seconds or 0.0 for run in known)
        return min(1.0, busy_seconds / worker_seconds) if busy_seconds > 0 and worker_seconds > 0 else 1.0

    def start_seconds(self) -> float:
        """The median time until a run's first worker had loaded its model; 0 if unknown."""
        known = [run.start_seconds for run in self.runs if run.start_seconds is not None]
        return median(known) if known else 0.0


def _is_on(measured: Measured, device: Literal["cpu", "cuda"] | None) -> bool:
    return device is None or measured.device.startswith("cpu") == (device == "cpu")


def _has_training_key(measured: Measured, key: ThroughputKey) -> bool:
    same_settings = measured.training == key.training and key.pack_size in (None, measured.pack_size)
    return same_settings and measured.pack_steps > 0


def _has_equal_packs(one: Measured, other: Measured) -> bool:
    return one.device == other.device and one.pack_size == other.pack_size


def _rate(seconds: float, count: int) -> float | None:
    return round(seconds / count, 4) if count else None


def _currency(prices: Prices) -> str | None:
    return None if prices.device_hour is None else prices.currency
