"""A run that is a cluster's job: the nodes' environment names the webhook, and nothing that others can see does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from persres.pipeline.catalog.store import CatalogStore

from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.tiny_models import write_tiny_pipeline
from ..support.web_receiver import web_receiver
from .test_submit import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = {
        "base_model": str(write_tiny_pipeline(tmp_path / "model", "sd2")),
        "training": {"iterations": 1, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 1, "batch_size": 1},
        "references": {"min_side": 8},
        "prices": {"device_hour": 1.2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    write_manifest(tmp_path, ["a"])
    return tmp_path


def submit(folder: Path, cluster: LoopbackCluster, *options: str, **variables: str):
    words = ["submit", folder / "manifest.parquet", "--spec", folder / "run.yaml", "--catalog", folder / "catalog"]
    words += ["--address", cluster.address, "--workers", "1", "--device", "cpu", *options]
    command = [sys.executable, "-m", "persres.jobs.cli", *map(str, words)]
    return subprocess.run(command, env=cluster.client(**variables), capture_output=True, text=True, cwd="/")


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_driver_tells_and_the_address_stays_with_the_nodes(folder):
    with (
        web_receiver() as receiver,
        web_receiver() as own,
        loopback_cluster(0, cpus=(2, 0), PERSRES_WEBHOOK=receiver.url) as cluster,
    ):
        refused = submit(folder, cluster, "--webhook", receiver.url)
        assert refused.returncode == 2 and "does not travel" in refused.stderr
        done = submit(folder, cluster, "--json", PERSRES_WEBHOOK=own.url)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        (message,) = receiver.messages
        assert (message["run_id"], message["state"], message["exit_code"]) == (told["run_id"], "ended", 0)
        assert message["counts"]["committed"] == 1 and message["cost"]["currency"] == "USD"
        assert own.requests == [], "the driver has told already"
        status, jobs = cluster.http("/api/jobs/")
        assert status == 200
        log = cluster.http(f"/api/jobs/{told['job']}/logs")[1]
        seen = jobs + log + refused.stderr.encode() + done.stderr.encode() + everything_in(folder / "catalog")
        assert b"hunter2" not in seen
    lost = submit(folder, cluster, "--json", PERSRES_WEBHOOK="http://127.0.0.1:9/hunter2")
    assert lost.returncode != 0 and json.loads(lost.stdout)["state"] in ("failed", "refused")
    assert "hunter2" not in lost.stderr + lost.stdout and "warning: the webhook at 127.0.0.1" in lost.stderr
    assert CatalogStore(str(folder / "catalog")).run_ids() == [told["run_id"]]
