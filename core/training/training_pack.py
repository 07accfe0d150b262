"""A pack: K concepts that train together in one UNet pass, each in a slot of its own.

Shapes: K slots (the pack size), b noised references per slot and step (`training.batch_size`), S = K b samples in the
UNet pass, grouped by slot; R references of a concept; C, h, w the latent's channels, height and width; m the width of a
target layer and r its rank; P the number of values in one residual, the sum of 2 m r over the target layers.

The values in a slot depend on its concept alone: initial factors, noise and timesteps come from the concept's seed, all
tensors have one fixed shape whatever the other slots hold, and optimizer, clipping and averaging work row by row. So a
concept may be loaded into a slot while the others are in the middle of their training, and concepts whose settings
differ may share a pack, as long as their tensors have the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base_model import BaseModel
from ..concept import derive_seed
from ..errors import InvalidInput
from ..identifier_token import TokenizedPrompt, identifier_embedding, tokenize_concept_prompt
from ..latents import ReferenceLatents
from ..residual import Residual, check_residual, initialize_residual
from ..residual_bank import ResidualBank, attached
from ..text_attention import SharedText
from ..text_conditioning import TextConditioning, encode_text
from .device import send
from .factor_rows import FactorLayout, TrainedRows, clip_rows
from .learning_rate import LearningRateCourse
from .noised_references import NoisedBatch, NoisedReferences
from .settings import TrainingSettings

SHARED_SETTINGS = ("batch_size", "rank", "train_identifier", "gradient_checkpointing")
"""Settings that are the same for all concepts of a pack: they determine its tensors, or how the UNet computes."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRequest:
    """A concept to be trained.

    Attributes:
        seed: the concept's seed, from which the seed of every random draw is derived.
        latents: its references, R of them.
        start: the residual of a warm start, which trains `warm_start.iterations`; None: a cold start from the seed.
        learning_rate_scale: factor of the settings' learning rates.
        settings: settings of this concept alone, with the pack's `SHARED_SETTINGS`; None: the pack's.
    """

    concept_id: str
    macro_class: str
    seed: int
    latents: ReferenceLatents
    start: Residual | None = None
    learning_rate_scale: float = 1.0
    settings: TrainingSettings | None = None


