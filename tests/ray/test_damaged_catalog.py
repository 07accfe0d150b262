"""Whole runs on a catalog with damaged data files: damage costs the work of its own concepts, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.results import read_renderings, read_residual
from persres.pipeline.maintenance.verify import verify
from persres.pipeline.run.summary import RunSummary

from ..support.damage import KINDS, damage_file, replace_renderings, replace_residual, swap_files
from ..support.tiny_runs import write_manifest

pytestmark = pytest.mark.timeout(900)

OTHER_PROMPTS = ["a {concept} in the snow"]


def with_nan(residual):
    name = next(iter(residual.a))
    return dataclasses.replace(residual, a={**residual.a, name: torch.full_like(residual.a[name], float("nan"))})


def with_other_width(residual):
    name = next(iter(residual.a))
    return dataclasses.replace(residual, a={**residual.a, name: residual.a[name][:-1]})


def with_scalar(residual):
    return dataclasses.replace(residual, a={**residual.a, next(iter(residual.a)): torch.zeros(())})


def as_garbage(residual):
    return b"not safetensors"


CHANGES = [with_nan, with_other_width, with_scalar, as_garbage]


def test_damaged_residuals_are_trained_again_where_they_are_needed(submit, store, spec, tmp_path):
    """Prompts are edited after the damage: shards of good and bad residuals are rendered, and all are done."""
    submit.spec = spec.model_copy(update={"shard_size": 1})
    names = [*KINDS, "swapped-a", "swapped-b", *(change.__name__.replace("_", "-") for change in CHANGES), "good"]
    submit(write_manifest(tmp_path, names))
    whole = {name: read_residual(store, one) for name, one in read_committed(store).items()}
    assert sorted(whole) == sorted(names)

    held = read_committed(store)
    for kind in KINDS:
        damage_file(store, held[kind].residual_file, kind)
    swap_files(store, held["swapped-a"].residual_file, held["swapped-b"].residual_file)
    for change in CHANGES:
        replace_residual(store, change.__name__.replace("_", "-"), change)
    assert len({one.concept_id for one in verify(store).findings}) == len(names) - 1

    submit.spec = spec.model_copy(update={"shard_size": 5})
    finished = submit(write_manifest(tmp_path, names, prompts=OTHER_PROMPTS))
    assert not finished.summary.failed and finished.summary.committed == len(names)
    assert {name: read_residual(store, one) for name, one in read_committed(store).items()} == whole
    assert read_committed(store)["good"].residual_file == held["good"].residual_file, "a good one is not trained again"
    assert verify(store).clean
    incidents = json.loads(store.read(RunPaths(finished.summary.run_id).failures))["incidents"]
    # The plan has found the file that is gone, so that its concept was to be trained anyway.
    assert {text.split("concept ")[1].split()[0] for text in incidents if "is trained again: " in text} == {
        name for name in names if name not in ("good", "gone")
    }


def test_damaged_renderings_are_made_again_by_the_next_run(submit, store, spec, tmp_path):
    """Nothing has changed for their concepts. A run that does something else finds them, and ends."""
    submit.spec = spec.model_copy(update={"shard_size": 1})
    names = [*KINDS, "swapped-a", "swapped-b", "no-image", "good"]
    submit(write_manifest(tmp_path, names))
    before = read_committed(store)
    whole = {name: read_renderings(store, one) for name, one in before.items()}
    for kind in KINDS:
        damage_file(store, str(before[kind].rendering_file), kind)
    swap_files(store, str(before["swapped-a"].rendering_file), str(before["swapped-b"].rendering_file))
    replace_renderings(store, "no-image", b"\x89PNG and then nothing")
    damaged = sorted({*names} - {"good", "gone"})

    finished = submit(write_manifest(tmp_path, [*names, "new"]))
    assert [failure.concept_id for failure in finished.summary.failed] == damaged
    for failure in finished.summary.failed:
        assert "its committed renderings are damaged" in failure.reason and "submit again" in failure.fix
        assert str(before[failure.concept_id].rendering_file) in failure.reason or failure.concept_id == "no-image"
    assert (finished.summary.committed, finished.summary.current) == (2, 1), "the new one, and the one that was gone"
    assert "warning: " in submit.shown.getvalue() and "its 1 concept must be done again" in submit.shown.getvalue()
    assert RunSummary.from_json(store.read(RunPaths(finished.summary.run_id).summary)) == finished.summary
    failures = json.loads(store.read(RunPaths(finished.summary.run_id).failures))["failures"]
    assert [failure["concept_id"] for failure in failures] == damaged
    page = Path(str(finished.report)).read_text()
    assert page.count("its committed renderings are damaged") == len(damaged)
    assert f"{len(damaged)} concepts failed" in page
    assert sorted(read_committed(store)) == sorted([*names, "new"]), "damage makes no catalog smaller"

    again = submit(str(tmp_path / "manifest.parquet"))
    assert not again.summary.failed and again.summary.committed == len(damaged)
    after = read_committed(store)
    assert {name: read_renderings(store, after[name]) for name in names} == whole
    assert {name: after[name].residual_file for name in damaged if name != "no-image"} == {
        name: before[name].residual_file for name in damaged if name != "no-image"
    }, "nothing is trained again"
    assert verify(store).clean
    assert submit(str(tmp_path / "manifest.parquet")).report is None, "there is nothing left to do"


def test_damaged_renderings_of_a_concept_that_is_not_listed_are_shown_only(submit, store, tmp_path):
    submit(write_manifest(tmp_path, ["a", "b"]))
    path = str(read_committed(store)["a"].rendering_file)
    damage_file(store, path, "truncated")
    finished = submit(write_manifest(tmp_path, ["c"]))
    assert not finished.summary.failed and path in Path(str(finished.report)).read_text()
    assert read_committed(store)["a"].rendering_file == path
