"""The commands that need no Ray, as a person calls them: what they print, and what they exit with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from persres.jobs.cli.app import main
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spec.run_spec import RunSpec

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


def test_init_writes_a_spec_that_loads_to_the_defaults_and_replaces_nothing(command, tmp_path):
    code, out, _ = command("init", tmp_path / "run.yaml")
    assert code == 0 and "validate" in out
    assert RunSpec.load(tmp_path / "run.yaml") == RunSpec()
    code, _, err = command("init", tmp_path / "run.yaml")
    assert code == 2 and "--force" in err
    assert command("init", tmp_path / "run.yaml", "--force")[0] == 0


def test_validate_names_everything_at_once(command, tmp_path, spec):
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
    assert code == 2 and len(json.loads(out)["problems"]) == len(lines) - 1


def test_validate_is_content_with_a_good_manifest(command, tmp_path, spec):
    code, out, _ = command("validate", write_manifest(tmp_path), "--spec", spec)
    assert code == 0 and out.endswith("3 concepts, no problems\n")


def test_plan_counts_and_shows_the_shards(command, tmp_path, spec):
    manifest = write_manifest(tmp_path, reference_images=[["a.png"], ["b.png"], ["gone.png"]])
    code, out, _ = command("plan", manifest, "--spec", spec, "--catalog", tmp_path / "catalog")
    assert code == 0
    assert "3 rows: 2 to train and render, 0 to render only, 0 current, 1 failed" in out
    assert "failed: c (load)" in out and "1 shard:" in out
    assert not (tmp_path / "catalog").exists(), "planning writes nothing"
    arguments = ("submit", manifest, "--spec", spec, "--catalog", tmp_path / "catalog", "--dry-run", "--json")
    plan = json.loads(command(*arguments)[1])
    assert plan["train"] == ["a", "b"] and plan["shards"][0]["concepts"] == ["a", "b"]


def test_submit_refuses_a_manifest_that_cannot_be_trusted(command, tmp_path, spec):
    manifest = write_manifest(tmp_path, concept_id=["a", "a", "../c"])
    code, out, err = command("submit", manifest, "--spec", spec, "--catalog", tmp_path / "catalog")
    assert code == 2 and out == ""
    assert "row 1" in err and "row 2" in err and "Fix:" in err and "Traceback" not in err
    assert not (tmp_path / "catalog").exists()


def test_a_misspelt_setting_is_named_with_the_right_one(command, tmp_path):
    (tmp_path / "run.yaml").write_text("training:\n  iteration: 3\n")
    manifest = write_manifest(tmp_path)
    code, _, err = command("plan", manifest, "--spec", tmp_path / "run.yaml", "--catalog", tmp_path / "catalog")
    assert code == 2 and "iterations" in err


def test_a_relative_path_means_nothing_to_a_cluster(command, tmp_path, spec, monkeypatch):
    arguments = ("submit", "m.parquet", "--spec", spec, "--catalog", "s3://b/c", "--address", "http://127.0.0.1:1")
    code, _, err = command(*arguments)
    assert code == 2 and "relative path" in err


def test_status_of_an_empty_catalog(command, tmp_path):
    code, out, _ = command("status", tmp_path)
    assert code == 0 and "0 concepts committed, 0 runs" in out and "held by nobody" in out
    assert json.loads(command("status", tmp_path, "--json")[1])["concepts"] == 0


def test_report_of_no_catalog_is_invalid_input(command, tmp_path):
    code, _, err = command("report", tmp_path / "nothing", "--out", tmp_path / "report.html")
    assert code == 2 and "there is no catalog" in err and not (tmp_path / "report.html").exists()


def test_an_unforeseen_error_is_one_line_and_a_hint(command, tmp_path, monkeypatch):
    def broken(store):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("persres.pipeline.run.status.catalog_status", broken)
    code, _, err = command("status", tmp_path)
    assert code == 1
    assert err.splitlines()[0] == "persres-batch: ZeroDivisionError: division by zero" and "--debug" in err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "status", str(tmp_path)])


def test_an_unknown_option_is_invalid_input(command):
    code, _, err = command("status", "x", "--jsno")
    assert code == 2 and "--jsno" in err


def test_the_store_of_a_catalog_is_what_status_reads(command, tmp_path):
    CatalogStore(str(tmp_path)).write("commits/20261122T190501Z-3fa9c1_train-1_001.json", b"{}")
    code, _, err = command("status", tmp_path)
    assert code == 1 and "damaged" in err and "Fix:" in err


def test_export_names_the_concepts_it_does_not_find(command, tmp_path):
    code, _, error = command("export", tmp_path / "catalog", "mug-1", "mug-2")
    assert code == 2
    assert "mug-1, mug-2" in error
