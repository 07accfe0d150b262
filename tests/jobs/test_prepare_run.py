"""Preparing a run: every row of the manifest ends up planned or failed, once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from persres.jobs.prepare_run import prepare_run
from persres.pipeline.reference_images import ReferenceSettings
from persres.pipeline.run_spec import RunSpec

from ..core.tiny_models import write_tiny_pipeline

FAULTS = {
    "none": {},
    "missing": {"reference_images": ["gone.png"]},
    "empty": {"reference_images": []},
    "no placeholder": {"prompts": ["a photo"]},
    "too long": {"prompts": ["a photo of a {concept} " + "on sand " * 30]},
    "no class": {"macro_class": ""},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> RunSpec:
    folder = write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd1")
    return RunSpec(base_model=str(folder), references=ReferenceSettings(min_side=8))


@settings(max_examples=25)
@given(faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=6))
def test_every_row_is_planned_or_failed_once(faults, spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "a.png")
    good = {"macro_class": "mug", "reference_images": ["a.png"], "prompts": ["a {concept}"]}
    rows = [{"concept_id": f"c{number}", **good, **FAULTS[fault]} for number, fault in enumerate(faults)]
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    counted = []
    prepared = prepare_run(str(folder / "manifest.jsonl"), spec, on_digest=lambda done, total: counted.append(done))
    planned = {concept.concept_id for concept in prepared.planned}
    failed = [failure.concept_id for failure in prepared.failures]
    assert planned == {f"c{number}" for number, fault in enumerate(faults) if fault == "none"}
    assert sorted([*planned, *failed]) == sorted(row["concept_id"] for row in rows)
    assert all(failure.stage == "load" and failure.fix for failure in prepared.failures)
    assert counted == list(range(1, len(counted) + 1))
    assert prepared.plan({}).rows == len(rows)
