"""The command that fetches models, as its own process would run it, against a real S3 server."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from persres.jobs.cli.app import main
from persres.jobs.observe.model_progress import fetch_models, fetch_planned
from persres.pipeline.planning.run_models import resolve_base_model
from persres.pipeline.spec.run_spec import RunSpec

from ...pipeline.models.test_cache import sums_of
from ...support.model_samples import asked_by_this_process, objects_fetched, scorer_folder, upload
from ...support.s3_server import S3Server, s3_server
from ...support.tiny_models import write_tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_pipeline(tmp_path_factory.mktemp("model") / "base", "sd1")


@pytest.fixture
def s3(tmp_path, monkeypatch):
    with s3_server() as server, asked_by_this_process(server, monkeypatch, tmp_path / "cache"):
        yield server


def spec_file(tmp_path: Path, **settings: object) -> str:
    (path := tmp_path / "run.yaml").write_text(RunSpec(**settings).to_yaml())
    return str(path)


def test_fetch_says_what_it_has_and_where(s3: S3Server, tmp_path, model, capsys):
    uri, scorer = upload(s3, model), upload(s3, scorer_folder(tmp_path / "scorer"), "scorer")
    spec = spec_file(tmp_path, base_model=uri, scorer=scorer)

    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert [(one["role"], one["name"]) for one in told["models"]] == [("base_model", uri), ("scorer", scorer)]
    assert all(Path(one["path"]).is_dir() and one["revision"].startswith("sha256:") for one in told["models"])

    before = objects_fetched(s3)
    with pytest.raises(SystemExit):
        main(["fetch", "--spec", spec])
    shown = capsys.readouterr().out
    assert told["models"][0]["revision"] in shown and told["models"][0]["path"] in shown
    assert objects_fetched(s3) == before


def test_fetch_prunes_what_the_spec_does_not_name(s3, tmp_path, model, capsys):
    uri = upload(s3, model)
    with pytest.raises(SystemExit):
        main(["fetch", "--spec", spec_file(tmp_path, base_model=uri), "--json"])
    (fetched,) = json.loads(capsys.readouterr().out)["models"]

    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec_file(tmp_path), "--prune"])
    assert ended.value.code == 0 and not Path(fetched["path"]).exists()
    assert "removed 1 folders" in capsys.readouterr().out


def test_a_model_that_is_not_there_is_the_users_fault(s3, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--spec", spec_file(tmp_path, base_model="s3://catalogs/nothing")])
    assert ended.value.code == 2
    assert "there is no s3://catalogs/nothing/model_index.json" in capsys.readouterr().err


def test_what_a_run_was_planned_with_is_fetched_with_a_bar(s3, tmp_path, model):
    (model / "SHA256SUMS").write_text(sums_of(model))
    spec = RunSpec(base_model=upload(s3, model), scorer=None)
    planned = resolve_base_model(spec, weights=False)
    assert not planned.has_weights

    terminal = Console(file=(shown := io.StringIO()), force_terminal=True, width=120)
    fetch_planned(spec, planned, None, terminal)

    assert "fetching" in shown.getvalue()
    (found,) = fetch_models(spec, Console(file=io.StringIO()))
    assert found.model.revision == planned.revision and found.model.has_weights
    assert max(objects_fetched(s3).values()) == 1
