"""Residuals: serialization, norms, ranks and initialization."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from persres.core.base_model import BaseModel, TargetLayer
from persres.core.errors import PersresError
from persres.core.residual import Residual, initialize_residual

LAYERS = (TargetLayer("down.proj_out", 64, "conv"), TargetLayer("up.proj_out", 96, "linear"))


@given(st.integers(0, 2**63 - 1), st.booleans())
def test_residual_survives_serialization(seed: int, with_identifier: bool):
    plain = initialize_residual(LAYERS, rank_fraction=0.05, a_std=0.1, seed=seed)
    residual = dataclasses.replace(plain, identifier=torch.arange(5.0) if with_identifier else None)
    back = Residual.from_bytes(residual.to_bytes({"concept_id": "mug"}))
    assert back.ranks == residual.ranks == {"down.proj_out": 3, "up.proj_out": 5}
    for name in residual.a:
        assert torch.equal(back.a[name], residual.a[name]) and torch.equal(back.b[name], residual.b[name])
    assert (back.identifier is None) == (not with_identifier)


@given(st.integers(0, 2**63 - 1), st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e12]))
def test_delta_norm_equals_the_norm_of_the_product(seed: int, a_std: float):
    residual = initialize_residual(LAYERS, rank_fraction=0.05, a_std=a_std, seed=seed)
    for name in residual.a:
        product = residual.a[name].double() @ residual.b[name].double()
        assert residual.delta_norm(name) == pytest.approx(float(product.norm()), rel=1e-9)


def test_equal_residuals_have_equal_bytes():
    first, again = (initialize_residual(LAYERS, rank_fraction=0.05, a_std=0.1, seed=3) for _ in range(2))
    assert first.to_bytes() == again.to_bytes()
    assert first.to_bytes() != initialize_residual(LAYERS, rank_fraction=0.05, a_std=0.1, seed=4).to_bytes()


def test_bytes_are_equal_in_another_process():
    code = (
        "import hashlib; from persres.core.residual import *; from persres.core.base_model import TargetLayer;"
        "r = initialize_residual((TargetLayer('x', 8, 'conv'),), rank_fraction=0.5, a_std=0.1, seed=3);"
        "print(hashlib.sha256(r.to_bytes({k: k for k in 'abcdefgh'})).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize(
    "blob", [b"", b"no safetensors", save({"x.A": torch.zeros(2, 2)}), save({"x": torch.zeros(1)})]
)
def test_bytes_that_are_no_residual_are_refused(blob: bytes):
    with pytest.raises(PersresError, match="not a residual"):
        Residual.from_bytes(blob)


def test_stable_diffusion_1_has_the_papers_parameter_count():
    """1,239,040 parameters in 16 layers with ranks 16, 32 and 64: 0.1% of the model, as in the paper."""
    with torch.device("meta"):  # the published architecture without its 3 GB of weights
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    layers = BaseModel("sd1", "", None, None, None, unet, None, {}).target_layers  # type: ignore[arg-type]
    residual = initialize_residual(layers, rank_fraction=0.05, a_std=0.0, seed=0)
    assert len(layers) == 16 and {layer.kind for layer in layers} == {"conv"}
    assert sorted(residual.ranks.values()) == [16] * 5 + [32] * 5 + [64] * 6
    assert sum(factor.numel() for factor in (*residual.a.values(), *residual.b.values())) == 1_239_040


def test_rank_is_at_least_one():
    assert TargetLayer("x", 8, "conv").rank(0.05) == 1
