"""Learn the residuals of many concepts in one pass through one frozen UNet.

Shapes: K concepts in the pack (the pack size, always: short packs are padded), b noised references of each in a step,
S = K b samples in the UNet pass, grouped by concept. C, h, w are the latent's; L, D the text states'.

For every concept k, with its own noise and timesteps:

    z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps
    loss_k = mean || target - UNet(z_t, t, text(V*_k); W + A_k B_k) ||^2     target: eps, or v for a v-prediction model

The pack's loss is the sum of the loss_k, so every concept's gradient is what it would be alone, and since Adam works
element by element, one Adam over the stacked factors is K Adams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from .base_model import BaseModel
from .concept import derive_seed
from .errors import ConceptFailure
from .identifier_token import TokenizedPrompt, encode_prompts, identifier_embedding, tokenize_concept_prompt
from .latents import ReferenceLatents
from .residual import Residual, initialize_residual
from .residual_bank import ResidualBank, attached
from .settings import Settings


class TrainingSettings(Settings):
    """How a residual is trained. The paper's values where it states them; docs/method.md says what it leaves open."""

    iterations: int = Field(default=150, ge=1, le=100_000, description="optimizer steps for every concept")
    batch_size: int = Field(default=4, ge=1, le=256, description="noised references of one concept in every step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's learning rate for A and B")
    rank_fraction: float = Field(
        default=0.05, gt=0, le=1, description="rank of a residual = max(1, round(rank_fraction x layer width))"
    )
    initialization: Literal["zero", "random"] = Field(
        default="random",
        description="A at the start; random: as in the paper; zero: training starts exactly at the base model",
    )
    random_std: float = Field(default=0.01, gt=0, le=1, description="standard deviation of a random A")
    prompt: str = Field(
        default="a photo of a {concept}", description="the training prompt; {concept} becomes 'V* <macro class>'"
    )
    identifier_token: str = Field(
        default="sks", description="a rare word of the tokenizer, one token long, that stands for V*"
    )
    train_identifier: bool = Field(
        default=False, description="also learn V*'s embedding; the text encoder then runs in every step"
    )
    identifier_learning_rate: float = Field(default=5e-3, gt=0, le=1, description="Adam's learning rate for V*")
    mirror: bool = Field(default=False, description="also learn from mirrored references")
    pack_size: int = Field(
        default=4, ge=1, le=1024, description="concepts trained together; short packs are padded to this size"
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        return frozenset({"pack_size"})


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRequest:
    """A concept, ready to be trained: its seed, its class, and its references as latents."""

    concept_id: str
    macro_class: str
    seed: int
    latents: ReferenceLatents


@dataclass(frozen=True, slots=True, eq=False)
class TrainedResidual:
    """What training one concept gave.

    Attributes:
        losses: [iterations] float32, loss_k at every step.
    """

    concept_id: str
    residual: Residual
    losses: np.ndarray


def train_residuals(
    base: BaseModel,
    requests: Sequence[TrainingRequest],
    settings: TrainingSettings,
    *,
    on_step: Callable[[int], None] | None = None,
) -> list[TrainedResidual | ConceptFailure]:
    """Train one pack: up to `settings.pack_size` concepts at once, in the order given.

    A concept whose loss or factors stop being finite ends as a ConceptFailure; nothing of it reaches its neighbours.

    Args:
        on_step: called with the number of steps done; it must not touch the device.

    Raises:
        ValueError: more concepts than the pack has slots, or none.
        ConceptError: the training prompt does not fit the tokenizer.
    """
    if not 1 <= len(requests) <= settings.pack_size:
        raise ValueError(f"{len(requests)} concepts for a pack of {settings.pack_size}")
    # A padded slot trains a copy of the last concept, and the copy is thrown away.
    pack = _Pack(base, [*requests, *[requests[-1]] * (settings.pack_size - len(requests))], settings)
    losses = torch.zeros(settings.iterations, settings.pack_size, device=base.device)
    for step in range(settings.iterations):
        losses[step] = pack.step()
        if on_step:
            on_step(step + 1)
    return [_result(request, pack.residual(slot), losses[:, slot]) for slot, request in enumerate(requests)]


def _result(request: TrainingRequest, residual: Residual, losses: Tensor) -> TrainedResidual | ConceptFailure:
    factors = [*residual.a.values(), *residual.b.values()]
    finite = torch.isfinite(losses)
    if not finite.all() or not all(torch.isfinite(factor).all() for factor in factors):
        step = int(finite.cpu().long().cumprod(0).sum())
        return ConceptFailure(
            request.concept_id,
            "train",
            f"its loss was no longer finite at iteration {step} of {len(losses)}",
            "lower training.learning_rate, or look at its reference images",
        )
    return TrainedResidual(request.concept_id, residual, losses.cpu().numpy())


class _Pack:
    """The state of one pack's training: stacked parameters, one optimizer, and a random generator a concept."""

    def __init__(self, base: BaseModel, requests: Sequence[TrainingRequest], settings: TrainingSettings) -> None:
        self.base, self.settings = base, settings
        self.latents = [request.latents for request in requests]
        self.generators = [
            torch.Generator().manual_seed(derive_seed(request.seed, request.concept_id, "training"))
            for request in requests
        ]
        self.bank = ResidualBank.stack([self._initial(request) for request in requests], base)
        groups = [{"params": self.bank.parameters(), "lr": settings.learning_rate}]
        self.prompts: list[TokenizedPrompt] = [
            tokenize_concept_prompt(base.tokenizer, settings.prompt, settings.identifier_token, request.macro_class)
            for request in requests
        ]
        self.identifiers: Tensor | None = None
        if settings.train_identifier:
            start = identifier_embedding(base, settings.identifier_token)
            self.identifiers = start.repeat(len(requests), 1).requires_grad_(True)
            groups.append({"params": [self.identifiers], "lr": settings.identifier_learning_rate})
        else:
            with torch.no_grad():
                self.text = encode_prompts(base, self.prompts)  # V* is frozen: the text encoder runs once
        for parameter in self.bank.parameters():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.Adam(groups, fused=base.device.type in ("cpu", "cuda"))

    def _initial(self, request: TrainingRequest) -> Residual:
        return initialize_residual(
            self.base.target_layers,
            rank_fraction=self.settings.rank_fraction,
            a_std=self.settings.random_std if self.settings.initialization == "random" else 0.0,
            seed=derive_seed(request.seed, request.concept_id, "initialization"),
        )

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents [S, C, h, w], noise of the same shape, and timesteps [S], from every concept's own generator.

        Drawn on the CPU, so that a concept's numbers are the same on every device.
        """
        b = self.settings.batch_size
        last = self.base.noise_schedule.config["num_train_timesteps"]
        which, timesteps, draws = [], [], []
        for generator, latents in zip(self.generators, self.latents, strict=True):
            which.append(torch.randint(latents.mean.shape[0], (b,), generator=generator))
            timesteps.append(torch.randint(last, (b,), generator=generator))
            draws.append(torch.randn(2, b, *latents.mean.shape[1:], generator=generator))
        picked = [index.to(self.base.device) for index in which]
        mean = torch.cat([latents.mean[index] for latents, index in zip(self.latents, picked, strict=True)])
        std = torch.cat([latents.std[index] for latents, index in zip(self.latents, picked, strict=True)])
        posterior_noise, noise = torch.stack(draws, dim=1).flatten(1, 2).to(self.base.device)
        return mean + std * posterior_noise, noise, torch.cat(timesteps).to(self.base.device)

    def step(self) -> Tensor:
        """One optimizer step of every concept in the pack; returns loss_k [K] without waiting for the device."""
        base, schedule = self.base, self.base.noise_schedule
        clean, noise, timesteps = self._draw()
        noisy = schedule.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
        v_prediction = base.prediction_type == "v_prediction"
        target = schedule.get_velocity(clean, noise, timesteps) if v_prediction else noise  # type: ignore[arg-type]
        text = self.text if self.identifiers is None else encode_prompts(base, self.prompts, self.identifiers)
        with attached(base, self.bank):
            predicted = base.unet(
                noisy.to(base.dtype),
                timesteps,
                text.repeat_interleave(self.settings.batch_size, dim=0),
                return_dict=False,
            )[0]
        losses = (predicted.float() - target).square().view(len(self.prompts), -1).mean(dim=1)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach()

    def residual(self, slot: int) -> Residual:
        residual = self.bank.residual(slot)
        if self.identifiers is None:
            return residual
        return Residual(residual.a, residual.b, self.identifiers[slot].detach().cpu().clone())
