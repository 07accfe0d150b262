"""A pack: K concepts that train together in one UNet pass, each in a slot of its own.

Shapes: K slots (the pack size), b noised references per slot and step (`training.batch_size`), S = K b samples in the
UNet pass, grouped by slot; R references of a concept; C, h, w the latent's channels, height and width; m the width of a
target layer and r its rank; P the number of values in one residual, the sum of 2 m r over the target layers.

The values in a slot depend on its concept alone: initial factors, noise and timesteps come from the concept's seed, all
tensors have one fixed shape whatever the other slots hold, and Adam works element by element. So a concept may be
loaded into a slot while the others are in the middle of their training.
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
    """A concept to be trained.

    Attributes:
        seed: the concept's seed, from which the seed of every random draw is derived.
        latents: its references, R of them.
        start: the residual of a warm start, which trains `warm_start.iterations`; None: a cold start from the seed.
        learning_rate_scale: factor of the settings' learning rates.
    """

    concept_id: str
    macro_class: str
    seed: int
    latents: ReferenceLatents
    start: Residual | None = None
    learning_rate_scale: float = 1.0


class TrainingPack:
    """The stacked factors, gradients and optimizer states of K slots.

    One tensor [K, P] holds all factors, one row per slot. The UNet reads it through views, a [K, m, r] and b [K, r, m]
    for every target layer. Adam updates it as K parameters [P], each with its own step count: one fused step for the
    whole pack that equals K Adams.
    """

    def __init__(self, base: BaseModel, settings: TrainingSettings, size: int) -> None:
        check_trainable(base, settings)
        self.base, self.settings, self.size = base, settings, size
        self.slots: list[_Slot | None] = [None] * size
        self.bank, self._gradients, parameters = _flat_bank(base, settings, size)
        self._parameters = [(settings.learning_rate, parameters)]  # learning rate, one parameter per slot
        self.identifiers: Tensor | None = None
        if settings.train_identifier:
            self._start_identifier = identifier_embedding(base, settings.identifier_token)
            self.identifiers = self._start_identifier.repeat(size, 1)
            gradient = torch.zeros_like(self.identifiers)
            parameters = _parameter_per_row(self.identifiers, gradient)
            self.identifiers.requires_grad_(True)
            self._gradients.append(gradient)
            self._parameters.append((settings.identifier_learning_rate, parameters))
        groups = [{"params": parameters, "lr": rate} for rate, parameters in self._parameters]
        self.optimizer = torch.optim.Adam(groups, fused=base.device.type in ("cpu", "cuda"))
        self._scales = [1.0] * size
        self.text: TextConditioning | None = None
        self.shared_text = SharedText(base, fixed=not settings.train_identifier)

    @torch.no_grad()
    def load(self, slot: int, request: TrainingRequest) -> None:
        """Load a concept into a slot, with its initial factors and an empty optimizer state.

        Raises:
            ConceptError: the training prompt is too long, or glued to other text.
            PersresError: `request.start` does not fit the base model.
        """
        base, settings = self.base, self.settings
        prompt = tokenize_concept_prompt(
            base.tokenizer, settings.prompt, settings.identifier_token, request.macro_class
        )
        start = request.start or self._cold_start(request)
        check_residual(start, base.target_layers)
        for name in self.bank.a:
            self.bank.a[name][slot] = start.a[name].to(base.device)
            self.bank.b[name][slot] = start.b[name].to(base.device)
        if self.identifiers is not None:
            learned = start.identifier
            self.identifiers[slot] = self._start_identifier if learned is None else learned.to(base.device)
        else:
            text = encode_text(base, [prompt])  # alone, so that its bits do not depend on other prompts
            self.text = self.text or text.repeat(self.size)
            self.text.replace_row(slot, text)
            self.shared_text.clear_cache()
        for _, parameters in self._parameters:
            self.optimizer.state.pop(parameters[slot], None)
        self._scale_learning_rates(slot, request.learning_rate_scale)
        self.slots[slot] = _Slot(request, prompt, settings.batch_size)

    def pad(self) -> None:
        """Load the first concept into every slot that was never loaded; what these slots learn is not used.

        A slot whose concept has ended is not empty: it continues with its old concept.
        """
        first = self._filled_slots()[0]
        for slot, filled in enumerate(self.slots):
            if filled is None:
                self.load(slot, first.request)

    def _scale_learning_rates(self, slot: int, scale: float) -> None:
        """Multiply a slot's learning rates by `scale`.

        Adam has one learning rate and one fused step per parameter group, so all slots of equal scale form a group.
        """
        if self._scales[slot] == scale:
            return
        self._scales[slot] = scale
        self.optimizer.param_groups.clear()
        for rate, parameters in self._parameters:
            for group_scale in sorted(set(self._scales), reverse=True):
                group = [one for one, own in zip(parameters, self._scales, strict=True) if own == group_scale]
                self.optimizer.add_param_group({"params": group, "lr": rate * group_scale})

    def _cold_start(self, request: TrainingRequest) -> Residual:
        settings = self.settings
        return initialize_residual(
            self.base.target_layers,
            rank_fraction=settings.rank_fraction,
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
        losses = self._losses([slot.draw(self.base) for slot in self._filled_slots()])
        leaves = [*self.bank.a.values(), *self.bank.b.values()]
        if self.identifiers is not None:
            leaves.append(self.identifiers)
        torch._foreach_copy_(self._gradients, torch.autograd.grad(losses.sum(), leaves))
        self.optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def convergence_losses(self) -> list[float]:
        """Return every slot's loss on noise, timesteps and references that are the same at every call."""
        return self._losses([slot.convergence_draw(self.base) for slot in self._filled_slots()]).tolist()

    def residual(self, slot: int) -> Residual:
        """Return a copy of a slot's residual, on the CPU."""
        residual = self.bank.residual(slot)
        if self.identifiers is None:
            return residual
        return Residual(residual.a, residual.b, self.identifiers[slot].detach().cpu().clone())

    def _filled_slots(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot is not None]

    def _losses(self, draws: list[_Draw]) -> Tensor:
        """Return loss_k = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2 of every slot k, [K]."""
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


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """One slot's inputs of a step, on the CPU: z_t and the target, each [b, C, h, w], and the timesteps t, [b]."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor


class _Slot:
    """The concept in a slot: its prompt, the posteriors of its references, and its random generator."""

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
        """Draw z from the VAE's posterior of a random reference, and z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps.

        Draws on the CPU: its generator gives the same numbers for every device, and needs no synchronization.
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
    """Allocate the factors, [K, P], and their gradients.

    Returns:
        The factors as a bank of views that are autograd leaves; the views of the gradients, first of all a, then of all
        b; the K rows of the factors as parameters of an optimizer.
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
    return bank, gradients_of["a"] + gradients_of["b"], _parameter_per_row(factors, gradients)


def _parameter_per_row(values: Tensor, gradients: Tensor) -> list[Tensor]:
    """Return the rows of [K, P] as K parameters of an optimizer, with the rows of `gradients` as their gradients."""
    parameters = []
    for row, gradient in zip(values, gradients, strict=True):
        parameter = row.detach().requires_grad_(True)
        parameter.grad = gradient
        parameters.append(parameter)
    return parameters


def _to_device(values: Tensor, base: BaseModel) -> Tensor:
    if base.device.type != "cuda":
        return values.to(base.device)
    return values.pin_memory().to(base.device, non_blocking=True)
