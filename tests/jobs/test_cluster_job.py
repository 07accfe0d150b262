"""Handing a run to a cluster: what is sent, and what is refused. On a real cluster: tests/ray/test_cluster_job.py."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cluster_job import ClusterRun, copy_floors, holds_credentials, submit_to_cluster
from persres.pipeline.run_spec import RunSpec


def test_the_job_is_the_same_submit():
    run = ClusterRun("s3://b/a manifest.parquet", "s3://b/catalog", workers=8, device="cuda")
    words = shlex.split(run.entrypoint())
    assert words[:5] == ["python", "-m", "persres.jobs.cli", "submit", "s3://b/a manifest.parquet"]
    assert words[words.index("--address") + 1] == "auto"
    assert words[words.index("--workers") + 1] == "8" and words[words.index("--device") + 1] == "cuda"
    plain = ClusterRun("a", "b").entrypoint()
    assert not any(option in plain for option in ("--workers", "--wait", "--prune"))
    assert ClusterRun("a", "b", wait=True, prune=True).entrypoint().endswith("--wait --prune")


def test_our_own_code_travels_as_an_importable_folder(tmp_path):
    package = copy_floors(tmp_path)
    assert not list(package.rglob("__pycache__"))
    code = "import persres.jobs.cli as cli; print(cli.__file__)"
    # -S: without site-packages' editable install of this very package, so that only the copy can be found
    search = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, *{[path for path in sys.path if 'site-packages' in path]!r}]"
    )
    done = subprocess.run([sys.executable, "-S", "-c", f"{search}\n{code}"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(package / "jobs" / "cli.py"), done.stderr


@pytest.mark.parametrize(("manifest", "catalog"), [("m.parquet", "s3://b/c"), ("s3://b/m.parquet", "catalog")])
def test_relative_paths_are_refused(manifest, catalog):
    with pytest.raises(InvalidInput, match="relative path"):
        submit_to_cluster("http://127.0.0.1:1", ClusterRun(manifest, catalog), RunSpec())


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hunter2@bucket/m.parquet",
        "https://ghp_hunter2@host/m.parquet",
        "https://host/m.parquet?X-Amz-Signature=hunter2&a=b",
        "https://acct.blob.core.windows.net/c/m.parquet?sv=1&sig=hunter2",
    ],
)
def test_uris_that_hold_secrets_are_refused_and_not_repeated(uri):
    for run in (ClusterRun(uri, "s3://b/c"), ClusterRun("s3://b/m.parquet", uri)):
        with pytest.raises(InvalidInput, match="the dashboard of the cluster would show it") as refused:
            submit_to_cluster("http://127.0.0.1:1", run, RunSpec())
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/key", "abfs://container@account.dfs.core.windows.net/m", "https://h/m?download=1", "/a/b@c"]
)
def test_uris_without_secrets_are_not_taken_for_such(uri):
    assert not holds_credentials(uri)


def test_an_address_without_a_cluster_is_invalid_input():
    with pytest.raises(InvalidInput, match="no Ray cluster answers at http"):
        submit_to_cluster("http://127.0.0.1:1", ClusterRun("/m.parquet", "/catalog"), RunSpec())
