"""The command `demo` up to its run. The run itself: `make demo`."""

from __future__ import annotations

import json

import pytest

from persres.jobs.submit import FinishedRun
from persres.pipeline.run.summary import RunSummary


@pytest.fixture
def submitted(monkeypatch) -> list[tuple[str, str]]:
    """The (manifest, catalog) of every run that `demo` starts, which fails for all concepts."""
    runs: list[tuple[str, str]] = []

    def submit(manifest: str, spec: object, catalog: str, **options: object) -> FinishedRun:
        runs.append((manifest, catalog))
        return FinishedRun(RunSummary("run", rows=2, committed=0, failed=(), current=0, removed=0), "report.html")

    monkeypatch.setattr("persres.jobs.submit.submit_local", submit)
    return runs


def test_demo_writes_what_submit_expects_and_prints_the_command(command, tmp_path, submitted):
    code, out, err = command("demo", "--out", tmp_path / "a demo", "--concepts", 2)
    folder = tmp_path / "a demo"
    assert submitted == [(f"{folder}/manifest.parquet", f"{folder}/manifest-catalog")]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.parquet", "references", "run.yaml"]
    assert f"cd '{folder}' && persres-batch submit manifest.parquet\n" in err
    assert code == 0 and "report: report.html" in out


def test_demo_leaves_the_catalog_of_an_older_version_alone(command, tmp_path, submitted):
    old = tmp_path / "catalog" / "commits" / "old.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    assert command("demo", "--out", tmp_path, "--concepts", 2)[0] == 0
    assert json.loads(old.read_text()) == {} and submitted == [
        (f"{tmp_path}/manifest.parquet", f"{tmp_path}/manifest-catalog")
    ]


def test_demo_refuses_a_file_as_its_folder(command, tmp_path, submitted):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = command("demo", "--out", out)
        assert code == 2 and str(out) in err and "Fix: " in err
    code, _, err = command("demo", "--out", tmp_path / "a::b")
    assert code == 2 and "'::'" in err and not (tmp_path / "a::b").exists()
    assert (tmp_path / "file").read_text() == "x" and not submitted
