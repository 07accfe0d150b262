"""The command `schedule` with a spec and a catalog of its choice. What it writes: tests/jobs/schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

NIGHTLY = ("--cron", "0 3 * * *", "--as")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_schedule_writes_the_spec_and_catalog_that_submit_would_use(command, folder):
    (folder / "run.yaml").write_text("{}")
    code, out, err = command("schedule", "mugs.parquet", *NIGHTLY, "crontab")
    assert code == 0
    assert f"submit {folder}/mugs.parquet --spec {folder}/run.yaml --catalog {folder}/mugs-catalog" in out
    assert "run spec: run.yaml" in err and "catalog: mugs-catalog" in err


def test_schedule_without_a_spec_is_refused(command, folder):
    code, out, err = command("schedule", "mugs.parquet", *NIGHTLY, "systemd")
    assert (code, out) == (2, "") and "a schedule needs a run spec (not found: run.yaml)" in err


def test_schedule_in_a_cluster_uses_the_specs_catalog_or_the_default_settings(command, folder):
    options = (*NIGHTLY, "raycronjob", "--image", "registry.example.com/persres-batch:1")
    code, out, err = command("schedule", "s3://bucket/mugs.parquet", *options, "--spec", "run.yaml")
    assert code == 2 and "run.yaml: cannot be read" in err
    (folder / "run.yaml").write_text("catalog: s3://bucket/faces\n")
    code, out, _ = command("schedule", "s3://bucket/mugs.parquet", *options, "--spec", "run.yaml")
    assert code == 0 and "--catalog s3://bucket/faces" in " ".join(out.split())
    code, _, err = command("schedule", "/data/mugs.parquet", *options, "--spec", "run.yaml", "--catalog", "")
    assert code == 2 and "the catalog's address is empty" in err
