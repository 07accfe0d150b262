"""Submitting a run to a cluster: what is sent, what is refused. On a real cluster: tests/ray/test_cluster_job.py."""

from __future__ import annotations

import shlex

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cluster.code import code_digest
from persres.jobs.cluster.run_jobs import JobMetadata
from persres.jobs.cluster.submit_job import ClusterRun, submit_to_cluster
from persres.pipeline.run.run_id import RUN_ID
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.storage.uri import has_credentials


def test_job_entrypoint_is_the_same_submit():
    run = ClusterRun("s3://b/a manifest.parquet", "s3://b/catalog", workers=8, device="cuda")
    arguments = shlex.split(run.entrypoint())
    assert arguments[:5] == ["python", "-m", "persres.jobs.cli", "submit", "s3://b/a manifest.parquet"]
    assert arguments[arguments.index("--address") + 1] == "auto"
    assert arguments[arguments.index("--workers") + 1] == "8" and arguments[arguments.index("--device") + 1] == "cuda"
    plain = ClusterRun("a", "b").entrypoint()
    assert not any(option in plain for option in ("--workers", "--wait", "--prune"))
    assert ClusterRun("a", "b", wait=True, prune=True).entrypoint().endswith("--wait --prune")


def test_run_id_exists_before_the_job_is_submitted():
    run = ClusterRun("s3://b/m.parquet", "s3://b/c")
    assert RUN_ID.fullmatch(run.run_id) and run.job == f"persres-{run.run_id}"
    assert ClusterRun("s3://b/m.parquet", "s3://b/c").run_id != run.run_id
    arguments = shlex.split(run.entrypoint())
    assert arguments[arguments.index("--run-id") + 1] == run.run_id
    assert RUN_ID.fullmatch(ClusterRun("a", "b").run_id)


def test_job_metadata_names_the_owner_and_no_secret():
    run = ClusterRun("https://host/m.parquet?download=1", "s3://b/c")
    metadata = run.metadata().to_ray()
    assert metadata["manifest"] == "https://host/m.parquet" and metadata["catalog"] == "s3://b/c"
    assert metadata["run_id"] == run.run_id and metadata["code"] == code_digest() and "@" in metadata["owner"]
    assert all(isinstance(value, str) for value in metadata.values()), "Ray takes nothing else"
    assert JobMetadata.from_ray(metadata) == run.metadata()
    assert JobMetadata.from_ray({"run_id": "x"}) is None and JobMetadata.from_ray(None) is None


@pytest.mark.parametrize(("manifest", "catalog"), [("m.parquet", "s3://b/c"), ("s3://b/m.parquet", "catalog")])
def test_submit_refuses_relative_paths(manifest, catalog):
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
def test_submit_refuses_uris_with_secrets_and_does_not_repeat_them(uri):
    for run in (ClusterRun(uri, "s3://b/c"), ClusterRun("s3://b/m.parquet", uri)):
        with pytest.raises(InvalidInput, match="the dashboard of the cluster would show it") as refused:
            submit_to_cluster("http://127.0.0.1:1", run, RunSpec())
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["s3://bucket/key", "abfs://container@account.dfs.core.windows.net/m", "https://h/m?download=1", "/a/b@c"]
)
def test_has_credentials_is_false_for_plain_uris(uri):
    assert not has_credentials(uri)


def test_submit_to_an_address_without_a_cluster_is_invalid_input():
    with pytest.raises(InvalidInput, match="no Ray cluster answers at http"):
        submit_to_cluster("http://127.0.0.1:1", ClusterRun("/m.parquet", "/catalog"), RunSpec())
