"""The plan of a benchmark, and its model."""

from __future__ import annotations

import os

import pytest
import torch

from persres.core.errors import InvalidInput
from persres.pipeline.benchmark.bench_plan import BenchPlan, load_bench_model, make_bench_plan
from persres.pipeline.spec.run_spec import RunSpec


@pytest.mark.parametrize(("max_pack", "sizes"), [(1, []), (2, [2]), (7, [2, 4]), (8, [2, 4, 8]), (16, [2, 4, 8, 16])])
def test_pack_sizes_double_up_to_the_maximum(small_plan: BenchPlan, max_pack, sizes):
    plan = make_bench_plan(device="cpu", max_pack=max_pack)
    assert plan.pack_sizes == sizes


def test_settings_are_those_of_the_spec_with_v_frozen():
    spec = RunSpec.model_validate({"training": {"train_identifier": True, "iterations": 7}, "sampling": {"steps": 9}})
    plan = make_bench_plan(spec, device="cpu")
    assert (plan.training.iterations, plan.sampling.steps, plan.training.train_identifier) == (7, 9, False)


def test_threads_default_to_the_usable_cores():
    assert make_bench_plan(device="cpu").threads == len(os.sched_getaffinity(0))
    assert make_bench_plan(device="cpu", threads=3).threads == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(InvalidInput, match="--device cpu"):
        make_bench_plan(device="cuda")
    assert make_bench_plan(device="auto").device == "cpu"


def test_unknown_model_is_refused():
    with pytest.raises(InvalidInput, match="spriteworld"):
        load_bench_model("spritewrld", "cpu")
