from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.training.convergence import EarlyStopping
from persres.core.training.learning_rate import LearningRateCourse
from persres.core.training.settings import TrainingSettings


@st.composite
def courses(draw: st.DrawFn) -> tuple[TrainingSettings, LearningRateCourse]:
    iterations = draw(st.integers(1, 60))
    warmup = draw(st.integers(0, iterations))
    schedule = draw(st.sampled_from(["constant", "linear", "cosine"]))
    decay = None
    if schedule != "constant" and warmup < iterations:
        decay = draw(st.none() | st.integers(1, iterations - warmup))
    settings = TrainingSettings(
        iterations=iterations, warmup_iterations=warmup, schedule=schedule, decay_iterations=decay
    )
    return settings, LearningRateCourse(settings, iterations)


def factors(course: LearningRateCourse) -> list[float]:
    return [course.factor(iteration) for iteration in range(course.iterations)]


@given(st.integers(1, 1000))
def test_rate_is_constant_by_default(iterations: int):
    course = LearningRateCourse(TrainingSettings(), iterations)
    assert set(factors(course)) == {1.0} and course.factor(iterations + 5) == 1.0


@given(courses())
def test_rate_rises_stays_and_falls_and_every_iteration_learns(case):
    settings, course = case
    found = factors(course)
    warmup, rest = found[: settings.warmup_iterations], found[settings.warmup_iterations :]
    assert all(0 < factor <= 1 for factor in found)
    assert warmup == sorted(set(warmup)) and all(factor < 1 for factor in warmup)
    assert rest == sorted(rest, reverse=True)
    if rest:
        assert rest[0] == 1.0
    if settings.decay_iterations:
        assert rest.count(1.0) == len(rest) - settings.decay_iterations + 1
    if settings.schedule != "constant":
        assert course.factor(settings.iterations) == pytest.approx(0, abs=1e-12)


def test_linear_and_cosine_decay():
    linear = LearningRateCourse(TrainingSettings(iterations=4, schedule="linear"), 4)
    assert factors(linear) == [1.0, 0.75, 0.5, 0.25]
    cosine = LearningRateCourse(TrainingSettings(iterations=4, schedule="cosine"), 4)
    assert factors(cosine) == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    late = TrainingSettings(iterations=6, schedule="linear", warmup_iterations=2, decay_iterations=2)
    assert factors(LearningRateCourse(late, 6)) == [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 0.5]


def test_a_shorter_warm_start_has_a_shorter_course():
    settings = TrainingSettings(iterations=50, schedule="linear", warmup_iterations=4, decay_iterations=40)
    assert factors(LearningRateCourse(settings, 6)) == [0.2, 0.4, 0.6, 0.8, 1.0, 0.5]
    assert factors(LearningRateCourse(settings, 2)) == [1 / 3, 2 / 3]


@given(courses(), st.integers(0, 70))
def test_started_decay_is_the_planned_one_earlier(case, at: int):
    _, course = case
    planned = factors(course)
    before = course.iterations
    course.start_decay(at)
    assert course.iterations <= before
    if course.iterations < before:  # what is left out is a time at the full rate
        start = before - course.iterations
        full = planned.index(1.0)
        assert factors(course) == planned[:full] + planned[full + start :]
        assert set(planned[full : full + start]) <= {1.0}


def test_plateau_starts_a_decay_of_a_third():
    settings = TrainingSettings(iterations=30, schedule="linear", early_stopping=EarlyStopping(check_every=5))
    course = LearningRateCourse(settings, 30)
    assert factors(course) == [1.0] * 20 + [1 - step / 10 for step in range(10)]
    course.start_decay(5)
    assert course.iterations == 15 and factors(course) == [1.0] * 5 + [1 - step / 10 for step in range(10)]
    course.start_decay(12)
    assert course.iterations == 15, "a decay that has begun goes on"
