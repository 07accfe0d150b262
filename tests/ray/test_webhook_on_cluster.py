"""A run as a job of a cluster: the nodes' environment has the webhook's address, and nothing that others can see."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from persres.pipeline.catalog.store import CatalogStore

from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.processes import command_line
from ..support.tiny_runs import write_manifest, write_run_spec
from ..support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run_spec(tmp_path, iterations=1, prices={"device_hour": 1.2})
    write_manifest(tmp_path, ["a"])
    return tmp_path


def submit(folder: Path, cluster: LoopbackCluster, *options: str, **variables: str):
    command = command_line("submit", folder / "manifest.parquet", "--spec", folder / "run.yaml")
    command += ["--catalog", str(folder / "catalog"), "--address", cluster.address]
    command += ["--workers", "1", "--device", "cpu", *options]
    return subprocess.run(command, env=cluster.client(**variables), capture_output=True, text=True, cwd="/")


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_webhook_is_called_by_the_driver_and_its_address_stays_on_the_nodes(folder):
    with (
        webhook_receiver() as receiver,
        webhook_receiver() as own,
        loopback_cluster(0, cpus=(2, 0), PERSRES_WEBHOOK=receiver.url) as cluster,
    ):
        refused = submit(folder, cluster, "--webhook", receiver.url)
        assert refused.returncode == 2 and "cannot be used" in refused.stderr
        done = submit(folder, cluster, "--json", PERSRES_WEBHOOK=own.url)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        (message,) = receiver.messages
        assert (message["run_id"], message["state"], message["exit_code"]) == (summary["run_id"], "ended", 0)
        assert message["counts"]["committed"] == 1 and message["cost"]["currency"] == "USD"
        assert own.requests == [], "the driver has called already"
        status, jobs = cluster.http("/api/jobs/")
        assert status == 200
        log = cluster.http(f"/api/jobs/{summary['job']}/logs")[1]
        seen = jobs + log + refused.stderr.encode() + done.stderr.encode() + everything_in(folder / "catalog")
        assert b"hunter2" not in seen
    lost = submit(folder, cluster, "--json", PERSRES_WEBHOOK="http://127.0.0.1:9/hunter2")
    assert lost.returncode != 0 and json.loads(lost.stdout)["state"] in ("failed", "refused")
    assert "hunter2" not in lost.stderr + lost.stdout and "warning: the webhook at 127.0.0.1" in lost.stderr
    assert CatalogStore(str(folder / "catalog")).run_ids() == [summary["run_id"]]
