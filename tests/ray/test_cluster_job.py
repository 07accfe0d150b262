"""A run as a job on a real Ray head; test_cluster_service.py goes through all commands."""

from __future__ import annotations

import subprocess

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spec.run_spec import RunSpec

from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.processes import command_line
from ..support.tiny_runs import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster():
    with loopback_cluster(nodes=0) as cluster:
        yield cluster


def submit(
    cluster: LoopbackCluster, manifest: str, catalog: object, spec_file: object, *options: str, **variables: str
):
    command = command_line("submit", manifest, "--spec", spec_file, "--catalog", catalog)
    command += ["--workers", "1", "--device", "cpu", *options]
    environment = cluster.client(**variables)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def test_job_ends_with_the_exit_code_of_its_run(cluster, tmp_path, spec: RunSpec):
    """The cluster is found by RAY_ADDRESS as well as by --address."""
    manifest = write_manifest(tmp_path, ["a", "bad"], broken="bad")
    (tmp_path / "run.yaml").write_text(spec.to_yaml())
    done = submit(cluster, manifest, tmp_path / "catalog", tmp_path / "run.yaml", RAY_ADDRESS=cluster.address)
    assert done.returncode == 3, done
    assert sorted(read_committed(CatalogStore(str(tmp_path / "catalog")))) == ["a"]
    assert "1 done, 1 failed, 0 current" in done.stdout and "submitted run" in done.stdout


def test_run_gets_a_later_id_than_those_in_the_catalog(cluster, tmp_path, spec: RunSpec):
    """The run is found by the id it was submitted with, too."""
    manifest, catalog = write_manifest(tmp_path, ["a"]), tmp_path / "catalog"
    (tmp_path / "run.yaml").write_text(spec.to_yaml())
    store, later = CatalogStore(str(catalog)), "20991231T235959Z-000000"
    store.write(RunPaths(later).failures, b"{}")
    asked = "20261122T190501Z-3fa9c1"
    words = ["--run-id", asked, "--address", cluster.address]
    done = submit(cluster, manifest, catalog, tmp_path / "run.yaml", *words)
    assert done.returncode == 0 and f"run {asked} is now 2100" in done.stdout, done
    run_id = store.run_ids()[-1]
    for name in (asked, run_id):
        command = command_line("status", name, "--address", cluster.address)
        status = subprocess.run(command, capture_output=True, text=True, env=cluster.client(), check=False)
        assert f"run {run_id}: ended" in status.stdout and f"job persres-{asked}" in status.stdout, status
