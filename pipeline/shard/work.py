"""The state of one attempt at a shard while it runs: failures, notes, seconds by phase, and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ...core.errors import ConceptFailure
from ..planning.plan import Shard
from ..planning.throughput import batch_count
from ..spec.run_spec import RunSpec
from .summary import Phase, ShardProgress


@dataclass(eq=False)
class ShardWork:
    """The state of one running attempt at a shard. Passed from stage to stage, so used by one thread at a time.

    Attributes:
        on_progress: called at the start of each phase and after each step, from the thread of the stage.
        failures: concept id to the concept's first failure.
        seconds: by phase.
        notes: messages for the run's log.
    """

    shard: Shard
    spec: RunSpec
    on_progress: Callable[[ShardProgress], None]
    failures: dict[str, ConceptFailure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _phase: Phase = "load"
    _iterations: int = 0
    _denoising_steps: int = 0

    def __post_init__(self) -> None:
        """Estimate the shard's work, in UNet samples: a training step costs about three forward passes."""
        training, sampling = self.spec.training, self.spec.sampling
        concepts = self.shard.concepts
        images = sum(len(one.row.prompts) for one in concepts) * sampling.images_per_prompt * len(sampling.variants)
        iterations = len(concepts) * training.iterations if self.shard.kind == "train" else 0
        self._train_work = 3 * iterations * training.batch_size
        self._work_per_denoising_step = sampling.batch_size * (2 if sampling.guidance_scale > 1 else 1)
        denoising_steps = batch_count(images, sampling.batch_size) * sampling.steps
        self._work = max(1, self._train_work + denoising_steps * self._work_per_denoising_step)

    def fail(self, failure: ConceptFailure) -> None:
        """Record the failure of a concept, unless it has failed before."""
        self.failures.setdefault(failure.concept_id, failure)

    def note(self, text: str) -> None:
        """Add a message to the run's log."""
        self.notes.append(text)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Context manager that reports the start of a phase and measures its seconds."""
        self._phase = phase
        started = time.perf_counter()
        done_before = {"load": 0, "train": 0, "render": self._train_work}.get(phase, self._work)
        self._report(done_before)
        yield
        self.seconds[phase] = time.perf_counter() - started

    def report_iterations(self, done: int, total: int) -> None:
        """Report the training progress: iterations done of `total`, summed over all concepts."""
        self._iterations = done
        self._report(self._train_work * min(1.0, done / max(1, total)))

    def report_denoising_steps(self, done: int) -> None:
        """Report the rendering progress: denoising steps done, summed over all batches."""
        self._denoising_steps = done
        self._report(self._train_work + done * self._work_per_denoising_step)

    def _report(self, work_done: float) -> None:
        steps = self._iterations + self._denoising_steps
        self.on_progress(ShardProgress(self._phase, min(1.0, work_done / self._work), steps))
