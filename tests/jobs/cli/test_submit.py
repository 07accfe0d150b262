"""The command `submit` where it starts no run. With runs: tests/ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a manifest that cannot be used."""
    pq.write_table(pa.table({"concept_id": ["a", "a", "../c"]}), tmp_path / "mugs.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_submit_of_the_demos_manifest_has_nothing_to_do(command, demo_folder, monkeypatch):
    monkeypatch.chdir(demo_folder)
    before = sorted(demo_folder.rglob("*"))
    code, out, err = command("submit", "manifest.parquet")
    assert code == 0 and out.startswith("nothing to do: all 2 concepts are current")
    lines = ["run spec: run.yaml (beside the manifest)", "catalog: manifest-catalog (beside the manifest)"]
    assert err.splitlines() == lines
    assert sorted(demo_folder.rglob("*")) == before, "an idle submit writes nothing"
    result = json.loads(command("submit", "manifest.parquet", "--json")[1])
    assert (result["state"], result["spec"], result["catalog"]) == ("idle", "run.yaml", "manifest-catalog")


def test_submit_with_given_spec_and_catalog_prints_no_choices(command, demo_folder):
    where = ("--spec", demo_folder / "run.yaml", "--catalog", demo_folder / "manifest-catalog")
    code, out, err = command("submit", demo_folder / "manifest.parquet", *where)
    assert (code, err) == (0, "") and "nothing to do" in out


def test_submit_log_in_json_has_the_choices_as_events(command, demo_folder):
    _, _, err = command("submit", demo_folder / "manifest.parquet", "--log-format", "json")
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["event"] for event in events] == ["notice", "notice"]
    assert events[1]["text"].startswith(f"catalog: {demo_folder}/manifest-catalog")


def test_submit_refuses_a_manifest_that_cannot_be_trusted(command, folder):
    code, out, err = command("submit", "mugs.parquet")
    assert code == 2 and out == ""
    assert "row 1" in err and "row 2" in err and "Fix:" in err and "Traceback" not in err
    assert "run spec: the default settings (not found: run.yaml)" in err
    assert not (folder / "mugs-catalog").exists()


def test_submit_json_has_the_spec_and_catalog_of_a_refused_run(command, folder):
    (folder / "run.yaml").write_text("catalog: s3://bucket/mugs\n")
    result = json.loads(command("submit", "mugs.parquet", "--json", "--no-follow")[1])
    assert (result["spec"], result["catalog"]) == ("run.yaml", "s3://bucket/mugs")
    (folder / "run.yaml").write_text("catalog: s3://key:hunter2@bucket/mugs\n")
    code, out, err = command("submit", "mugs.parquet", "--json")
    result = json.loads(out)
    assert code == 2 and (result["state"], result["spec"], result["catalog"]) == ("refused", None, None)
    assert "hunter2" not in out + err


@pytest.mark.parametrize("manifest", ["s3://key:hunter2@bucket/mugs.parquet", "s3://bucket/mugs.parquet?token=hunter2"])
def test_submit_derives_no_catalog_from_an_address_with_credentials(command, folder, manifest):
    code, out, err = command("submit", manifest, "--json")
    assert code == 2 and "--catalog" in err and "hunter2" not in out + err


def test_submit_refuses_an_unusable_spec_beside_the_manifest(command, folder):
    (folder / "run.yaml").mkdir()
    code, _, err = command("submit", "mugs.parquet")
    assert code == 2 and "run.yaml: cannot be read" in err
    (folder / "run.yaml").rmdir()
    (folder / "run.yaml").write_text('catalog: ""\n')
    code, _, err = command("submit", "mugs.parquet")
    assert code == 2 and "catalog: ''" in err


@pytest.mark.parametrize(
    ("manifest", "spec"), [("m.parquet", "{}"), ("s3://bucket/m.parquet", "catalog: out"), ("/m.parquet", "catalog: .")]
)
def test_submit_to_a_cluster_refuses_relative_paths(command, folder, manifest, spec):
    (folder / "run.yaml").write_text(spec)
    options = ("--spec", "run.yaml", "--address", "http://127.0.0.1:1")
    code, _, err = command("submit", manifest, *options)
    assert code == 2 and "relative path" in err


def test_submit_refuses_what_only_a_cluster_has(command, folder):
    code, _, err = command("submit", "mugs.parquet", "--no-follow")
    assert code == 2 and "--no-follow is for a run on a cluster" in err
    code, _, err = command("submit", "mugs.parquet", "--run-id", "tonight")
    assert code == 2 and "is not a run id" in err