class TrainingPack:
    """The stacked factors, gradients and optimizer states of K slots.

    One tensor [K, P] holds all factors, one row per slot, and one [K, D] the V*. The UNet reads the factors through
    views, a [K, m, r] and b [K, r, m] for every target layer.
    """

    def __init__(self, base: BaseModel, settings: TrainingSettings, size: int) -> None:
        check_trainable(base, settings)
        self.base, self.settings, self.size = base, settings, size
        self.slots: list[_Slot | None] = [None] * size
        self._layout = FactorLayout(base.target_layers, settings.rank)
        factors, leaves = self._layout.allocate(size, base.device)
        gradients, self._gradients = self._layout.allocate(size, base.device)
        self.bank = ResidualBank(leaves["a"], leaves["b"])
        self.identifiers: Tensor | None = None
        self._rows = [TrainedRows(factors, gradients)]
        if settings.train_identifier:
            self.identifiers = torch.zeros(size, base.text_encoder.config.hidden_size, device=base.device)
            self._rows.append(TrainedRows(self.identifiers, torch.zeros_like(self.identifiers)))
            self.identifiers.requires_grad_(True)
        for leaf in (*self.bank.a.values(), *self.bank.b.values()):
            leaf.requires_grad_(True)
        self.text: TextConditioning | None = None
        self.shared_text = SharedText(base, fixed=not settings.train_identifier)

    @torch.no_grad()
    def load(self, slot: int, request: TrainingRequest) -> None:
        """Load a concept into a slot, with its initial factors and an empty optimizer state.

        Raises:
            ConceptError: the training prompt is too long, or glued to other text.
            PersresError: `request.start` does not fit the base model.
        """
        base, settings = self.base, request.settings or self.settings
        self._check_shared_settings(settings)
        prompt = tokenize_concept_prompt(
            base.tokenizer, settings.prompt, settings.identifier_token, request.macro_class
        )
        start = request.start or self._cold_start(request)
        check_residual(start, base.target_layers)
        rows = [self._layout.flatten(start)]
        if self.identifiers is not None:
            learned = start.identifier
            rows.append(identifier_embedding(base, settings.identifier_token) if learned is None else learned)
        else:
            text = encode_text(base, [prompt])  # alone, so that its bits do not depend on other prompts
            self.text = self.text or text.repeat(self.size)
            self.text.replace_row(slot, text)
            self.shared_text.clear_cache()
        self.slots[slot] = filled = _Slot(request, settings, prompt)
        for group, row in zip(self._rows, rows, strict=True):
            group.load(slot, row, averages=filled.averages)

    def course(self, slot: int) -> LearningRateCourse:
        """Return the course of a filled slot's learning rates, which may be told to start its decay."""
        filled = self.slots[slot]
        assert filled is not None
        return filled.course

    def pad(self) -> None:
        """Load the first concept into every slot that was never loaded; what these slots learn is not used.

        A slot whose concept has ended is not empty: it continues with its old concept.
        """
        first = self._filled_slots()[0]
        for slot, filled in enumerate(self.slots):
            if filled is None:
                self.load(slot, first.request)

    def _check_shared_settings(self, settings: TrainingSettings) -> None:
        for name in SHARED_SETTINGS:
            own, others = getattr(settings, name), getattr(self.settings, name)
            if own != others:
                raise ValueError(f"a concept's {name} is {own!r}, its pack's {others!r}; they must be the same")

    def _cold_start(self, request: TrainingRequest) -> Residual:
        settings = request.settings or self.settings
        return initialize_residual(
            self.base.target_layers,
            rank_fraction=settings.rank,
            a_std=settings.random_std if settings.initialization == "random" else 0.0,
            seed=derive_seed(request.seed, request.concept_id, "initialization"),
        )

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager in which the base model's UNet uses this pack's residuals and texts, and nothing else may."""
        unet = self.base.unet
        if self.settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        try:
            with attached(self.base, self.bank), self.shared_text.attached():
                yield
        finally:
            if self.settings.gradient_checkpointing:
                unet.disable_gradient_checkpointing()

    def step(self) -> Tensor:
        """Do one optimizer step in every slot. Returns the losses, [K], without waiting for the device."""
        slots = self._filled_slots()
        losses = self._losses([slot.references.draw(self.base) for slot in slots])
        leaves = [*self.bank.a.values(), *self.bank.b.values()]
        gradients = [*self._gradients["a"].values(), *self._gradients["b"].values()]
        if self.identifiers is not None:
            leaves.append(self.identifiers)
            gradients.append(self._rows[1].gradients)
        torch._foreach_copy_(gradients, torch.autograd.grad(losses.sum(), leaves))
        clip_rows([rows.gradients for rows in self._rows], [slot.settings.max_gradient_norm for slot in slots])
        rates = [slot.learning_rates() for slot in slots]
        for group, rows in enumerate(self._rows):
            rows.optimizer.step([of_slot[group] for of_slot in rates])
        self._average([slot.end_iteration() for slot in slots])
        return losses.detach()

    def _average(self, weights: list[float | None]) -> None:
        """Move every slot's average towards its iterate by its weight, None for a slot that does not average."""
        if any(weight is not None for weight in weights):
            for rows in self._rows:
                rows.average([1.0 if weight is None else weight for weight in weights])

    @torch.no_grad()
    def convergence_losses(self) -> list[float]:
        """Return every slot's loss on noise, timesteps and references that are the same at every call."""
        return self._losses([slot.convergence_batch(self.base) for slot in self._filled_slots()]).tolist()

    def residual(self, slot: int) -> Residual:
        """Return a copy of a slot's residual, on the CPU: its last iterate, or the average its settings ask for."""
        filled = self.slots[slot]
        averaged = filled is not None and filled.averages
        rows = [group.row(slot, averaged=averaged) for group in self._rows]
        a, b = self._layout.unflatten(rows[0])
        return Residual(a, b, None if self.identifiers is None else rows[1])

    def _filled_slots(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot is not None]

    def _losses(self, batches: list[NoisedBatch]) -> Tensor:
        """Return loss_k = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2 of every slot k, [K]."""
        base = self.base
        noisy = send(torch.cat([batch.noisy for batch in batches]), base.device)
        target = send(torch.cat([batch.target for batch in batches]), base.device)
        timesteps = send(torch.cat([batch.timesteps for batch in batches]), base.device)
        if self.identifiers is None:
            assert self.text is not None
            text = self.text
        else:
            text = encode_text(base, [slot.prompt for slot in self._filled_slots()], self.identifiers)
        conditioning = text.unet_arguments(len(noisy), base.resolution, base.resolution)
        predicted = base.unet(noisy.to(base.dtype), timesteps, **conditioning, return_dict=False)[0]
        squared = (predicted.float() - target).square()
        if any(batch.weights is not None for batch in batches):
            # A weight of 1 changes no bit, so that a slot without weights may share a pack with one that has them.
            ones = torch.ones(self.settings.batch_size)
            weights = torch.cat([ones if batch.weights is None else batch.weights for batch in batches])
            squared = squared * send(weights, base.device).view(-1, 1, 1, 1)
        return squared.reshape(self.size, -1).mean(dim=1)


