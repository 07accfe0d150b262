"""Screenshots for docs/operations: Ray's dashboard during a run, and the run's report.

    .venv/bin/python -m tests.programs.take_screenshots docs/images

Runs drawn concepts on a cluster of one head and one node on the loopback interface, with an S3 server and without a
token, which a headless browser could not enter. Needs Chromium.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import s3fs
from PIL import Image

from persres.core.errors import StoreError
from persres.jobs.cluster.job_server import JobServer
from persres.jobs.cluster.submit_job import ClusterRun, submit_to_cluster
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.log import read_run_log
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld.demo_catalog import write_demo

from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.processes import wait_until
from ..support.s3_server import BUCKET, s3_server

TIMEOUT_S = 600.0
RENDER_S = 12.0  # a page loads its contents from Ray after it was opened


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
            wait_until(lambda: has_started(catalog, run.run_id), timeout_s=TIMEOUT_S)
            job = driver_of(cluster, run)
            shoot(port, f"{cluster.address}/#/jobs/{job}", out / "ray-dashboard-job.png", 1280, 1150)
            shoot(port, f"{cluster.address}/#/actors", out / "ray-dashboard-actors.png", 1500, 640)
            wait_until(lambda: catalog.exists(RunPaths(run.run_id).summary), timeout_s=TIMEOUT_S)
            report = folder / "report.html"
            report.write_bytes(catalog.read(RunPaths(run.run_id).report))
            shoot(port, report.as_uri(), out / "report.png", 1100, 900)
            info = JobServer(cluster.address).job(run.job)
            print(f"run {run.run_id}: {info.status.value if info else 'unknown'}")


def has_started(catalog: CatalogStore, run_id: str) -> bool:
    """Whether a shard has been started, by the log in the catalog."""
    try:
        return any(event.event == "shard_started" for event in read_run_log(catalog, run_id))
    except StoreError:
        return False  # there is no log yet


def driver_of(cluster: LoopbackCluster, run: ClusterRun) -> str:
    """The driver's id in Ray's dashboard."""
    jobs = json.loads(cluster.http("/api/jobs/")[1])
    return next(job["job_id"] for job in jobs if job["submission_id"] == run.job)


@contextmanager
def browser() -> Iterator[int]:
    """Run a headless Chromium; yields the port of its DevTools protocol."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("there is no chromium on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        command += ["--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command += ["--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = Path(profile, "DevToolsActivePort")
            wait_until(lambda: port_file.exists() and port_file.read_text())
            yield int(port_file.read_text().split()[0])
        finally:
            process.terminate()
            process.wait(30)


def shoot(port: int, url: str, file: Path, width: int, height: int) -> None:
    """Write a screenshot of a page in 128 colours."""
    png = asyncio.run(_picture(port, url, width, height))
    Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(file, optimize=True)


async def _picture(port: int, url: str, width: int, height: int) -> bytes:
    """A screenshot by Chromium's DevTools protocol: one message for each command, and one response with its id."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = iter(range(1, 100))

            async def send(method: str, **parameters) -> dict:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while (response := await socket.receive_json()).get("id") != number:
                    pass
                return response["result"]

            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            await send("Emulation.setDeviceMetricsOverride", **size)
            await send("Page.navigate", url=url)
            await asyncio.sleep(RENDER_S)
            shot = await send("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


if __name__ == "__main__":
    take_screenshots(Path(sys.argv[1]).resolve())
