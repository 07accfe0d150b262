"""The random part of the loss: which references of a concept a step sees, at which timesteps, under which noise.

Shapes: b noised references a step (`training.batch_size`), R references of the concept; C, h, w the latent's channels,
height and width.

Every draw comes from one generator that is seeded by the concept, so the draws are the same in every pack. They are
made on the CPU: its generator gives the same numbers for every device and needs no synchronization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..base_model import BaseModel
from ..latents import ReferenceLatents
from .settings import TrainingSettings


@dataclass(frozen=True, slots=True, eq=False)
class NoisedBatch:
    """One concept's inputs of a step, on the CPU.

    Attributes:
        noisy, target: z_t and what the UNet should predict, each [b, C, h, w].
        timesteps: t, [b].
        weights: the weight of each sample's loss, [b] float32; None: all 1.
    """

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    weights: Tensor | None = None


class NoisedReferences:
    """Draws a concept's batches, one after the other."""

    def __init__(self, latents: ReferenceLatents, settings: TrainingSettings, seed: int) -> None:
        self._mean, self._std = latents.mean.cpu(), latents.std.cpu()
        self._settings = settings
        self._generator = torch.Generator().manual_seed(seed)
        self._deck = torch.empty(0, dtype=torch.int64)  # the references, in shuffled order, that are still to come

    def draw(self, base: BaseModel) -> NoisedBatch:
        """Draw z from the VAE's posterior of a reference, and z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
        schedule, settings = base.noise_schedule, self._settings
        copies = 2 if settings.antithetic_noise else 1
        draws = settings.batch_size // copies
        which = self._references(draws)
        timesteps = self._timesteps(draws, int(schedule.config["num_train_timesteps"]))
        posterior_noise, noise = torch.randn(2, draws, *self._mean.shape[1:], generator=self._generator)
        clean = self._mean[which] + self._std[which] * posterior_noise
        if settings.antithetic_noise:
            clean, timesteps = clean.repeat_interleave(2, dim=0), timesteps.repeat_interleave(2)
            noise = torch.stack((noise, -noise), dim=1).flatten(0, 1)
        noisy = schedule.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
        weights = None
        if settings.min_snr_gamma is not None:
            weights = min_snr_weights(base, timesteps, settings.min_snr_gamma)
        if base.prediction_type == "v_prediction":
            target = schedule.get_velocity(clean, noise, timesteps)  # type: ignore[arg-type]
            return NoisedBatch(noisy, target, timesteps, weights)
        return NoisedBatch(noisy, noise, timesteps, weights)

    def _references(self, count: int) -> Tensor:
        """Return the numbers of the next references, [count]."""
        references = len(self._mean)
        if self._settings.reference_order == "random":
            return torch.randint(references, (count,), generator=self._generator)
        while len(self._deck) < count:
            self._deck = torch.cat((self._deck, torch.randperm(references, generator=self._generator)))
        drawn, self._deck = self._deck[:count], self._deck[count:]
        return drawn

    def _timesteps(self, count: int, steps: int) -> Tensor:
        """Return timesteps of the range, [count]."""
        first, last = self._settings.timestep_range
        low = min(round(first * steps), steps - 1)
        high = max(round(last * steps), low + 1)
        if self._settings.timesteps == "uniform":
            return torch.randint(low, high, (count,), generator=self._generator)
        within = torch.arange(count) + torch.rand(count, generator=self._generator, dtype=torch.float64)
        return (low + within * ((high - low) / count)).long().clamp(max=high - 1)


def min_snr_weights(base: BaseModel, timesteps: Tensor, gamma: float) -> Tensor:
    """Return the Min-SNR weights of timesteps [b] (Hang et al., arXiv 2303.09556), [b] float32.

    With snr = abar / (1 - abar) they are min(snr, gamma) / snr for a model that predicts the noise, and
    min(snr, gamma) / (snr + 1) for one that predicts v, which is the same weight of the error in z. Where all is noise,
    snr = 0, they are the limits 1 and 0.
    """
    abar = base.noise_schedule.alphas_cumprod[timesteps].double()
    snr = abar / (1 - abar)
    if base.prediction_type == "v_prediction":
        return (snr.clamp(max=gamma) / (snr + 1)).float()
    return (gamma / snr).clamp(max=1).float()