def check_trainable(base: BaseModel, settings: TrainingSettings) -> None:
    """Check that the settings are supported for this base model.

    Raises:
        InvalidInput: the identifier token is to be trained, and the base model has two text encoders.
    """
    if settings.train_identifier and base.text_encoder_2 is not None:
        raise InvalidInput(
            f"training.train_identifier is true, but base model {base.name!r} has two text encoders, for which V* "
            "cannot be trained",
            fix="set training.train_identifier: false, which is the paper's setting",
        )


class _Slot:
    """The concept in a slot: its prompt, its references, its settings, and how far its training has come."""

    def __init__(self, request: TrainingRequest, settings: TrainingSettings, prompt: TokenizedPrompt) -> None:
        self.request, self.settings, self.prompt = request, settings, prompt
        self.references = self._references("training")
        self.course = LearningRateCourse(settings, iterations_of(settings, request.start))
        self._iteration, self._averaged = 0, 0
        self._convergence: NoisedBatch | None = None

    @property
    def averages(self) -> bool:
        return self.settings.averaging != "none"

    def _references(self, purpose: str) -> NoisedReferences:
        seed = derive_seed(self.request.seed, self.request.concept_id, purpose)
        return NoisedReferences(self.request.latents, self.settings, seed)

    def convergence_batch(self, base: BaseModel) -> NoisedBatch:
        if self._convergence is None:
            self._convergence = self._references("convergence").draw(base)
        return self._convergence

    def learning_rates(self) -> tuple[float, float]:
        """Return the learning rates of this iteration: of A and B, and of V*."""
        scale = self.request.learning_rate_scale * self.course.factor(self._iteration)
        return self.settings.learning_rate * scale, self.settings.identifier_learning_rate * scale

    def end_iteration(self) -> float | None:
        """Count this iteration. Returns the weight of its iterate in the average, None if the slot does not average."""
        self._iteration += 1
        settings = self.settings
        if settings.averaging == "none":
            return None
        if settings.averaging == "ema":  # with the usual shorter memory at the start, when all iterates are poor
            memory = min(1 - 1 / settings.averaging_iterations, (1 + self._iteration) / (10 + self._iteration))
            return 1.0 - memory
        if self._iteration > self.course.iterations - settings.averaging_iterations:
            self._averaged += 1
        return 1.0 / max(1, self._averaged)


def iterations_of(settings: TrainingSettings, start: Residual | None) -> int:
    """Return the number of iterations of a concept that starts from `start`, or cold."""
    return settings.warm_start.iterations if settings.warm_start and start else settings.iterations
