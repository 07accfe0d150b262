"""Train the residuals of many concepts, K at a time, in passes through one frozen UNet.

For every concept k, with noise and timesteps of its own:

    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps
    loss_k = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2     target: eps, or v for a v-prediction model

The pack's loss is the sum of the loss_k, so every concept's gradient is what it would be alone. The optimizer updates
the stacked factors row by row, so it equals K Adams.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..base_model import BaseModel
from ..errors import ConceptFailure, PersresError
from ..numerical_checks import RETRY_LEARNING_RATE_SCALE, training_fault, weight_norms
from ..residual import Residual
from .convergence import has_converged
from .learning_rate import LearningRateCourse
from .settings import TrainingSettings
from .training_pack import TrainingPack, TrainingRequest, iterations_of

RETRY_PACK_SIZE = 4
"""Concepts that are retried train in packs of at most this size: mostly there is one, and a pack is padded. The size is
fixed, so that a concept's result does not depend on how many others are retried."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedResidual:
    """The result of training one concept.

    Attributes:
        losses: [iterations done] float32, loss_k of every step.
        seconds: its share of its packs' time; includes the first attempt if the training was retried.
        remedy: what was changed for the retry, and why; None if there was no retry.
    """

    concept_id: str
    residual: Residual
    losses: np.ndarray
    seconds: float
    remedy: str | None = None


