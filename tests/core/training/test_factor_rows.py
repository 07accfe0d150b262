"""Rows of trained values: what goes in comes out, clipping and averages act on one slot alone."""

from __future__ import annotations

import pytest
import torch

from persres.core.base_model import TargetLayer
from persres.core.errors import PersresError
from persres.core.residual import initialize_residual
from persres.core.training.factor_rows import FactorLayout, TrainedRows, clip_rows

LAYERS = (TargetLayer("one", 8, "conv"), TargetLayer("two", 24, "linear"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", [0.25, 1, 5, 100])
def test_residual_is_the_same_after_a_row(rank: int | float):
    layout = FactorLayout(LAYERS, rank)
    residual = initialize_residual(LAYERS, rank_fraction=rank, a_std=0.1, seed=1)
    a, b = layout.unflatten(layout.flatten(residual))
    for name in residual.a:
        assert torch.equal(a[name], residual.a[name]) and torch.equal(b[name], residual.b[name])


def test_views_show_the_rows():
    layout = FactorLayout(LAYERS, 2)
    values, views = layout.allocate(3, CPU)
    residual = initialize_residual(LAYERS, rank_fraction=2, a_std=0.1, seed=1)
    values[1] = layout.flatten(residual)
    assert torch.equal(views["a"]["two"][1], residual.a["two"]) and torch.equal(views["b"]["one"][1], residual.b["one"])
    assert not views["a"]["two"][0].any() and not views["a"]["two"][2].any()


def test_residual_of_other_ranks_is_refused():
    residual = initialize_residual(LAYERS, rank_fraction=3, a_std=0.1, seed=1)
    with pytest.raises(PersresError, match=r"one is A \(8, 3\), this training's \(8, 2\)"):
        FactorLayout(LAYERS, 2).flatten(residual)


def test_clipping_equals_torchs_for_each_slot_and_leaves_the_others():
    rng = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 30, generator=rng), torch.randn(4, 7, generator=rng)]
    gradients[0][3] = float("inf")  # a slot without a limit stays as it is, even here
    before = [one.clone() for one in gradients]
    clip_rows(gradients, [1.0, None, 100.0, None])
    parameters = [torch.nn.Parameter(one[0]) for one in before]
    for parameter, one in zip(parameters, before, strict=True):
        parameter.grad = one[0].clone()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for one, old, parameter in zip(gradients, before, parameters, strict=True):
        torch.testing.assert_close(one[0], parameter.grad)
        assert torch.equal(one[1:], old[1:])
    assert torch.cat([one[0] for one in gradients]).norm().item() == pytest.approx(1.0, rel=1e-4)


def test_averages_follow_their_weights():
    rows = TrainedRows(torch.zeros(2, 3), torch.zeros(2, 3))
    rows.load(0, torch.full((3,), 8.0), averages=True)
    rows.load(1, torch.full((3,), 5.0), averages=False)
    rows.values[0] = 4.0
    rows.average([0.25, 1.0])
    assert rows.row(0, averaged=True).tolist() == [7.0] * 3 and rows.row(0, averaged=False).tolist() == [4.0] * 3
    assert rows.row(1, averaged=True).tolist() == [5.0] * 3
    rows.load(1, torch.full((3,), 2.0), averages=True)
    assert rows.row(1, averaged=True).tolist() == [2.0] * 3


def test_row_is_a_copy():
    rows = TrainedRows(torch.zeros(1, 3), torch.zeros(1, 3))
    row = rows.row(0, averaged=False)
    rows.values[0] = 1.0
    assert not row.any()
