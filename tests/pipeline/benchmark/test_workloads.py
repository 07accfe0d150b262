"""The workloads of the rows, and their FLOPs."""

from __future__ import annotations

import pytest

from persres.core.latents import encode_references
from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.core.training.training_pack import TrainingRequest
from persres.pipeline.benchmark.flop_count import count_flops
from persres.pipeline.benchmark.workloads import (
    TEMPLATES,
    OurTraining,
    RenderingJob,
    TrainingJob,
    rendering_workloads,
    training_workloads,
)

TRAINING = TrainingSettings(iterations=6, batch_size=2)
SAMPLING = SamplingSettings(steps=4, batch_size=4)


def test_training_rows_have_the_promised_names(sd1):
    names = [one.name for one in training_workloads(sd1, TRAINING, [2, 4])]
    assert names == ["peer", "peer_cached", "alone", "packed_2", "packed_4"]


def test_rendering_rows_have_the_promised_names(sd1):
    with rendering_workloads(sd1, SAMPLING, "sks") as rows:
        assert [one.name for one in rows] == ["peer_render", "render_base", "render", "render_lag"]


def test_training_rows_differ_in_flops_by_the_encoders(whole_run):
    flops = whole_run.flops()
    assert flops["alone"] == pytest.approx(flops["packed_2"]), "packing does the same work for every concept"
    assert flops["peer"] > flops["peer_cached"], "the VAE is in the peer's loop"
    assert 0.5 * flops["peer_cached"] < flops["alone"] < 1.5 * flops["peer_cached"]


def test_flops_are_those_of_all_iterations(sdxl, small_plan, whole_run):
    job = TrainingJob(sdxl, small_plan.training)
    latents = encode_references(sdxl, job.references)
    one = count_flops(lambda: OurTraining(job, 1).train([TrainingRequest("a", "mug", 0, latents)], job.shortened(1)))
    encoding = count_flops(lambda: encode_references(sdxl, job.references))
    assert 4 * one < whole_run.flops()["alone"] - encoding < small_plan.training.iterations * one


def test_rendering_rows_differ_in_flops_by_the_residual(whole_run):
    flops = whole_run.flops()
    peer, bare, residual, lag = (flops[name] for name in ("peer_render", "render_base", "render", "render_lag"))
    # Not exactly the same: the prompt's keys and values may be computed once instead of in every step.
    assert all(0.8 * bare < one < 1.25 * bare for one in (peer, residual, lag))
    assert residual <= lag * (1 + 1e-9)


def test_rendering_batches_mix_concepts(sd1, tmp_path):
    job = RenderingJob(sd1, SamplingSettings(batch_size=8), tmp_path, "sks")
    requests = job.requests("lag")
    assert len(requests) == 16 and len({(one.concept_id, one.template) for one in requests}) == 16
    assert {one.concept_id for one in requests[:8]} == set(job.concepts)
    assert len({one.seed for one in requests}) == 16
    assert all(sum(one.concept_id == concept for one in requests) == len(TEMPLATES) for concept in job.concepts)


def test_job_has_as_many_references_as_a_batch_holds(sd1):
    job = training_workloads(sd1, TRAINING.model_copy(update={"batch_size": 3}), [])[0].job  # type: ignore[attr-defined]
    assert len(job.references) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 8, 32])
def test_rendering_requests_fill_two_batches(sd1, tmp_path, batch_size):
    job = RenderingJob(sd1, SamplingSettings(batch_size=batch_size), tmp_path, "sks")
    assert 2 * batch_size <= len(job.requests("lag")) < 2 * batch_size + len(TEMPLATES)
