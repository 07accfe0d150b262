from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persres.core.training.convergence import EarlyStopping, has_converged

RULE = EarlyStopping(check_every=10, window=3, threshold=0.05, min_iterations=20)
LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=12)


def test_loss_that_falls_and_then_stays_constant_has_converged():
    assert not has_converged([1.0, 0.8, 0.6, 0.4], RULE)
    assert has_converged([1.0, 0.6, 0.5, 0.5, 0.5], RULE)


def test_constant_loss_without_a_fall_has_not_converged():
    assert not has_converged([0.5, 0.5, 0.5], RULE)


def test_training_does_not_end_before_min_iterations():
    later = RULE.model_copy(update={"min_iterations": 50})
    flat = [1.0, 0.6, 0.5, 0.5, 0.5]
    assert not has_converged(flat, later) and has_converged([*flat, 0.5], later)


@given(LOSSES, st.floats(0.1, 100))
def test_convergence_does_not_depend_on_the_scale_of_the_loss(losses: list[float], scale: float):
    # Except values at the rule's threshold, which another scale may round to the other side.
    edge = [RULE.model_copy(update={"threshold": RULE.threshold * (1 + off)}) for off in (-1e-6, 1e-6)]
    if has_converged(losses, edge[0]) == has_converged(losses, edge[1]):
        assert has_converged([loss * scale for loss in losses], RULE) == has_converged(losses, RULE)


@given(LOSSES)
def test_loss_that_is_not_finite_never_converges(losses: list[float]):
    assert not has_converged([*losses, float("nan")], RULE)
