"""The pictures of docs/operations.md: Ray's dashboard with a run in it, and the run's report, as a browser shows them.

    .venv/bin/python -m tests.ray.take_screenshots docs/images

A real cluster of one head and one node on the loopback interface, a server of the S3 protocol, and a run of drawn
concepts. Without a token, since a browser without a person would not know how to enter one. Needs Chromium.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import s3fs
from PIL import Image

from persres.core.errors import StoreError
from persres.jobs.cluster.job_server import JobServer
from persres.jobs.cluster.submit_job import ClusterRun, submit_to_cluster
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.log import read_run_log
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld.demo_catalog import write_demo

from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.s3_server import BUCKET, s3_server

WITHIN_S = 600.0
SHOWN_AFTER_S = 12.0  # a page asks Ray for its contents after it was opened


def take_screenshots(out: Path) -> None:
    """Write `ray-dashboard-job.png`, `ray-dashboard-actors.png` and `report.png` to a folder."""
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        folder = Path(name)
        write_demo(folder, concepts=12)
        os.environ.update(server.environment)
        bucket = s3fs.S3FileSystem()
        bucket.put(str(folder / "references"), f"{BUCKET}/references", recursive=True)
        bucket.put(str(folder / "manifest.parquet"), f"{BUCKET}/sprites.parquet")
        catalog = CatalogStore(f"s3://{BUCKET}/sprites")
        run = ClusterRun(f"s3://{BUCKET}/sprites.parquet", catalog.uri, workers=2, device="cpu")
        with loopback_cluster(1, token=None, **server.environment) as cluster, browser() as port:
            submit_to_cluster(cluster.address, run, RunSpec.load(folder / "run.yaml"), follow=False)
            wait_for(lambda: has_begun(catalog, run.run_id))
            job = driver_of(cluster, run)
            shoot(port, f"{cluster.address}/#/jobs/{job}", out / "ray-dashboard-job.png", 1280, 1150)
            shoot(port, f"{cluster.address}/#/actors", out / "ray-dashboard-actors.png", 1500, 640)
            wait_for(lambda: catalog.exists(catalog.run_file(run.run_id, "summary.json")))
            report = folder / "report.html"
            report.write_bytes(catalog.read(catalog.run_file(run.run_id, "report.html")))
            shoot(port, report.as_uri(), out / "report.png", 1100, 900)
            info = JobServer(cluster.address).job(run.job)
            print(f"run {run.run_id}: {info.status.value if info else 'unknown'}")


def has_begun(catalog: CatalogStore, run_id: str) -> bool:
    """Whether a worker has a shard, as the log in the catalog has it."""
    try:
        return any(event.event == "shard_started" for event in read_run_log(catalog, run_id))
    except StoreError:
        return False  # there is no log yet


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


@contextmanager
def browser() -> Iterator[int]:
    """A Chromium without a window; yields the port at which it takes orders."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("there is no chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        command += ["--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile, "DevToolsActivePort")
            wait_for(lambda: told.exists() and told.read_text())
            yield int(told.read_text().split()[0])
        finally:
            process.terminate()
            process.wait(30)


def shoot(port: int, url: str, file: Path, width: int, height: int) -> None:
    """Write a page as the browser shows it some seconds after it was opened, in few colours."""
    png = asyncio.run(_picture(port, url, width, height))
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(file, optimize=True)


async def _picture(port: int, url: str, width: int, height: int) -> bytes:
    """By Chromium's DevTools protocol: one message an order, one answer with its number."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = iter(range(1, 100))

            async def order(method: str, **parameters) -> dict:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while (told := await socket.receive_json()).get("id") != number:
                    pass
                return told["result"]

            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            await order("Emulation.setDeviceMetricsOverride", **size)
            await order("Page.navigate", url=url)
            await asyncio.sleep(SHOWN_AFTER_S)
            shot = await order("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


if __name__ == "__main__":
    take_screenshots(Path(sys.argv[1]).resolve())
