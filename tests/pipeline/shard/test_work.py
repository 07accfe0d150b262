"""The state of one attempt at a shard: its progress and its failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.errors import ConceptFailure
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.shard.summary import ShardProgress
from persres.pipeline.shard.work import ShardWork
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import planned, shard_of

SPEC = RunSpec(training=TrainingSettings(iterations=10, batch_size=2), sampling=SamplingSettings(steps=4, batch_size=3))


@given(
    kind=st.sampled_from(["train", "render"]),
    concepts=st.integers(1, 5),
    iterations=st.lists(st.integers(0, 60), max_size=8),
    all_iterations=st.integers(0, 60),
    steps=st.lists(st.integers(0, 40), max_size=8),
)
def test_progress_never_falls_and_ends_at_one(kind, concepts, iterations, all_iterations, steps):
    seen: list[ShardProgress] = []
    work = ShardWork(shard_of(*(planned(f"c{number}") for number in range(concepts)), kind=kind), SPEC, seen.append)
    with work.phase("load"):
        pass
    with work.phase("train"):
        for done in sorted(iterations):
            work.report_iterations(done, all_iterations)
    with work.phase("render"):
        for done in sorted(steps):
            work.report_denoising_steps(done)
    with work.phase("score"), work.phase("commit"):
        pass
    fractions = [one.fraction for one in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert list(dict.fromkeys(one.phase for one in seen)) == ["load", "train", "render", "score", "commit"]
    assert set(work.seconds) == {"load", "train", "render", "score", "commit"}


def test_progress_of_training_is_relative_to_the_actual_iterations():
    seen: list[ShardProgress] = []
    work = ShardWork(shard_of(planned("a"), planned("b")), SPEC, seen.append)
    with work.phase("render"):
        pass
    all_trained = seen[-1].fraction
    work.report_iterations(6, 12)
    assert seen[-1].fraction == pytest.approx(all_trained / 2)


def test_steps_rise_during_retries():
    seen: list[ShardProgress] = []
    work = ShardWork(shard_of(planned("a")), SPEC, seen.append)
    with work.phase("train"):
        for done, of in ((9, 10), (10, 10), (11, 20), (20, 20)):  # a retry
            work.report_iterations(done, of)
    with work.phase("render"):
        for steps in (12, 13, 400):
            work.report_denoising_steps(steps)
    assert [one.steps for one in seen] == [0, 9, 10, 11, 20, 20, 32, 33, 420]
    assert all(0 <= one.fraction <= 1 for one in seen)


def test_first_failure_of_a_concept_is_kept():
    work = ShardWork(shard_of(planned("a")), SPEC, lambda progress: None)
    work.fail(ConceptFailure("a", "train", "loss is NaN"))
    work.fail(ConceptFailure("a", "score", "score is NaN"))
    assert [failure.reason for failure in work.failures.values()] == ["loss is NaN"]
