"""What a run would cost, by what earlier runs of its catalog took; and what it did cost. Pure.

A device hour is an hour in which a worker has its device (a GPU, or a CPU core) with the model loaded, whether it works
or waits for the store, for its neighbours' last shards or for nothing. The time in which a machine starts and loads the
model comes on top of that: nobody in the run sees when a machine begins to be paid for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from ..catalog.commit_record import Measured
from ..spec.prices import Prices
from .throughput import MeasuredRun, Pace, batches_of, pace_of, pack_steps

if TYPE_CHECKING:  # importing it loads torch, which arithmetic does not need
    from ..spec.run_spec import RunSpec
    from .plan import Shard


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run did cost: device hours, and what they cost by the run's spec (None where it states no price).

    `devices` names the kinds of devices that its shards were done on.
    """

    device_hours: float
    amount: float | None = None
    currency: str | None = None
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, held_seconds: float, measured: Iterable[Measured], prices: Prices) -> RunCost:
        """Of a run whose workers were there for so many seconds, from the moment each had loaded its model."""
        hours = round(held_seconds / 3600, 7)
        amount = prices.of(hours)
        currency = None if amount is None else prices.currency
        return cls(hours, amount, currency, tuple(sorted({one.device for one in measured})))

    @classmethod
    def from_values(cls, raw: Mapping[str, Any]) -> RunCost:
        """From what `asdict` made of it; what a later version may have added is ignored."""
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        return cls(**{**known, "devices": tuple(raw.get("devices", ()))})


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """A shard's work: the iterations that each of its concepts is trained for, if it is, and its images."""

    iterations: tuple[int, ...]
    images: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run has to do, and at which pace.

    Attributes:
        batch_size: images rendered together.
        ends_early: trainings may end before their iterations.
    """

    pace: Pace
    shards: tuple[ShardLoad, ...]
    batch_size: int
    ends_early: bool = False

    @property
    def concepts(self) -> int:
        """How many are to be trained."""
        return sum(len(shard.iterations) for shard in self.shards)

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a run would cost, or in `missing` why that cannot be told; then everything but the work itself is None.

    Attributes:
        wall_seconds: how long it would take with so many workers, the loading of the model included as it was before.
        seconds_per_concept, seconds_per_image: as they were measured, the device's; None where none is to be done.
        device: the kind of device that this was measured on.
        runs, measured_concepts, measured_images: how much it rests on.
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
    """A plan's shards as work that can be priced."""
    training, sampling = spec.training, spec.sampling
    an_image = sampling.images_per_prompt * len(sampling.variants)
    warm = training.warm_start

    def load(shard: Shard) -> ShardLoad:
        iterations = [
            warm.iterations if warm and concept.committed else training.iterations
            for concept in (shard.concepts if shard.kind == "train" else ())
        ]
        return ShardLoad(tuple(iterations), an_image * sum(len(concept.row.prompts) for concept in shard.concepts))

    ends_early = training.early_stopping is not None
    return Workload(pace_of(spec, base_revision), tuple(map(load, shards)), sampling.batch_size, ends_early)


