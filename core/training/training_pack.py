"""K concepts that train together in one UNet pass, each in a slot of its own.

Shapes: K slots (the pack size), b noised references of each concept in a step, S = K b samples in the UNet pass,
grouped by slot. C, h, w are the latent's; L, D the text states'. P is the number of values in one residual.

A slot's numbers depend on nothing but its concept: noise, timesteps and the start come from the concept's seed, tensors
have one fixed shape whatever the other slots hold, and Adam works value by value. So a concept may enter a slot while
the others are in the middle of their training.
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
from .settings import TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRequest:
    """A concept, ready to be trained: its seed, its class, and its references as latents.

    `start` is the residual to go on from, for the settings' `warm_start.iterations`; None starts from the seed.
    `learning_rate_scale` is the share of the settings' learning rates that it is trained at.
    """

    concept_id: str
    macro_class: str
    seed: int
    latents: ReferenceLatents
    start: Residual | None = None
    learning_rate_scale: float = 1.0


class TrainingPack:
    """The stacked parameters, gradients and optimizer of K slots.

    One tensor [K, P] holds all factors, a row a concept. The UNet reads it through views, a [K, m, r] and b [K, r, m]
    for every target layer, and Adam writes it as K parameters [P] with a step count each: one fused step for the pack
    that is exactly K Adams.
    """

    def __init__(self, base: BaseModel, settings: TrainingSettings, size: int) -> None:
        check_trainable(base, settings)
        self.base, self.settings, self.size = base, settings, size
        self.slots: list[_Slot | None] = [None] * size
        self.bank, self._gradients, rows = _flat_bank(base, settings, size)
        self._learning_rates = [(settings.learning_rate, rows)]
        self.identifiers: Tensor | None = None
        if settings.train_identifier:
            self._start_identifier = identifier_embedding(base, settings.identifier_token)
            self.identifiers = self._start_identifier.repeat(size, 1)
            gradient = torch.zeros_like(self.identifiers)
            rows = _rows(self.identifiers, gradient)
            self.identifiers.requires_grad_(True)
            self._gradients.append(gradient)
            self._learning_rates.append((settings.identifier_learning_rate, rows))
        groups = [{"params": rows, "lr": rate} for rate, rows in self._learning_rates]
        self.optimizer = torch.optim.Adam(groups, fused=base.device.type in ("cpu", "cuda"))
        self._scales = [1.0] * size
        self.text: TextConditioning | None = None
        self.shared_text = SharedText(base, fixed=not settings.train_identifier)

    @torch.no_grad()
    def load(self, number: int, request: TrainingRequest) -> None:
        """Put a concept at its start into a slot, in place of what is there.

        Raises:
            ConceptError: the training prompt does not fit the tokenizer.
            PersresError: the residual to start from does not fit the base model.
        """
        base, settings = self.base, self.settings
        prompt = tokenize_concept_prompt(
            base.tokenizer, settings.prompt, settings.identifier_token, request.macro_class
        )
        start = request.start or self._cold_start(request)
        check_residual(start, base.target_layers)
        for name in self.bank.a:
            self.bank.a[name][number] = start.a[name].to(base.device)
            self.bank.b[name][number] = start.b[name].to(base.device)
        if self.identifiers is not None:
            learned = start.identifier
            self.identifiers[number] = self._start_identifier if learned is None else learned.to(base.device)
        else:
            text = encode_text(base, [prompt])  # alone, so that its bits do not depend on its neighbours
            self.text = self.text or text.repeat(self.size)
            self.text.put(number, text)
            self.shared_text.forget()
        for _, rows in self._learning_rates:
            self.optimizer.state.pop(rows[number], None)
        self._scale_learning_rates(number, request.learning_rate_scale)
        self.slots[number] = _Slot(request, prompt, settings.batch_size)

    def pad(self) -> None:
        """Give every slot that nothing was ever loaded into a copy of the first concept; what it learns is not used.

        A slot whose concept has ended needs nothing: it goes on with what it holds.
        """
        first = self._filled_slots()[0]
        for number, slot in enumerate(self.slots):
            if slot is None:
                self.load(number, first.request)

    def _scale_learning_rates(self, number: int, scale: float) -> None:
        """Train a slot at this share of the settings' learning rates.

        Adam has a learning rate a group of parameters and takes a fused step a group: slots of one scale stay together.
        """
        if self._scales[number] == scale:
            return
        self._scales[number] = scale
        self.optimizer.param_groups.clear()
        for rate, rows in self._learning_rates:
            for one in sorted(set(self._scales), reverse=True):
                members = [row for row, its in zip(rows, self._scales, strict=True) if its == one]
                self.optimizer.add_param_group({"params": members, "lr": rate * one})

    def _cold_start(self, request: TrainingRequest) -> Residual:
        settings = self.settings
        return initialize_residual(
            self.base.target_layers,
            rank_fraction=settings.rank_fraction,
            a_std=settings.random_std if settings.initialization == "random" else 0.0,
            seed=derive_seed(request.seed, request.concept_id, "initialization"),
        )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this is open, the base model's UNet is this pack's. Nothing else may use it meanwhile."""
        unet = self.base.unet
        if self.settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        try:
            with attached(self.base, self.bank), self.shared_text.attended():
                yield
        finally:
            if self.settings.gradient_checkpointing:
                unet.disable_gradient_checkpointing()

    def step(self) -> Tensor:
        """One optimizer step of every slot; returns their losses [K] without waiting for the device."""
        losses = self._losses([slot.draw(self.base) for slot in self._filled_slots()])
        leaves = [*self.bank.a.values(), *self.bank.b.values()]
        if self.identifiers is not None:
            leaves.append(self.identifiers)
        torch._foreach_copy_(self._gradients, torch.autograd.grad(losses.sum(), leaves))
        self.optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def convergence_losses(self) -> list[float]:
        """Every slot's loss on noise, timesteps and references that stay the same all through its training."""
        return self._losses([slot.convergence_draw(self.base) for slot in self._filled_slots()]).tolist()

    def residual(self, number: int) -> Residual:
        """A copy of what a slot has learned so far, on the CPU."""
        residual = self.bank.residual(number)
        if self.identifiers is None:
            return residual
        return Residual(residual.a, residual.b, self.identifiers[number].detach().cpu().clone())

    def _filled_slots(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot is not None]

    def _losses(self, draws: list[_Draw]) -> Tensor:
        """loss_k [K] = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2."""
        base = self.base
        noisy = _to_device(torch.cat([draw.noisy for draw in draws]), base)
        target = _to_device(torch.cat([draw.target for draw in draws]), base)
        timesteps = _to_device(torch.cat([draw.timesteps for draw in draws]), base)
        if self.identifiers is None:
            assert self.text is not None
            text = self.text
        else:
            text = encode_text(base, [slot.prompt for slot in self._filled_slots()], self.identifiers)
        conditioning = text.unet_arguments(len(noisy), base.resolution, base.resolution)
        predicted = base.unet(noisy.to(base.dtype), timesteps, **conditioning, return_dict=False)[0]
        return (predicted.float() - target).square().reshape(self.size, -1).mean(dim=1)


