"""Law 2: zero residual = base model, mask 1 = full residual, mask 0 = base model, merged weights = hooks."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from persres.core.base_model import BaseModel
from persres.core.errors import PersresError
from persres.core.residual import Residual, initialize_residual
from persres.core.residual_bank import ResidualBank, add_residuals, attached

from ..support.merged_weights import merge_into_base


@dataclasses.dataclass
class ConstantMask:
    """The same mask value at every position of every transformer."""

    value: float
    positions: dict[str, int]
    samples: int

    def mask(self, transformer: str) -> Tensor:
        return torch.full((self.samples, self.positions[transformer]), self.value)


@pytest.fixture
def residuals(base: BaseModel) -> list[Residual]:
    return [initialize_residual(base.target_layers, rank_fraction=0.1, a_std=0.3, seed=seed) for seed in range(3)]


@pytest.fixture
def inputs(base: BaseModel) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps and text states of three samples."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 4, 8, 8, generator=generator),
        torch.tensor([10, 500, 900]),
        torch.randn(3, 16, 32, generator=generator),
    )


def positions(base: BaseModel) -> dict[str, int]:
    return {layer.transformer: 16 if "mid" in layer.name else 64 for layer in base.target_layers}


def unet(base: BaseModel, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return base.unet(*inputs, return_dict=False)[0]


def test_zero_residual_is_the_base_model_bit_for_bit(base: BaseModel, inputs):
    plain = unet(base, inputs)
    with attached(base, ResidualBank.stack([None, None, None], base)):
        assert torch.equal(unet(base, inputs), plain)


def test_residual_changes_only_its_own_sample(base: BaseModel, inputs, residuals):
    plain = unet(base, inputs)
    with attached(base, ResidualBank.stack([None, residuals[0], None], base)):
        mixed = unet(base, inputs)
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[2], plain[2])
    assert (mixed[1] - plain[1]).abs().max() > 1e-3


def test_mask_one_is_the_full_residual_and_mask_zero_the_base_model(base: BaseModel, inputs, residuals):
    bank = ResidualBank.stack(residuals, base)
    with attached(base, bank):
        full = unet(base, inputs)
    with attached(base, bank, ConstantMask(1.0, positions(base), 3)):
        assert torch.equal(unet(base, inputs), full)
    with attached(base, bank, ConstantMask(0.0, positions(base), 3)):
        assert torch.equal(unet(base, inputs), unet_without_hooks(base, inputs))


def unet_without_hooks(base: BaseModel, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    clean = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
    for layer in clean.target_layers:
        clean.layer(layer)._forward_hooks.clear()
    return unet(clean, inputs)


def test_hooks_equal_merged_weights(base: BaseModel, inputs, residuals):
    for sample, residual in enumerate(residuals):
        merged = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
        merge_into_base(merged, residual)
        with attached(base, ResidualBank.stack(residuals, base)):
            hooked = unet(base, inputs)
        torch.testing.assert_close(unet(merged, inputs)[sample], hooked[sample], rtol=1e-4, atol=2e-5)


def test_select_gives_each_group_its_residual(base: BaseModel, residuals):
    bank = ResidualBank.stack(residuals, base).select(torch.tensor([2, 0, 2]))
    for group, slot in enumerate((2, 0, 2)):
        for name in residuals[slot].a:
            assert torch.equal(bank.residual(group).a[name], residuals[slot].a[name])
            assert torch.equal(bank.residual(group).b[name], residuals[slot].b[name])


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masked"])
@pytest.mark.parametrize("layout", ["channels first", "channels last", "sequence"])
def test_add_residuals_equals_a_loop_over_samples(layout: str, masked: bool):
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 6, 2, generator=generator), torch.randn(2, 2, 6, generator=generator)
    shape = (6, 20, 6) if layout == "sequence" else (6, 6, 4, 5)
    x, output = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    mask = (torch.rand(6, 20, generator=generator) > 0.5).float() if masked else None
    if layout == "channels last":
        x, output = (one.contiguous(memory_format=torch.channels_last) for one in (x, output))
    summed = add_residuals(output, x, a, b, channels_first=layout != "sequence", mask=mask)
    for sample in range(6):
        one = x[sample].T if layout == "sequence" else x[sample].flatten(1)  # [m, N]
        delta = a[sample // 3] @ b[sample // 3] @ one * (1.0 if mask is None else mask[sample])
        expected = output[sample] + (delta.T if layout == "sequence" else delta.view(6, 4, 5))
        torch.testing.assert_close(summed[sample], expected)


def test_hooks_are_removed_after_an_error(base: BaseModel, residuals):
    with pytest.raises(RuntimeError, match="boom"), attached(base, ResidualBank.stack(residuals, base)):
        raise RuntimeError("boom")
    assert not any(base.layer(layer)._forward_hooks for layer in base.target_layers)


def test_residual_of_another_model_is_refused(base: BaseModel, residuals):
    name = base.target_layers[0].name
    wrong = dataclasses.replace(residuals[0], a={**residuals[0].a, name: torch.zeros(7, 2)})
    with pytest.raises(PersresError, match=f"{name} is A \\(7, 2\\)"):
        ResidualBank.stack([wrong], base)
