"""The books of one attempt at a shard: who failed, how long each phase took, how far it is, what is worth telling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...core.errors import ConceptFailure
from ..catalog.commit_record import Measured
from ..planning.plan import PlannedConcept, Shard

if TYPE_CHECKING:  # importing it loads torch, which a driver that counts progress does not need
    from ..spec.run_spec import RunSpec

Phase = Literal["load", "train", "render", "score", "commit"]
DEVICE_PHASES: tuple[Phase, ...] = ("train", "render", "score")
"""The phases in which a shard has the device to itself; the others run beside other shards' work."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard is: the phase in hand, and the share of the whole shard's work that is done, 0 to 1.

    `steps` counts iterations and denoising steps. It rises for as long as the device gets anywhere, also where a second
    training or rendering, which nobody foresaw, makes the fraction fall or stand still.
    """

    phase: Phase
    fraction: float
    steps: int = 0


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What one attempt at a shard gave. Small: this crosses the Ray boundary, tensors do not.

    `seconds` are by phase; waiting for another shard is in none of them. `notes` are for the run's log, such as "pack
    size reduced to 4 …". `pack_size` is the one that training ended with. `bytes_written`: the size of the data files.
    `measured`: what the device took for how much.
    """

    shard_id: str
    attempt: str
    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    pack_size: int | None = None
    bytes_written: int = 0
    measured: Measured | None = None


@dataclass(eq=False)
class ShardWork:
    """One attempt under way. The stages of the shard pass it on; no two of them use it at once."""

    shard: Shard
    spec: RunSpec
    on_progress: Callable[[ShardProgress], None]
    failures: dict[str, ConceptFailure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    planned: dict[str, PlannedConcept] = field(init=False)
    _phase: Phase = "load"
    _iterations: int = 0
    _denoising_steps: int = 0

    def __post_init__(self) -> None:
        self.planned = {planned.concept_id: planned for planned in self.shard.concepts}
        training, sampling = self.spec.training, self.spec.sampling
        concepts = self.shard.concepts
        images = sum(len(one.row.prompts) for one in concepts) * sampling.images_per_prompt * len(sampling.variants)
        batches = -(-images // sampling.batch_size)
        # A training step passes its samples forward and back, about three times the work of a pass forward alone.
        iterations = len(concepts) * training.iterations if self.shard.kind == "train" else 0
        self._train_work = 3 * iterations * training.batch_size
        self._render_step = sampling.batch_size * (2 if sampling.guidance_scale > 1 else 1)
        self._work = max(1, self._train_work + batches * sampling.steps * self._render_step)

    def fail(self, failure: ConceptFailure) -> None:
        """A concept cannot be done; its first failure is the one that is told."""
        self.failures.setdefault(failure.concept_id, failure)

    def note(self, text: str) -> None:
        """Something that is nobody's failure but that whoever reads the run's log should know."""
        self.notes.append(text)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase and announce it."""
        self._phase = phase
        started = time.perf_counter()
        before = {"load": 0, "train": 0, "render": self._train_work}.get(phase, self._work)
        self._tell(before)
        yield
        self.seconds[phase] = time.perf_counter() - started

    def trained(self, iterations: int, of: int) -> None:
        """So many iterations of all that training needs are done, all concepts' counted together."""
        self._iterations = iterations
        self._tell(self._train_work * min(1.0, iterations / max(1, of)))

    def rendered(self, steps: int) -> None:
        """So many denoising steps are done, over all batches."""
        self._denoising_steps = steps
        self._tell(self._train_work + steps * self._render_step)

    def _tell(self, done: float) -> None:
        steps = self._iterations + self._denoising_steps
        self.on_progress(ShardProgress(self._phase, min(1.0, done / self._work), steps))