def check_trainable(base: BaseModel, settings: TrainingSettings) -> None:
    """Raises:
    InvalidInput: the settings ask for what this base model cannot be given.
    """
    if settings.train_identifier and base.text_encoder_2 is not None:
        raise InvalidInput(
            f"training.train_identifier is true, but base model {base.name!r} has two text encoders, whose V* we do "
            "not train",
            fix="set training.train_identifier: false, which is the paper's setting",
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """What one slot puts into a step: z_t and the target [b, C, h, w], and t [b], on the CPU."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor


class _Slot:
    """A concept in training: its prompt, its references, its random numbers, and how far it is."""

    def __init__(self, request: TrainingRequest, prompt: TokenizedPrompt, batch_size: int) -> None:
        self.request, self.prompt, self.batch_size = request, prompt, batch_size
        self.mean, self.std = request.latents.mean.cpu(), request.latents.std.cpu()
        self.generator = self._generator("training")
        self._convergence: _Draw | None = None

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.request.seed, self.request.concept_id, purpose))

    def draw(self, base: BaseModel) -> _Draw:
        return self._draw(base, self.generator)

    def convergence_draw(self, base: BaseModel) -> _Draw:
        if self._convergence is None:
            self._convergence = self._draw(base, self._generator("convergence"))
        return self._convergence

    def _draw(self, base: BaseModel, generator: torch.Generator) -> _Draw:
        """z ~ the VAE's posterior of a random reference, z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.

        On the CPU, so that a concept's numbers are the same on every device and the device is never asked for one.
        """
        schedule, b = base.noise_schedule, self.batch_size
        which = torch.randint(self.mean.shape[0], (b,), generator=generator)
        timesteps = torch.randint(schedule.config["num_train_timesteps"], (b,), generator=generator)
        posterior_noise, noise = torch.randn(2, b, *self.mean.shape[1:], generator=generator)
        clean = self.mean[which] + self.std[which] * posterior_noise
        noisy = schedule.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
        if base.prediction_type == "v_prediction":
            return _Draw(noisy, schedule.get_velocity(clean, noise, timesteps), timesteps)  # type: ignore[arg-type]
        return _Draw(noisy, noise, timesteps)


def _flat_bank(
    base: BaseModel, settings: TrainingSettings, size: int
) -> tuple[ResidualBank, list[Tensor], list[Tensor]]:
    """One tensor [K, P] of factors, and one of gradients.

    Returns:
        The factors as a bank of leaves; the gradients in the same order, first all a then all b; the K rows as
        parameters for an optimizer.
    """
    shapes = {}
    for layer in base.target_layers:
        rank = layer.rank(settings.rank_fraction)
        shapes["a", layer.name], shapes["b", layer.name] = (layer.width, rank), (rank, layer.width)
    values = sum(rows * columns for rows, columns in shapes.values())
    factors = torch.zeros(size, values, device=base.device)
    gradients = torch.zeros_like(factors)
    leaves: dict[str, dict[str, Tensor]] = {"a": {}, "b": {}}
    gradients_of: dict[str, list[Tensor]] = {"a": [], "b": []}
    first = 0
    for (factor, layer), (rows, columns) in shapes.items():
        part = slice(first, first + rows * columns)
        leaves[factor][layer] = factors[:, part].view(size, rows, columns).requires_grad_(True)
        gradients_of[factor].append(gradients[:, part].view(size, rows, columns))
        first += rows * columns
    bank = ResidualBank(leaves["a"], leaves["b"])
    return bank, gradients_of["a"] + gradients_of["b"], _rows(factors, gradients)


def _rows(values: Tensor, gradients: Tensor) -> list[Tensor]:
    """The rows of [K, P] as K parameters for an optimizer, with the rows of `gradients` as their gradients."""
    rows = []
    for row, gradient in zip(values, gradients, strict=True):
        parameter = row.detach().requires_grad_(True)
        parameter.grad = gradient
        rows.append(parameter)
    return rows


def _to_device(values: Tensor, base: BaseModel) -> Tensor:
    if base.device.type != "cuda":
        return values.to(base.device)
    return values.pin_memory().to(base.device, non_blocking=True)
