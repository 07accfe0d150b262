"""Runs on a cluster as a service: real nodes, a token, and commands typed in another Python environment.

One story, told in order on one cluster: refused without the token; submitted, looked at, stopped, submitted again,
finished; and at last asked of the catalog, when the cluster is gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from persres.jobs.cluster.code import code_digest, copy_floors
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.summary import RunSummary

from ..support.catalog_digest import catalog_digest
from ..support.loopback_cluster import LoopbackCluster, http_get, loopback_cluster
from ..support.tiny_models import write_tiny_pipeline
from .test_submit import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = [
    f"c{number}" for number in range(20)
]  # so many that it is still under way when all that is to be seen of it has been seen
WITHIN_S = 600


@dataclass
class Laptop:
    """Where commands are typed: a Python environment with a copy of this code in it, and a folder for manifest and
    catalog that the cluster's nodes have too."""

    python: Path
    package: Path
    folder: Path
    cluster: LoopbackCluster

    @property
    def store(self) -> CatalogStore:
        return CatalogStore(str(self.folder / "catalog"))

    def command(self, *words: object, address: str | None = "") -> list[str]:
        """A command line with the cluster's address; without one if that is None."""
        options = [] if address is None else ["--address", address or self.cluster.address]
        return [str(self.python), "-m", "persres.jobs.cli", *map(str, words), *options]

    def start(self, *words: object, token: str | None = "", address: str | None = "") -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command, environment = self.command(*words, address=address), self.cluster.client(token=token)
        return subprocess.Popen(command, cwd="/", env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: object, token: str | None = "", address: str | None = "") -> tuple[int, str, str]:
        process = self.start(*words, token=token, address=address)
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
    settings = {
        "base_model": str(write_tiny_pipeline(folder / "model", "sd2")),
        "shard_size": 1,
        "training": {"iterations": 90, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
        "recovery": {"grace_seconds": 90},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
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


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)


@pytest.mark.parametrize("token", [None, "f" * 32], ids=["without", "wrong"])
def test_without_the_token_every_command_is_refused(laptop, token):
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
    """A run that was submitted, looked at and stopped; its id."""
    code, out, err = laptop.run(*laptop.submission(), "--no-follow", "--json")
    assert code == 0, err
    told = json.loads(out)
    run_id = told["run_id"]
    assert told["job"] == f"persres-{run_id}" and told["exit_code"] is None
    for command in ("status", "logs", "stop"):
        assert f"persres-batch {command} {run_id}" in err, "it says how to go on"

    wait_for(lambda: read_committed(laptop.store))
    code, out, _ = laptop.run("status", run_id)
    assert code == 0 and f"run {run_id}: under way" in out and f"job persres-{run_id}" in out
    assert f"catalog: {laptop.folder / 'catalog'}" in out, "the id is enough: the job names the catalog"
    code, out, _ = laptop.run("list", "--json")
    assert [(run["run_id"], run["state"]) for run in json.loads(out)] == [(run_id, "under way")]
    code, out, _ = laptop.run("logs", run_id)
    assert code == 0 and out

    visible_over_http(laptop, run_id)

    code, out, err = laptop.run("stop", run_id)
    assert code == 0 and f"run {run_id}: stopped" in out, (out, err)
    return run_id


def visible_over_http(laptop: Laptop, run_id: str) -> None:
    """The job, what it says of itself, and our metrics, for whoever has the token."""
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

    wait_for(ours)
    assert all(f'run="{run_id}"' in line for line in ours())


def test_a_stopped_run_commits_what_is_in_flight(laptop, stopped):
    done = read_committed(laptop.store).of_run(stopped)
    assert 1 < len(done) < len(NAMES), "more than was done when it was stopped, and not all"
    assert lease_holder(laptop.store) is None, "the lease was given back, not left to expire"
    told = json.loads(laptop.store.read(laptop.store.run_file(stopped, "failures.json")))
    assert told["ended_by"].startswith(f"stopped run {stopped} with {len(done)} of {len(NAMES)} concepts")
    (job,) = json.loads(laptop.cluster.http("/api/jobs/")[1])
    assert job["status"] == "STOPPED"
    code, out, _ = laptop.run("stop", stopped)
    assert code == 0 and "is over already: stopped" in out


@pytest.fixture(scope="module")
def finished(laptop, stopped) -> RunSummary:
    """The same submitted again, and followed to its end."""
    code, out, err = laptop.run(*laptop.submission())
    assert code == 0, (out, err)
    newest = laptop.store.run_ids()[-1]
    assert newest > stopped and f"submitted run {newest} to" in out
    return RunSummary.from_json(laptop.store.read(laptop.store.run_file(newest, "summary.json")))


def test_submitting_again_finishes_it_as_a_quiet_run_would(laptop, stopped, finished):
    done_before = len(read_committed(laptop.store).of_run(stopped))
    assert (finished.committed, finished.current) == (len(NAMES) - done_before, done_before)
    assert finished.versions["code"] == code_digest(laptop.package) != code_digest(), "it ran what was shipped"
    assert finished.versions["persres-batch"]
    plan = json.loads(laptop.store.read(laptop.store.run_file(finished.run_id, "plan.json")))
    assert plan["job"] == f"persres-{finished.run_id}"

    here = [sys.executable, "-m", "persres.jobs.cli", *map(str, laptop.submission("quiet"))]
    subprocess.run(here, check=True, capture_output=True, timeout=WITHIN_S, env=os.environ)
    assert catalog_digest(laptop.store) == catalog_digest(CatalogStore(str(laptop.folder / "quiet")))


def test_a_run_with_nothing_to_do_is_known_to_the_cluster(laptop, finished):
    run_id = "20991231T235959Z-abc123"
    code, out, _ = laptop.run(*laptop.submission(), "--run-id", run_id)
    assert code == 0 and "nothing to do" in out
    code, out, _ = laptop.run(*laptop.submission(), "--run-id", run_id)
    assert code == 0 and f"the cluster has job persres-{run_id} already" in out, "there is no second job"
    assert len(json.loads(laptop.cluster.http("/api/jobs/")[1])) == 3
    code, out, _ = laptop.run("status", run_id)
    assert code == 0 and f"run {run_id}: ended" in out


def test_an_unknown_run_is_named_with_its_neighbours(laptop, finished):
    for places in (["--catalog", laptop.folder / "catalog"], []):
        for command in ("status", "logs", "stop"):
            wrong = finished.run_id[:-1] + "x"
            code, out, err = laptop.run(command, wrong, *places, address=None if places else "")
            assert (code, out) == (2, "") and f"no run {wrong} is known here" in err and finished.run_id in err


def test_when_the_cluster_is_gone_the_catalog_still_knows(laptop, stopped, finished):
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
