"""The command `fetch`, against a real S3 server."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from persres.jobs.cli.app import main
from persres.jobs.observe.model_progress import fetch_models, fetch_planned_models
from persres.pipeline.planning.run_models import resolve_base_model
from persres.pipeline.spec.run_spec import RunSpec

from ...support.model_downloads import checksum_list, client_environment, object_downloads, upload
from ...support.s3_server import S3Server, s3_server
from ...support.tiny_models import write_tiny_pipeline, write_tiny_scorer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model") / "base", "sd1")


@pytest.fixture
def s3(tmp_path, monkeypatch):
    with s3_server() as server, client_environment(server, monkeypatch, tmp_path / "cache"):
        yield server


def spec_file(tmp_path: Path, **settings: object) -> str:
    (path := tmp_path / "run.yaml").write_text(RunSpec(**settings).to_yaml())
    return str(path)


def test_fetch_prints_each_model_with_its_revision_and_path(s3: S3Server, tmp_path, model, capsys):
    uri, scorer = upload(s3, model), upload(s3, write_tiny_scorer(tmp_path / "scorer"), "scorer")
    spec = spec_file(tmp_path, base_model=uri, scorer=scorer)

    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [(one["role"], one["name"]) for one in result["models"]] == [("base_model", uri), ("scorer", scorer)]
    assert all(Path(one["path"]).is_dir() and one["revision"].startswith("sha256:") for one in result["models"])

    before = object_downloads(s3)
    with pytest.raises(SystemExit):
        main(["fetch", "--spec", spec])
    shown = capsys.readouterr().out
    assert result["models"][0]["revision"] in shown and result["models"][0]["path"] in shown
    assert object_downloads(s3) == before


def test_fetch_prunes_other_models(s3, tmp_path, model, capsys):
    uri = upload(s3, model)
    with pytest.raises(SystemExit):
        main(["fetch", "--spec", spec_file(tmp_path, base_model=uri), "--json"])
    (fetched,) = json.loads(capsys.readouterr().out)["models"]

    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec_file(tmp_path), "--prune"])
    assert ended.value.code == 0 and not Path(fetched["path"]).exists()
    assert "removed 1 folder, " in capsys.readouterr().out


def test_fetch_of_a_missing_model_is_invalid_input(s3, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec_file(tmp_path, base_model="s3://catalogs/nothing")])
    assert ended.value.code == 2
    assert "there is no s3://catalogs/nothing/model_index.json" in capsys.readouterr().err


def test_fetch_planned_models_shows_a_bar(s3, tmp_path, model):
    (model / "SHA256SUMS").write_text(checksum_list(model))
    spec = RunSpec(base_model=upload(s3, model), scorer=None)
    planned = resolve_base_model(spec, weights=False)
    assert not planned.has_weights

    terminal = Console(file=(shown := io.StringIO()), force_terminal=True, width=120)
    fetch_planned_models(spec, planned, None, terminal)

    assert "fetching" in shown.getvalue()
    (found,) = fetch_models(spec, Console(file=io.StringIO()))
    assert found.model.revision == planned.revision and found.model.has_weights
    assert max(object_downloads(s3).values()) == 1
