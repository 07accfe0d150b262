"""The pictures of docs/operations.md: Ray's dashboard with a run in it, and the run's report, as a browser shows them.

    .venv/bin/python -m tests.ray.take_screenshots docs/images

A real cluster of one head and one node on the loopback interface, and a run of drawn concepts on it. Without a token,
since a browser without a person would not know how to enter one. Needs Chromium and Pillow.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from persres.jobs.cluster_job import ClusterRun, submit_to_cluster
from persres.jobs.job_server import JobServer
from persres.pipeline.catalog_store import CatalogStore
from persres.pipeline.run_spec import RunSpec
from persres.pipeline.spriteworld.demo_catalog import write_demo

from .loopback_cluster import LoopbackCluster, loopback_cluster

WITHIN_S = 600.0


def take_screenshots(out: Path) -> None:
    """Write `ray-dashboard-job.png`, `ray-dashboard-actors.png` and `report.png` to a folder."""
    with tempfile.TemporaryDirectory() as name, loopback_cluster(1, token=None) as cluster:
        folder = Path(name)
        write_demo(folder, concepts=12)
        spec, catalog = RunSpec.load(folder / "run.yaml"), CatalogStore(str(folder / "catalog"))
        run = ClusterRun(str(folder / "manifest.parquet"), catalog.uri, workers=2, device="cpu")
        submit_to_cluster(cluster.address, run, spec, follow=False)
        wait_for(lambda: len(commits(catalog)) >= 1)
        job = driver_of(cluster, run)
        shoot(f"{cluster.address}/#/jobs/{job}", out / "ray-dashboard-job.png", 1280, 900)
        shoot(f"{cluster.address}/#/actors", out / "ray-dashboard-actors.png", 1280, 640)
        report = Path(catalog.uri, catalog.run_file(run.run_id, "report.html"))
        wait_for(lambda: catalog.exists(catalog.run_file(run.run_id, "summary.json")))
        shoot(report.as_uri(), out / "report.png", 1100, 900)
        info = JobServer(cluster.address).job(run.job)
        print(f"run {run.run_id}: {info.status.value if info else 'unknown'}")


def commits(catalog: CatalogStore) -> list[str]:
    """What the run has committed so far."""
    return [path for path in catalog.list(catalog.COMMITS) if path.endswith(".json")]


def driver_of(cluster: LoopbackCluster, run: ClusterRun) -> str:
    """The number by which Ray's dashboard knows the run's driver."""
    jobs = json.loads(cluster.http("/api/jobs/")[1])
    return next(job["job_id"] for job in jobs if job["submission_id"] == run.job)


def wait_for(condition) -> None:
    """Until it holds; TimeoutError if it never does."""
    until = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the run has not come so far")
        time.sleep(0.5)


def shoot(url: str, file: Path, width: int, height: int) -> None:
    """A page as Chromium shows it some seconds after it was opened, in few colours."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("there is no chromium on this machine")
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        command += ["--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command += [f"--window-size={width},{height}", "--timeout=20000", f"--screenshot={file}", url]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    take_screenshots(Path(sys.argv[1]).resolve())
