"""Packed training on CUDA: it agrees with the CPU, does not depend on the pack, and never waits for the device."""

from __future__ import annotations

import pytest
import torch

from persres.core.base_model import BaseModel
from persres.core.latents import ReferenceLatents
from persres.core.training.residual_training import TrainedResidual, train_residuals
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingPack, TrainingRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
SETTINGS = TrainingSettings(iterations=6, batch_size=2)
all_shapes = pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])


def request(concept_id: str, side: int = 8) -> TrainingRequest:
    """A concept whose latents are noise that depends on its name; the UNet takes any even side."""
    generator = torch.Generator().manual_seed(sum(concept_id.encode()))
    mean = torch.randn(2, 4, side, side, generator=generator)
    return TrainingRequest(concept_id, "mug", 0, ReferenceLatents(mean, torch.full_like(mean, 0.1)))


def trained(base: BaseModel, *requests: TrainingRequest) -> dict[str, TrainedResidual]:
    results = list(train_residuals(base, requests, SETTINGS, pack_size=3))
    assert all(isinstance(result, TrainedResidual) for result in results), results
    return {result.concept_id: result for result in results if isinstance(result, TrainedResidual)}


def factors(result: TrainedResidual) -> torch.Tensor:
    """All values of a residual, in one row."""
    residual = result.residual
    return torch.cat([factor.flatten() for factor in (*residual.a.values(), *residual.b.values())])


@all_shapes
def test_float32_result_agrees_with_the_cpu(load_tiny, no_tf32, shape):
    concepts = [request("a"), request("bb"), request("ccc")]
    here, there = (trained(load_tiny(shape, device), *concepts) for device in ("cpu", DEVICE))
    for name, one in here.items():
        torch.testing.assert_close(
            torch.from_numpy(there[name].losses), torch.from_numpy(one.losses), rtol=1e-3, atol=1e-4
        )
        # As a whole, since Adam turns a gradient of mere rounding errors into a full step.
        difference = (factors(there[name]) - factors(one)).norm() / factors(one).norm()
        assert difference < 1e-3


@all_shapes
@pytest.mark.parametrize("side", [8, 64])  # attention over 64 positions, and over 4096 as in Stable Diffusion 1.x
def test_bfloat16_result_is_finite_and_does_not_depend_on_neighbours(load_tiny, shape, side):
    base = load_tiny(shape, DEVICE, torch.bfloat16)
    packed = trained(base, request("a", side), request("bb", side), request("ccc", side))
    alone = trained(base, request("bb", side))["bb"]
    for result in packed.values():
        assert torch.isfinite(factors(result)).all() and torch.isfinite(torch.from_numpy(result.losses)).all()
    assert torch.equal(factors(packed["bb"]), factors(alone))
    assert packed["bb"].losses.tolist() == alone.losses.tolist()


@all_shapes
def test_step_does_not_wait_for_the_device(load_tiny, shape):
    pack = TrainingPack(load_tiny(shape, DEVICE, torch.bfloat16), SETTINGS, 2)
    pack.load(0, request("a"))
    pack.load(1, request("bb"))
    with pack.attached():
        for _ in range(2):  # allocates the text's keys and values, the optimizer's state and the libraries' workspaces
            pack.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = [pack.step() for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()