def estimate_cost(
    work: Workload,
    history: Sequence[MeasuredRun],
    prices: Prices,
    workers: int,
    *,
    device: Literal["cpu", "cuda"] | None = None,
) -> CostEstimate:
    """What a run would cost, by the runs before it that had the same settings and base model.

    Args:
        history: the newest run first.
        workers: how many there would be.
        device: count only what was measured on such devices. None: on the kind that was used last.
    """
    trains, renders = any(shard.iterations for shard in work.shards), any(shard.images for shard in work.shards)
    if not (trains or renders):
        amount = prices.of(0.0)
        return CostEstimate(
            0, 0, workers, device_hours=0.0, wall_seconds=0.0, amount=amount, currency=_currency(prices)
        )
    basis = _Basis.of(work, history, device, trains=trains, renders=renders)
    if basis is None:
        what = " and ".join(word for word, wanted in (("trained", trains), ("rendered", renders)) if wanted)
        where = {"cpu": " on a CPU", "cuda": " on a GPU", None: ""}[device]
        missing = f"no recent run of this catalog has {what} with these settings and this base model{where}"
        return CostEstimate(work.concepts, work.images, workers, missing=missing)
    busy = [basis.seconds(shard, work) for shard in work.shards]
    held_seconds = sum(busy) / basis.busy_share()
    at_once = max(1, min(workers, len(busy)))
    hours = held_seconds / 3600
    return CostEstimate(
        work.concepts,
        work.images,
        workers,
        device=basis.device,
        device_hours=round(hours, 7),
        wall_seconds=round(basis.start_seconds() + max(held_seconds / at_once, *busy), 3),
        amount=prices.of(hours),
        currency=_currency(prices),
        seconds_per_concept=_rate(basis.train_seconds, basis.concepts) if trains else None,
        seconds_per_image=_rate(basis.render_seconds, basis.images) if renders else None,
        runs=len(basis.runs),
        measured_concepts=basis.concepts if trains else 0,
        measured_images=basis.images if renders else 0,
    )


@dataclass(frozen=True, slots=True)
class _Basis:
    """The measurements that an estimate rests on, all of one kind of device."""

    device: str
    pack_size: int
    training: tuple[Measured, ...]
    rendering: tuple[Measured, ...]
    runs: tuple[MeasuredRun, ...]

    @classmethod
    def of(
        cls,
        work: Workload,
        history: Sequence[MeasuredRun],
        device: Literal["cpu", "cuda"] | None,
        *,
        trains: bool,
        renders: bool,
    ) -> _Basis | None:
        """On the device and in the packs that the newest run had of which all is known that is needed."""
        pairs = [(run, one) for run in history for one in run.measured if _is(one, device)]
        training = [(run, one) for run, one in pairs if _trained_as(one, work.pace)] if trains else []
        rendering = [(run, one) for run, one in pairs if one.rendering == work.pace.rendering and one.batches]
        for _, newest in training if trains else rendering:
            trained = [(run, one) for run, one in training if _alike(one, newest)]
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

    def seconds(self, shard: ShardLoad, work: Workload) -> float:
        """How long a shard would have the device to itself."""
        iterations: Iterable[int] = shard.iterations
        if work.ends_early and self.concepts:
            usual = sum(one.iterations for one in self.training) / self.concepts
            iterations = [min(own, round(usual)) for own in shard.iterations]
        steps, batches = pack_steps(iterations, self.pack_size), batches_of(shard.images, work.batch_size)
        a_step = self.train_seconds / max(1, sum(one.pack_steps for one in self.training))
        a_batch = self.render_seconds / max(1, sum(one.batches for one in self.rendering))
        return steps * a_step + batches * a_batch

    def busy_share(self) -> float:
        """The part of their time in which devices worked, over all runs that tell; 1 if none does."""
        told = [run for run in self.runs if run.held_seconds]
        busy = sum(one.device_seconds for run in told for one in run.measured)
        held = sum(run.held_seconds or 0.0 for run in told)
        return min(1.0, busy / held) if busy > 0 and held > 0 else 1.0

    def start_seconds(self) -> float:
        told = [run.start_seconds for run in self.runs if run.start_seconds is not None]
        return median(told) if told else 0.0


def _is(measured: Measured, device: Literal["cpu", "cuda"] | None) -> bool:
    return device is None or measured.device.startswith("cpu") == (device == "cpu")


def _trained_as(measured: Measured, pace: Pace) -> bool:
    alike = measured.training == pace.training and measured.pack_steps > 0
    return alike and pace.pack_size in (None, measured.pack_size)


def _alike(one: Measured, other: Measured) -> bool:
    return one.device == other.device and one.pack_size == other.pack_size


def _rate(seconds: float, count: int) -> float | None:
    return round(seconds / count, 4) if count else None


def _currency(prices: Prices) -> str | None:
    return None if prices.device_hour is None else prices.currency
