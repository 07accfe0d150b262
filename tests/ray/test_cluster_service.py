"""Runs on a cluster as a service: real nodes, a token, and commands typed in another Python environment.

The tests share one cluster, in order: commands without the token; a run that is submitted, looked at, stopped,
submitted again and finished; then the catalog alone, without the cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from persres.jobs.cluster.code import code_digest, copy_floors
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.summary import RunSummary

from ..support.catalog_digest import catalog_digest
from ..support.loopback_cluster import LoopbackCluster, http_get, loopback_cluster
from ..support.processes import command_line, wait_until
from ..support.tiny_runs import write_manifest, write_run_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = [f"c{number}" for number in range(20)]  # so many that the run has not ended when all has been looked at
WITHIN_S = 600


@dataclass
class Laptop:
    """Where users type commands: a Python environment with its own copy of this code, and a folder with the manifest
    and the catalog, which the cluster's nodes see too."""

    python: Path
    package: Path
    folder: Path
    cluster: LoopbackCluster

    @property
    def store(self) -> CatalogStore:
        return CatalogStore(str(self.folder / "catalog"))

    def command(self, *arguments: object, address: str | None = "") -> list[str]:
        """A command line with the cluster's address by default, or with none if `address` is None."""
        options = [] if address is None else ["--address", address or self.cluster.address]
        return [str(self.python), "-m", "persres.jobs.cli", *map(str, arguments), *options]

    def start(self, *arguments: object, token: str | None = "", address: str | None = "") -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command, environment = self.command(*arguments, address=address), self.cluster.client(token=token)
        return subprocess.Popen(command, cwd="/", env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: object, token: str | None = "", address: str | None = "") -> tuple[int, str, str]:
        process = self.start(*arguments, token=token, address=address)
        try:
            out, err = process.communicate(timeout=WITHIN_S)
        finally:
            process.kill()
        return process.returncode, out, err

    def submission(self, catalog: str = "catalog") -> list[object]:
        folder = self.folder
        spec, manifest = folder / "run.yaml", folder / "manifest.parquet"
        return ["submit", manifest, "--spec", spec, "--catalog", folder / catalog, "--workers", 2, "--device", "cpu"]


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("service")
    python, package = other_environment(tmp_path_factory.mktemp("laptop"))
    write_run_spec(folder, iterations=90, recovery={"grace_seconds": 90})
    write_manifest(folder, NAMES)
    with loopback_cluster(nodes=2, cpus=(0, 1)) as cluster:
        yield Laptop(python, package, folder, cluster)


def other_environment(folder: Path) -> tuple[Path, Path]:
    """A virtual environment with this code copied into it, and the dependencies of the one that runs this test.

    What is copied differs in one comment, so that it has a digest of its own. Returns its Python and the package.
    """
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = next(path for path in map(Path, sys.path) if (path / "ray").is_dir())
    (packages / "dependencies.pth").write_text(f"{ours}\n")  # whose own .pth files, and so this checkout, stay unread
    package = copy_floors(packages)
    with (package / "jobs" / "__init__.py").open("a") as file:
        file.write("\n# A version of its own.\n")
    return folder / "bin" / "python", package


@pytest.mark.parametrize("token", [None, "f" * 32], ids=["without", "wrong"])
def test_commands_without_the_token_are_refused(laptop, token):
    run_id = "20261122T190501Z-3fa9c1"
    commands = [laptop.submission(), ["list"], ["status", run_id], ["logs", run_id], ["logs", run_id, "--follow"]]
    commands += [["stop", run_id], ["stop", run_id, "--catalog", laptop.folder / "catalog"]]
    for words in commands:
        code, out, err = laptop.run(*words, token=token)
        assert (code, out) == (2, ""), (words, out, err)
        assert "did not accept this user's token" in err and "RAY_AUTH_TOKEN" in err and "Traceback" not in err
    assert json.loads(laptop.cluster.http("/api/jobs/")[1]) == []
    assert laptop.store.list("") == []


@pytest.fixture(scope="module")
def stopped(laptop) -> str:
    """The id of a run that has been submitted, looked at and stopped."""
    code, out, err = laptop.run(*laptop.submission(), "--no-follow", "--json")
    assert code == 0, err
    submitted = json.loads(out)
    run_id = submitted["run_id"]
    assert submitted["job"] == f"persres-{run_id}" and submitted["exit_code"] is None
    for command in ("status", "logs", "stop"):
        assert f"persres-batch {command} {run_id}" in err, "it says what to do next"

    wait_until(lambda: read_committed(laptop.store), timeout_s=WITHIN_S)
    code, out, _ = laptop.run("status", run_id)
    assert code == 0 and f"run {run_id}: running" in out and f"job persres-{run_id}" in out
    assert f"catalog: {laptop.folder / 'catalog'}" in out, "the id is enough: the job names the catalog"
    code, out, _ = laptop.run("list", "--json")
    assert [(run["run_id"], run["state"]) for run in json.loads(out)] == [(run_id, "running")]
    code, out, _ = laptop.run("logs", run_id)
    assert code == 0 and out

    check_http(laptop, run_id)

    code, out, err = laptop.run("stop", run_id)
    assert code == 0 and f"run {run_id}: stopped" in out, (out, err)
    return run_id


