"""A run as a job on a real Ray head with its dashboard, as on a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cluster_job import ClusterRun, submit_to_cluster
from persres.pipeline.catalog_store import CatalogStore
from persres.pipeline.run_spec import RunSpec
from persres.pipeline.shard_commit import read_committed

from .test_submit import spec, write_manifest  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAD = """
import sys, ray
ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_port=int(sys.argv[1]), log_to_driver=False,
         object_store_memory=100 << 20)
print("up", flush=True)
sys.stdin.read()
"""


@contextmanager
def ray_head(**environment: str) -> Iterator[str]:
    """A Ray head in a process of its own, with a job server on a free port; the address of that."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job runs the `python` of its node's PATH
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HEAD, str(port)]
    head = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"PATH": path} | environment)
    assert head.stdin and head.stdout
    try:
        assert any(line.strip() == "up" for line in head.stdout), "the head did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        head.stdin.close()
        head.wait(60)


@pytest.fixture
def address():
    with ray_head() as address:
        yield address


def test_a_job_ends_with_the_exit_code_of_its_run(address, tmp_path, spec: RunSpec):  # noqa: F811
    manifest = write_manifest(tmp_path, ["a", "bad"], broken="bad")
    shown: list[str] = []
    run = ClusterRun(manifest, str(tmp_path / "catalog"), workers=1, device="cpu")
    assert submit_to_cluster(address, run, spec, show=shown.append) == 3
    assert sorted(read_committed(CatalogStore(str(tmp_path / "catalog")))) == ["a"]
    assert any("1 done, 1 failed, 0 current" in text for text in shown)


def test_without_the_clusters_token_nothing_is_submitted(tmp_path, spec: RunSpec):  # noqa: F811
    run = ClusterRun("/data/manifest.parquet", str(tmp_path / "catalog"), workers=1, device="cpu")
    head = ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 32)
    with head as address, pytest.raises(InvalidInput, match="did not accept") as refused:
        submit_to_cluster(address, run, spec)
    assert "RAY_AUTH_TOKEN" in str(refused.value) and refused.value.exit_code == 2
