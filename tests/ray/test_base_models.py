"""Whole runs on base models that are downloaded from an S3 server, and from a server of the Hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from persres.core.sampling.settings import SamplingSettings
from persres.core.training.settings import TrainingSettings
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.results import read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.models.resolve import resolve_model
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.spec.run_spec import RunSpec

from ..support.hub_server import hub_server
from ..support.model_downloads import object_downloads, upload
from ..support.processes import command_line
from ..support.s3_server import s3_server
from ..support.tiny_models import write_tiny_pipeline, write_tiny_scorer
from ..support.tiny_runs import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NAMES = ["cup", "jar", "mug", "pot"]


class Machine:
    """A machine with empty caches, and the commands that run on it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._caches = {"PERSRES_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hugging-face")}
        self._environment = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **environment}

    def run(self, command: str, *arguments: str, spec: RunSpec, **variables: str) -> dict:
        (file := self._folder / "run.yaml").write_text(spec.to_yaml())
        line = command_line(command, *arguments, "--spec", file, "--json")
        variables = os.environ | self._environment | self._caches | variables
        ended = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)


def revisions_in(catalog: str) -> set[tuple[str, str]]:
    """The base model's name and revision in every row."""
    store = CatalogStore(catalog)
    rows = [read_residual_row(store, concept) for concept in read_committed(store).values()]
    return {(row.base_model, row.base_model_revision) for row in rows}


def test_runs_download_each_model_once_and_record_its_revision(tmp_path):
    base, scorer = write_tiny_pipeline(tmp_path / "base", "sd2"), write_tiny_scorer(tmp_path / "scorer")
    manifest, catalog = write_manifest(tmp_path, NAMES), str(tmp_path / "catalog")
    settings = {
        "scorer": "team/judge",
        "shard_size": 1,
        "training": TrainingSettings(iterations=2, batch_size=1, pack_size=1),
        "sampling": SamplingSettings(steps=2, batch_size=2),
        "references": ReferenceSettings(min_side=8),
    }
    submit = ("submit", manifest, "--catalog", catalog)
    with s3_server() as s3, hub_server() as hub:
        uri = upload(s3, base)
        judge, commit = hub.push("team/judge", scorer), hub.push("team/base", base)
        machine = Machine(tmp_path, {**s3.environment, "HF_ENDPOINT": hub.endpoint})
        on_s3 = RunSpec(base_model=uri, **settings)

        done = machine.run(*submit, "--workers", "2", spec=on_s3)

        assert done["committed"] == len(NAMES)
        digest = resolve_model(str(base)).revision
        assert revisions_in(catalog) == {(uri, digest)}
        assert set(object_downloads(s3).values()) == {1}
        assert set(hub.files_sent().values()) == {1}

        # The same files are the same model wherever they lie; a Hub repository is known by its commit.
        in_folder, on_hub = RunSpec(base_model=str(base), **settings), RunSpec(base_model="team/base", **settings)
        assert machine.run(*submit, spec=in_folder)["current"] == len(NAMES)
        before = hub.files_sent()
        plan = machine.run("plan", manifest, "--catalog", catalog, spec=on_hub)
        assert not [name for name in (hub.files_sent() - before) if name.endswith(".safetensors")]
        assert plan["train"] in (len(NAMES), NAMES)
        assert machine.run(*submit, spec=on_hub)["committed"] == len(NAMES)
        assert revisions_in(catalog) == {("team/base", commit)}

    # Both servers are gone: offline runs use the caches.
    again = on_hub.model_copy(update={"seed": 1, "scorer_revision": judge})
    assert machine.run(*submit, spec=again, HF_HUB_OFFLINE="1")["committed"] == len(NAMES)
    offline = on_s3.model_copy(update={"seed": 2})
    assert machine.run(*submit, spec=offline, HF_HUB_OFFLINE="1")["committed"] == len(NAMES)
    assert revisions_in(catalog) == {(uri, digest)}
