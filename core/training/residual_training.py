"""Learn the residuals of many concepts, K at a time, in passes through one frozen UNet.

For every concept k, with its own noise and timesteps:

    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps
    loss_k = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2     target: eps, or v for a v-prediction model

The pack's loss is the sum of the loss_k, so every concept's gradient is what it would be alone, and since Adam works
element by element, one Adam over the stacked factors is K Adams.
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
from ..numerical_health import CAREFUL_LEARNING_RATE_SCALE, training_fault, weight_norms
from ..residual import Residual
from .convergence import has_converged
from .settings import TrainingSettings
from .training_pack import TrainingPack, TrainingRequest


@dataclass(frozen=True, slots=True, eq=False)
class TrainedResidual:
    """What training one concept gave.

    Attributes:
        losses: [iterations done] float32, loss_k at every step.
        seconds: its share of the time its pack took, of both trainings if there were two.
        remedy: what was changed for a second training, and why; None: the first one was sound.
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
    on_second_training: Callable[[TrainingRequest, str], None] | None = None,
) -> Iterator[TrainedResidual | ConceptFailure]:
    """Train any number of concepts, `pack_size` at a time; a slot whose concept has ended takes the next one at once.

    A concept whose loss or factors stop being finite, or whose residual diverges, is trained once more from the same
    start and seed, at a quarter of the learning rates; if that goes wrong too, or if it cannot be started at all, it
    ends as a ConceptFailure. Nothing of it reaches its neighbours, and what becomes of it depends on it alone. Results
    come as trainings end, those that end together in the order of their slots.

    Args:
        requests: pulled one at a time, when a slot is free.
        on_step: called with the concept-iterations done so far; a concept that ends early counts all of its own, one
            that is trained twice counts them twice. It must not touch the device.
        on_smaller_pack: called with the pack size that training goes on with after the device ran out of memory. The
            concepts that were in the pack start again.
        on_second_training: called with a concept that will be trained again, and the fault of its first training.

    Raises:
        PersresError: the device has too little memory for a single concept.
    """
    if pack_size < 1:
        raise ValueError(f"pack_size is {pack_size}; a pack holds at least one concept")
    training = _Training(
        base,
        settings,
        iter(requests),
        on_step or (lambda done: None),
        on_second_training or (lambda request, fault: None),
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
        # Outside the handler: while it runs, the error's traceback keeps the broken pack's tensors alive.
        pack_size //= 2
        training.start_again()
        if on_smaller_pack:
            on_smaller_pack(pack_size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no room; on the CPU torch raises a plain RuntimeError for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(slots=True, eq=False)
class _Member:
    """A concept in a slot: how long it trains, and what it has shown so far."""

    request: TrainingRequest
    iterations: int
    losses: list[Tensor] = field(default_factory=list)  # of every step, a number on the device
    checks: list[float] = field(default_factory=list)
    seconds: float = 0.0
    converged: bool = False

    @property
    def ended(self) -> bool:
        return self.converged or len(self.losses) == self.iterations

    def is_due(self, check_every: int) -> bool:
        return not self.ended and len(self.losses) == check_every * len(self.checks)


@dataclass(frozen=True, slots=True)
class _FirstTraining:
    """Of a concept that is trained a second time: what was wrong with the first, and how long it took."""

    fault: str
    seconds: float


class _Training:
    """The books of `train_residuals`: who waits and who is in which slot."""

    def __init__(
        self,
        base: BaseModel,
        settings: TrainingSettings,
        requests: Iterator[TrainingRequest],
        on_step: Callable[[int], None],
        on_second_training: Callable[[TrainingRequest, str], None],
    ) -> None:
        self.base, self.settings, self.requests = base, settings, requests
        self.on_step, self.on_second_training = on_step, on_second_training
        self.again: deque[TrainingRequest] = deque()
        self.members: dict[int, _Member] = {}
        self.iterations_ended = 0
        self.weight_norms = weight_norms(base)
        self.first_trainings: dict[str, _FirstTraining] = {}

    def start_again(self) -> None:
        """Put the concepts of a pack that broke back, in their order."""
        self.again.extendleft(self.members[slot].request for slot in sorted(self.members, reverse=True))
        self.members = {}
        if self.base.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, pack_size: int) -> Iterator[TrainedResidual | ConceptFailure]:
        """Train everything that waits in one pack; ends when nothing waits and every slot has ended."""
        pack = TrainingPack(self.base, self.settings, pack_size)
        free = list(range(pack_size))
        while True:
            for slot in free:
                yield from self._fill(pack, slot)
            if not self.members:
                return
            pack.pad()
            started = time.perf_counter()
            self._train_until_one_ends(pack)
            free = [slot for slot, member in sorted(self.members.items()) if member.ended]
            residuals = {slot: pack.residual(slot) for slot in free}  # waits for the device
            share = (time.perf_counter() - started) / len(self.members)
            for member in self.members.values():
                member.seconds += share
            for slot, residual in residuals.items():
                member = self.members.pop(slot)
                self.iterations_ended += member.iterations
                yield from self._end(member, residual)

    def _end(self, member: _Member, residual: Residual) -> Iterator[TrainedResidual | ConceptFailure]:
        """What became of a concept; nothing yet, if it waits to be trained again."""
        request, concept_id = member.request, member.request.concept_id
        losses = torch.stack(member.losses).cpu()
        fault = training_fault(losses, residual, self.weight_norms, self.settings.max_residual_norm)
        first = self.first_trainings.pop(concept_id, None)
        if fault is None:
            remedy = (
                f"learning rate x {request.learning_rate_scale:g}, because at first {first.fault}" if first else None
            )
            seconds = member.seconds + (first.seconds if first else 0.0)
            yield TrainedResidual(concept_id, residual, losses.numpy(), seconds, remedy)
        elif first is None:
            self.first_trainings[concept_id] = _FirstTraining(fault, member.seconds)
            self.again.append(replace(request, learning_rate_scale=CAREFUL_LEARNING_RATE_SCALE))
            self.on_second_training(request, fault)
        else:
            yield ConceptFailure(
                concept_id,
                "train",
                f"{first.fault}; trained again at {request.learning_rate_scale:g} of the learning rate, {fault}",
                "lower training.learning_rate, or look at its reference images",
            )

    def _fill(self, pack: TrainingPack, slot: int) -> Iterator[ConceptFailure]:
        """Load the next concept that can be started into a slot; those that cannot are failures."""
        while (request := self.again.popleft() if self.again else next(self.requests, None)) is not None:
            # Among the members before its start is on the device, which may run out of memory there.
            warm = self.settings.warm_start if request.start else None
            self.members[slot] = _Member(request, (warm or self.settings).iterations)
            try:
                pack.load(slot, request)
                return
            except PersresError as error:
                del self.members[slot]
                yield ConceptFailure(request.concept_id, "train", error.message, error.fix or "")

    def _train_until_one_ends(self, pack: TrainingPack) -> None:
        with pack.at_work():
            while True:
                self._check_convergence(pack)
                if any(member.ended for member in self.members.values()):
                    return
                losses = pack.step().unbind()
                for slot, member in self.members.items():
                    member.losses.append(losses[slot])
                self.on_step(self.iterations_ended + sum(len(member.losses) for member in self.members.values()))

    def _check_convergence(self, pack: TrainingPack) -> None:
        stopping = self.settings.early_stopping
        if stopping is None:
            return
        due = [slot for slot, member in self.members.items() if member.is_due(stopping.check_every)]
        if due:
            losses = pack.convergence_losses()
            for slot in due:
                member = self.members[slot]
                member.checks.append(losses[slot])
                member.converged = has_converged(member.checks, stopping)
