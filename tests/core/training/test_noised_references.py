"""The draws of the loss: what each setting promises, and that the default draws what it always drew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.core.base_model import BaseModel
from persres.core.latents import ReferenceLatents
from persres.core.training.noised_references import NoisedReferences, min_snr_weights
from persres.core.training.settings import TrainingSettings


def latents(references: int = 3) -> ReferenceLatents:
    """References whose latents tell their number, and whose posteriors have no width."""
    mean = torch.arange(float(references)).view(-1, 1, 1, 1).expand(-1, 4, 8, 8).clone()
    return ReferenceLatents(mean, torch.zeros_like(mean))


def references_of(base: BaseModel, batch) -> list[int]:
    """Return the numbers of the references in a batch, read back from z_t and the target."""
    abar = base.noise_schedule.alphas_cumprod[batch.timesteps].double().view(-1, 1, 1, 1)
    if base.prediction_type == "epsilon":
        clean = (batch.noisy.double() - (1 - abar).sqrt() * batch.target.double()) / abar.sqrt()
    else:
        clean = abar.sqrt() * batch.noisy.double() - (1 - abar).sqrt() * batch.target.double()
    return [round(one) for one in clean.mean(dim=(1, 2, 3)).tolist()]


def test_default_draws_are_those_of_the_first_version(base: BaseModel):
    plain = TrainingSettings(batch_size=5)
    drawn = [NoisedReferences(latents(), plain, seed=3).draw(base) for _ in range(2)]
    generator, schedule = torch.Generator().manual_seed(3), base.noise_schedule
    which = torch.randint(3, (5,), generator=generator)
    timesteps = torch.randint(1000, (5,), generator=generator)
    _, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    noisy = schedule.add_noise(latents().mean[which], noise, timesteps)  # type: ignore[arg-type]
    for batch in drawn:
        assert torch.equal(batch.timesteps, timesteps) and torch.equal(batch.noisy, noisy)
        assert batch.weights is None
        assert references_of(base, batch) == which.tolist()


@given(
    batch_size=st.sampled_from([1, 2, 4, 6, 8]),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[0] < pair[1]),
    stratified=st.booleans(),
    antithetic=st.booleans(),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=50)
def test_timesteps_are_within_the_range_and_one_in_each_stratum(
    sd1: BaseModel, batch_size, bounds, stratified, antithetic, seed
):
    antithetic = antithetic and batch_size % 2 == 0
    chosen = TrainingSettings(
        batch_size=batch_size,
        timestep_range=tuple(bounds),
        timesteps="stratified" if stratified else "uniform",
        antithetic_noise=antithetic,
    )
    timesteps = NoisedReferences(latents(), chosen, seed).draw(sd1).timesteps
    assert timesteps.shape == (batch_size,) and timesteps.dtype == torch.int64
    low = min(round(bounds[0] * 1000), 999)
    high = max(round(bounds[1] * 1000), low + 1)
    assert all(low <= timestep < high for timestep in timesteps.tolist())
    if stratified:
        draws = timesteps[:: 2 if antithetic else 1]
        width = (high - low) / len(draws)
        for stratum, timestep in enumerate(draws.tolist()):
            assert low + stratum * width - 1 < timestep < low + (stratum + 1) * width + 1e-9


def test_stratified_timesteps_are_uniform_over_many_draws(sd1: BaseModel):
    source = NoisedReferences(latents(), TrainingSettings(batch_size=4, timesteps="stratified"), 0)
    timesteps = torch.cat([source.draw(sd1).timesteps for _ in range(2000)]).double()
    assert timesteps.mean().item() == pytest.approx(499.5, abs=5)
    counts = torch.histc(timesteps, bins=10, min=0, max=1000)
    assert counts.min() > 700 and counts.max() < 900


@given(
    references=st.integers(1, 7),
    batch_size=st.sampled_from([1, 2, 4, 10]),
    pairs=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_shuffled_references_come_all_before_any_comes_again(sd1: BaseModel, references, batch_size, pairs, seed):
    pairs = pairs and batch_size % 2 == 0
    chosen = TrainingSettings(batch_size=batch_size, reference_order="shuffled", antithetic_noise=pairs)
    chosen = chosen.model_copy(update={"timestep_range": (0.0, 0.3)})  # more noise hides the reference
    source, seen = NoisedReferences(latents(references), chosen, seed), []
    for _ in range(12):
        seen += references_of(sd1, source.draw(sd1))[:: 2 if pairs else 1]
    rounds = [seen[start : start + references] for start in range(0, len(seen) - references + 1, references)]
    assert all(sorted(one) == list(range(references)) for one in rounds)


def test_antithetic_pairs_share_all_but_the_sign_of_their_noise(base: BaseModel):
    batch = NoisedReferences(latents(), TrainingSettings(batch_size=6, antithetic_noise=True), 5).draw(base)
    abar = base.noise_schedule.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    assert torch.equal(batch.timesteps[0::2], batch.timesteps[1::2])
    clean = (batch.noisy[0::2] + batch.noisy[1::2]) / 2 / abar[0::2].sqrt()
    assert [round(one) for one in clean.mean(dim=(1, 2, 3)).tolist()] == references_of(base, batch)[0::2]
    if base.prediction_type == "epsilon":
        assert torch.equal(batch.target[0::2], -batch.target[1::2])


@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_min_snr_weights_equal_the_papers(base: BaseModel, gamma: float):
    timesteps = torch.tensor([0, 10, 500, 998])
    abar = base.noise_schedule.alphas_cumprod[timesteps].double()
    snr = abar / (1 - abar)
    weights = min_snr_weights(base, timesteps, gamma)
    expected = torch.minimum(snr, torch.tensor(gamma)) / (snr if base.prediction_type == "epsilon" else snr + 1)
    torch.testing.assert_close(weights, expected.float())
    assert (weights <= 1).all()


def test_min_snr_weights_are_finite_where_all_is_noise(sd2: BaseModel):
    assert sd2.noise_schedule.alphas_cumprod[999] == 0, "zero terminal SNR"
    assert min_snr_weights(sd2, torch.tensor([999]), 5.0).tolist() == [0.0]
