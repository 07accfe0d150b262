"""A whole run against a store that goes away for a while, for good, or has no room left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore

from ..support.s3_server import S3Server, s3_server
from ..support.tiny_models import write_tiny_pipeline
from .test_submit import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = [f"c{number}" for number in range(8)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
    s3fs.S3FileSystem.clear_instance_cache()


def command(folder: Path, catalog: str, **recovery: Any) -> list[str]:
    settings = {
        "base_model": str(write_tiny_pipeline(folder / "model", "sd2")),
        "shard_size": 1,
        "workers": 1,
        "training": {"iterations": 60, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
        "recovery": recovery,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    where = ["--spec", str(folder / "run.yaml"), "--catalog", catalog]
    return [sys.executable, "-m", "persres.jobs.cli", "submit", write_manifest(folder, NAMES), *where, "--json"]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def test_a_store_that_is_away_for_longer_than_the_lease_costs_time_and_nothing_else(tmp_path, server):
    store = CatalogStore("s3://catalogs/away")
    with running(command(tmp_path, store.uri, lease_seconds=3, store_patience_seconds=200)) as process:
        wait_for(lambda: read_committed(store), process)
        server.faults.rule = lambda request: "reset"
        time.sleep(15)
        server.faults.rule = lambda request: None
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["committed"] == len(NAMES) and sorted(read_committed(store)) == NAMES
    told = json.loads(store.read(store.run_file(summary["run_id"], "failures.json")))
    assert any("cannot be renewed" in incident for incident in told["incidents"]), told
    assert told["ended_by"] is None


def test_a_store_that_does_not_come_back_ends_the_run(tmp_path, server):
    store = CatalogStore("s3://catalogs/gone")
    submit = command(tmp_path, store.uri, lease_seconds=3, store_patience_seconds=5, max_losses=1)
    with running(submit) as process:
        wait_for(lambda: read_committed(store), process)
        server.faults.rule = lambda request: "503"
        out, err = process.communicate(timeout=400)
    assert process.returncode == 1 and "Fix:" in err and "Traceback" not in err, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("failed", 1)
    assert "a-secret" not in err
    server.faults.rule = lambda request: None
    done = len(read_committed(store))
    assert 1 <= done < len(NAMES)
    again = subprocess.run([*submit, "--wait"], capture_output=True, text=True, timeout=400, env=dict(os.environ))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["current"] == done and sorted(read_committed(store)) == NAMES


def test_a_full_disk_ends_the_run_and_making_room_lets_the_next_one_finish(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = CatalogStore(str(disk / "catalog"))
        submit = command(tmp_path, store.uri, grace_seconds=20, lease_seconds=3)
        full = subprocess.run(submit, capture_output=True, text=True, timeout=400)
        assert full.returncode == 1 and "No space left" in full.stderr, full.stderr
        assert "No space left" in json.loads(full.stdout)["error"]
        assert "Fix:" in full.stderr and "Traceback" not in full.stderr
        done = len(read_committed(store))
        assert done < len(NAMES)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        again = subprocess.run([*submit, "--wait"], capture_output=True, text=True, timeout=400)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["current"] == done and sorted(read_committed(store)) == NAMES
    finally:
        subprocess.run(["umount", disk], check=True)