def train_residuals(
    base: BaseModel,
    requests: Iterable[TrainingRequest],
    settings: TrainingSettings,
    *,
    pack_size: int,
    on_step: Callable[[int], None] | None = None,
    on_smaller_pack: Callable[[int], None] | None = None,
    on_retry: Callable[[TrainingRequest, str], None] | None = None,
) -> Iterator[TrainedResidual | ConceptFailure]:
    """Train any number of concepts, `pack_size` at a time. A slot whose concept has ended gets the next one at once.

    A concept whose loss or factors are not finite, or whose residual diverges, is retried once from the same start and
    seed with a quarter of the learning rates, after all others and in a smaller pack. If the retry fails too, or if its
    training cannot be started, it ends as a ConceptFailure. A concept's result depends on that concept alone, never on
    its neighbours in the pack. Results are yielded as trainings end; of those that end together, in the order of their
    slots.

    Args:
        requests: consumed one at a time, when a slot is free.
        on_step: called after every step with the number of concept-iterations done. A concept that ends early counts
            with all its iterations, a retried one with twice as many. Must not access the device.
        on_smaller_pack: called with the new pack size after the device ran out of memory. The concepts of the pack
            start over.
        on_retry: called with a concept that will be retried and the fault of its first attempt.

    Raises:
        ValueError: `pack_size` is below 1.
        PersresError: the device has too little memory for a single concept.
    """
    if pack_size < 1:
        raise ValueError(f"pack_size is {pack_size}; a pack holds at least one concept")
    training = _PackedTraining(
        base,
        settings,
        iter(requests),
        on_step or (lambda done: None),
        on_retry or (lambda request, fault: None),
    )
    while True:
        try:
            yield from training.run(pack_size)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if pack_size == 1:
                raise PersresError(
                    "the device has too little memory to train a single concept",
                    fix="set training.gradient_checkpointing: true, or a smaller training.batch_size",
                ) from error
        # Outside the handler: inside, the error's traceback would keep the failed pack's tensors alive.
        pack_size //= 2
        training.requeue_running()
        if on_smaller_pack:
            on_smaller_pack(pack_size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error means that the device has too little memory; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(slots=True, eq=False)
class _RunningConcept:
    """A concept in a slot of the pack, with its losses so far.

    `iterations` are those that it counts in the progress; its `course` may end earlier. `course` is None until the
    concept has been loaded.
    """

    request: TrainingRequest
    settings: TrainingSettings
    iterations: int
    course: LearningRateCourse | None = None
    losses: list[Tensor] = field(default_factory=list)  # scalars on the device, one per step
    check_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    converged: bool = False

    @property
    def ended(self) -> bool:
        assert self.course is not None
        if self.converged and not self.course.decays:
            return True
        return len(self.losses) == self.course.iterations

    @property
    def needs_check(self) -> bool:
        stopping = self.settings.early_stopping
        if stopping is None or self.converged or self.ended:
            return False
        return len(self.losses) == stopping.check_every * len(self.check_losses)

    def check(self, loss: float) -> None:
        """Add a loss on fixed noise; if it has become constant, the training ends or its decay starts."""
        assert self.settings.early_stopping is not None and self.course is not None
        self.check_losses.append(loss)
        self.converged = has_converged(self.check_losses, self.settings.early_stopping)
        if self.converged and self.course.decays:
            self.course.start_decay(len(self.losses))


@dataclass(frozen=True, slots=True)
class _FailedAttempt:
    """The first attempt of a concept that is retried."""

    fault: str
    seconds: float


class _PackedTraining:
    """The state of one call of `train_residuals`: concepts to train, running concepts by slot, and failed attempts."""

    def __init__(
        self,
        base: BaseModel,
        settings: TrainingSettings,
        requests: Iterator[TrainingRequest],
        on_step: Callable[[int], None],
        on_retry: Callable[[TrainingRequest, str], None],
    ) -> None:
        self.base, self.settings, self.requests = base, settings, requests
        self.on_step, self.on_retry = on_step, on_retry
        self.requeued: deque[TrainingRequest] = deque()  # taken before those of `requests`
        self.retries: deque[TrainingRequest] = deque()  # taken when there are no others
        self.running: dict[int, _RunningConcept] = {}
        self.iterations_ended = 0
        self.weight_norms = weight_norms(base)
        self.failed_attempts: dict[str, _FailedAttempt] = {}

    def requeue_running(self) -> None:
        """Take the running concepts first in the next pack, in the order of their slots."""
        running = [self.running[slot].request for slot in sorted(self.running, reverse=True)]
        self.requeued.extendleft(one for one in running if one.concept_id not in self.failed_attempts)
        self.retries.extendleft(one for one in running if one.concept_id in self.failed_attempts)
        self.running = {}
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, pack_size: int) -> Iterator[TrainedResidual | ConceptFailure]:
        """Train all requested concepts in one pack, then those that are retried in a smaller one."""
        yield from self._run_pack(pack_size, self._next_request)
        if self.retries:
            yield from self._run_pack(
                min(pack_size, RETRY_PACK_SIZE), lambda: self.retries.popleft() if self.retries else None
            )

    def _next_request(self) -> TrainingRequest | None:
        return self.requeued.popleft() if self.requeued else next(self.requests, None)

    def _run_pack(
        self, pack_size: int, next_request: Callable[[], TrainingRequest | None]
    ) -> Iterator[TrainedResidual | ConceptFailure]:
        pack = TrainingPack(self.base, self.settings, pack_size)
        free_slots = list(range(pack_size))
        while True:
            for slot in free_slots:
                yield from self._fill(pack, slot, next_request)
            if not self.running:
                return
            pack.pad()
            started = time.perf_counter()
            self._train_until_one_ends(pack)
            free_slots = [slot for slot, concept in sorted(self.running.items()) if concept.ended]
            residuals = {slot: pack.residual(slot) for slot in free_slots}  # waits for the device
            share = (time.perf_counter() - started) / len(self.running)
            for concept in self.running.values():
                concept.seconds += share
            for slot, residual in residuals.items():
                concept = self.running.pop(slot)
                self.iterations_ended += concept.iterations
                yield from self._end(concept, residual)

    def _fill(
        self, pack: TrainingPack, slot: int, next_request: Callable[[], TrainingRequest | None]
    ) -> Iterator[ConceptFailure]:
        """Load the next concept that can be started into a slot; yield a failure for each that cannot."""
        while (request := next_request()) is not None:
            # Running before it is loaded: if the device runs out of memory in `load`, the concept is requeued.
            settings = request.settings or self.settings
            concept = _RunningConcept(request, settings, iterations_of(settings, request.start))
            self.running[slot] = concept
            try:
                pack.load(slot, request)
                concept.course = pack.course(slot)
                return
            except PersresError as error:
                del self.running[slot]
                yield ConceptFailure(request.concept_id, "train", error.message, error.fix or "")

    def _train_until_one_ends(self, pack: TrainingPack) -> None:
        with pack.attached():
            while True:
                self._check_convergence(pack)
                if any(concept.ended for concept in self.running.values()):
                    return
                losses = pack.step().unbind()
                for slot, concept in self.running.items():
                    concept.losses.append(losses[slot])
                self.on_step(self.iterations_ended + sum(len(concept.losses) for concept in self.running.values()))

    def _check_convergence(self, pack: TrainingPack) -> None:
        due = [concept for concept in self.running.values() if concept.needs_check]
        if due:
            losses = pack.convergence_losses()
            for slot, concept in self.running.items():
                if concept in due:
                    concept.check(losses[slot])

    def _end(self, concept: _RunningConcept, residual: Residual) -> Iterator[TrainedResidual | ConceptFailure]:
        """Yield a concept's result, or queue its retry."""
        request, concept_id = concept.request, concept.request.concept_id
        losses = torch.stack(concept.losses).cpu()
        fault = training_fault(losses, residual, self.weight_norms, concept.settings.max_residual_norm)
        first = self.failed_attempts.pop(concept_id, None)
        if fault is None:
            remedy = (
                f"learning rate x {request.learning_rate_scale:g}, because at first {first.fault}" if first else None
            )
            seconds = concept.seconds + (first.seconds if first else 0.0)
            yield TrainedResidual(concept_id, residual, losses.numpy(), seconds, remedy)
        elif first is None:
            self.failed_attempts[concept_id] = _FailedAttempt(fault, concept.seconds)
            self.retries.append(replace(request, learning_rate_scale=RETRY_LEARNING_RATE_SCALE))
            self.on_retry(request, fault)
        else:
            yield ConceptFailure(
                concept_id,
                "train",
                f"{first.fault}; trained again at {request.learning_rate_scale:g} of the learning rate, {fault}",
                "lower training.learning_rate, or look at its reference images",
            )
