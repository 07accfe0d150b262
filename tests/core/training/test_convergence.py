from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from persres.core.training.convergence import EarlyStopping, has_converged

RULE = EarlyStopping(check_every=10, window=3, threshold=0.05, min_iterations=20)
LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=12)


def test_a_loss_that_falls_and_then_stays_has_converged():
    assert not has_converged([1.0, 0.8, 0.6, 0.4], RULE)
    assert has_converged([1.0, 0.6, 0.5, 0.5, 0.5], RULE)


def test_the_window_alone_says_nothing():
    assert not has_converged([0.5, 0.5, 0.5], RULE)


def test_not_before_the_least_number_of_iterations():
    patient = RULE.model_copy(update={"min_iterations": 50})
    flat = [1.0, 0.6, 0.5, 0.5, 0.5]
    assert not has_converged(flat, patient) and has_converged([*flat, 0.5], patient)


@given(LOSSES, st.floats(0.1, 100))
def test_the_scale_of_the_loss_does_not_matter(losses: list[float], scale: float):
    # apart from values at the very edge of the rule, which another scale may round across it
    edge = [RULE.model_copy(update={"threshold": RULE.threshold * (1 + off)}) for off in (-1e-6, 1e-6)]
    if has_converged(losses, edge[0]) == has_converged(losses, edge[1]):
        assert has_converged([loss * scale for loss in losses], RULE) == has_converged(losses, RULE)


@given(LOSSES)
def test_a_loss_that_is_not_finite_never_converges(losses: list[float]):
    assert not has_converged([*losses, float("nan")], RULE)