def check_http(laptop: Laptop, run_id: str) -> None:
    """Job, metadata and metrics are visible with the token only."""
    http = laptop.cluster.http
    for path in ("/api/jobs/", f"/api/jobs/persres-{run_id}", "/api/prometheus/sd"):
        assert http(path, token=None)[0] == 401, path
        assert http(path, token="f" * 32)[0] == 403, path
    (job,) = json.loads(http("/api/jobs/")[1])
    assert job["submission_id"] == f"persres-{run_id}"
    metadata = job["metadata"]
    assert metadata["run_id"] == run_id and metadata["code"] == code_digest(laptop.package)
    assert metadata["catalog"] == str(laptop.folder / "catalog") and "@" in metadata["owner"]
    assert metadata["manifest"] == str(laptop.folder / "manifest.parquet")
    assert str(laptop.cluster.token) not in json.dumps(job), "nothing secret"

    def ours() -> list[str]:
        targets = [target for group in json.loads(http("/api/prometheus/sd")[1]) for target in group["targets"]]
        pages = [http_get(f"http://{target}/metrics")[1].decode() for target in targets]
        return [line for page in pages for line in page.splitlines() if line.startswith("ray_persres_concepts{")]

    wait_until(ours, timeout_s=WITHIN_S)
    assert all(f'run="{run_id}"' in line for line in ours())


def test_stopped_run_commits_what_is_in_flight(laptop, stopped):
    done = read_committed(laptop.store).concepts_of_run(stopped)
    assert 1 < len(done) < len(NAMES), "more than was done when it was stopped, and not all"
    assert lease_holder(laptop.store) is None, "the lease was given back, not left to expire"
    failures = json.loads(laptop.store.read(RunPaths(stopped).failures))
    assert failures["ended_by"].startswith(f"stopped run {stopped} with {len(done)} of {len(NAMES)} concepts")
    (job,) = json.loads(laptop.cluster.http("/api/jobs/")[1])
    assert job["status"] == "STOPPED"
    code, out, _ = laptop.run("stop", stopped)
    assert code == 0 and "is over already: stopped" in out


@pytest.fixture(scope="module")
def finished(laptop, stopped) -> RunSummary:
    """The same run submitted again, and followed to its end."""
    code, out, err = laptop.run(*laptop.submission())
    assert code == 0, (out, err)
    newest = laptop.store.run_ids()[-1]
    assert newest > stopped and f"submitted run {newest} to" in out
    return RunSummary.from_json(laptop.store.read(RunPaths(newest).summary))


def test_resubmitted_run_gives_the_catalog_of_an_uninterrupted_one(laptop, stopped, finished):
    done_before = len(read_committed(laptop.store).concepts_of_run(stopped))
    assert (finished.committed, finished.current) == (len(NAMES) - done_before, done_before)
    assert finished.versions["code"] == code_digest(laptop.package) != code_digest(), "it ran what was shipped"
    assert finished.versions["persres-batch"]
    plan = json.loads(laptop.store.read(RunPaths(finished.run_id).plan))
    assert plan["job"] == f"persres-{finished.run_id}"

    here = command_line(*laptop.submission("quiet"))
    subprocess.run(here, check=True, capture_output=True, timeout=WITHIN_S, env=os.environ)
    assert catalog_digest(laptop.store) == catalog_digest(CatalogStore(str(laptop.folder / "quiet")))


def test_run_with_nothing_to_do_is_a_job_of_the_cluster(laptop, finished):
    run_id = "20991231T235959Z-abc123"
    code, out, _ = laptop.run(*laptop.submission(), "--run-id", run_id)
    assert code == 0 and "nothing to do" in out
    code, out, _ = laptop.run(*laptop.submission(), "--run-id", run_id)
    assert code == 0 and f"the cluster has job persres-{run_id} already" in out, "there is no second job"
    assert len(json.loads(laptop.cluster.http("/api/jobs/")[1])) == 3
    code, out, _ = laptop.run("status", run_id)
    assert code == 0 and f"run {run_id}: ended" in out


def test_unknown_run_is_refused_with_the_known_ones(laptop, finished):
    for options in (["--catalog", laptop.folder / "catalog"], []):
        for command in ("status", "logs", "stop"):
            wrong = finished.run_id[:-1] + "x"
            code, out, err = laptop.run(command, wrong, *options, address=None if options else "")
            assert (code, out) == (2, "") and f"no run {wrong} is known here" in err and finished.run_id in err


def test_commands_without_a_cluster_read_the_catalog(laptop, stopped, finished):
    laptop.cluster.stop()
    catalog = ["--catalog", laptop.folder / "catalog"]
    for address in (None, ""):
        code, out, err = laptop.run("list", *catalog, "--json", address=address)
        states = {run["run_id"]: run["state"] for run in json.loads(out)}
        assert code == 0 and states == {stopped: "stopped", finished.run_id: "ended"}
        assert ("asking the catalog alone" in err) == (address == "")
    code, out, _ = laptop.run("status", finished.run_id, *catalog, address=None)
    assert code == 0 and f"run {finished.run_id}: ended" in out and f"{finished.committed} done" in out
    code, out, _ = laptop.run("logs", stopped, *catalog, address=None)
    assert code == 0 and "stop" in out
    code, _, err = laptop.run("status", finished.run_id)
    assert code == 2 and "no Ray cluster answers" in err and "Traceback" not in err
