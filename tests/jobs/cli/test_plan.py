"""The commands `validate` and `plan`, which train nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ...support.tiny_models import write_tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model"), "sd1")


@pytest.fixture
def spec(tmp_path, model) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"base_model": str(model), "shard_size": 2, "references": {"min_side": 8}}))
    return path


def write_manifest(folder: Path, **columns) -> Path:
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((16, 16, 3), ord(name), np.uint8)).save(folder / f"{name}.png")
    plain = {
        "concept_id": ["a", "b", "c"],
        "macro_class": ["mug"] * 3,
        "reference_images": [["a.png"], ["b.png"], ["c.png"]],
        "prompts": [["a photo of a {concept}"]] * 3,
    }
    table = {name: values for name, values in (plain | columns).items() if values is not None}
    pq.write_table(pa.table(table), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def test_validate_lists_every_problem(command, tmp_path, spec):
    manifest = write_manifest(
        tmp_path, reference_images=[["a.png"], ["gone.png"], []], prompts=[["no concept"], None, None]
    )
    code, out, _ = command("validate", manifest, "--spec", spec)
    assert code == 2
    lines = out.splitlines()
    assert any("row 0, concept a, column prompts" in line and "{concept}" in line for line in lines)
    assert any("row 1, concept b, column reference_images" in line and "gone.png" in line for line in lines)
    assert any("row 2, concept c, column reference_images" in line for line in lines)
    assert all("Fix: " in line for line in lines[:-1])
    code, out, _ = command("validate", manifest, "--spec", spec, "--json")
    report = json.loads(out)
    assert code == 2 and report["spec"] == str(spec)
    assert len(report["problems"]) + len(report["warnings"]) == len(lines) - 1


def test_validate_accepts_a_good_manifest_and_finds_its_spec(command, tmp_path, spec):
    code, out, err = command("validate", write_manifest(tmp_path))
    assert code == 0 and out.endswith("3 concepts, no problems\n")
    assert f"run spec: {spec} (beside the manifest)\n" in err


def test_plan_counts_and_lists_the_shards(command, tmp_path, spec):
    manifest = write_manifest(tmp_path, reference_images=[["a.png"], ["b.png"], ["gone.png"]])
    code, out, _ = command("plan", manifest, "--spec", spec, "--catalog", tmp_path / "catalog")
    assert code == 0
    assert "3 rows: 2 to train and render, 0 to render only, 0 current, 1 failed" in out
    assert "failed: c (load)" in out and "1 shard:" in out
    assert not (tmp_path / "catalog").exists(), "planning writes nothing"
    arguments = ("submit", manifest, "--spec", spec, "--catalog", tmp_path / "catalog", "--dry-run", "--json")
    plan = json.loads(command(*arguments)[1])
    assert plan["train"] == ["a", "b"] and plan["shards"][0]["concepts"] == ["a", "b"]


def test_plan_prints_the_spec_and_catalog_that_it_chose(command, tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path)
    code, out, err = command("plan", "manifest.parquet", "--json")
    plan = json.loads(out)
    assert code == 0 and (plan["spec"], plan["catalog"]) == ("run.yaml", "manifest-catalog")
    lines = ["run spec: run.yaml (beside the manifest)", "catalog: manifest-catalog (beside the manifest)"]
    assert err.splitlines()[:2] == lines
    spec.write_text(f"{spec.read_text()}\ncatalog: elsewhere\n")
    assert json.loads(command("plan", "manifest.parquet", "--json")[1])["catalog"] == "elsewhere"


def test_plan_of_a_current_catalog_has_nothing_to_do(command, demo_folder):
    code, out, _ = command("plan", demo_folder / "manifest.parquet")
    assert code == 0 and "2 current" in out and out.endswith("nothing to do\n")


def test_misspelt_setting_is_named_with_the_right_one(command, tmp_path):
    (tmp_path / "run.yaml").write_text("training:\n  iteration: 3\n")
    code, _, err = command("plan", write_manifest(tmp_path))
    assert code == 2 and "iterations" in err
