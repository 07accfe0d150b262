"""A whole run against a store that is unreachable for a while or for good, or has no space left."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore

from ..support.processes import command_line, running, wait_until
from ..support.s3_server import S3Server, s3_server
from ..support.tiny_runs import write_manifest, write_run_spec

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


def submit_command(folder: Path, catalog: str, **recovery: Any) -> list[str]:
    """The command line of a run of eight concepts, a second each, on one worker."""
    spec = write_run_spec(folder, workers=1, recovery=recovery)
    return command_line("submit", write_manifest(folder, NAMES), "--spec", spec, "--catalog", catalog, "--json")


def test_outage_longer_than_the_lease_costs_time_only(tmp_path, server):
    store = CatalogStore("s3://catalogs/away")
    with running(submit_command(tmp_path, store.uri, lease_seconds=3, store_patience_seconds=200)) as process:
        wait_until(lambda: read_committed(store), process)
        server.faults.rule = lambda request: "reset"
        time.sleep(15)
        server.faults.rule = lambda request: None
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["committed"] == len(NAMES) and sorted(read_committed(store)) == NAMES
    failures = json.loads(store.read(RunPaths(summary["run_id"]).failures))
    assert any("cannot be renewed" in incident for incident in failures["incidents"]), failures
    assert failures["ended_by"] is None


def test_permanent_outage_ends_the_run(tmp_path, server):
    store = CatalogStore("s3://catalogs/gone")
    submit = submit_command(tmp_path, store.uri, lease_seconds=3, store_patience_seconds=5, max_losses=1)
    with running(submit) as process:
        wait_until(lambda: read_committed(store), process)
        server.faults.rule = lambda request: "503"
        out, err = process.communicate(timeout=400)
    assert process.returncode == 1 and "Fix:" in err and "Traceback" not in err, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("failed", 1)
    assert "a-secret" not in err
    server.faults.rule = lambda request: None
    done = len(read_committed(store))
    assert 1 <= done < len(NAMES)
    again = subprocess.run([*submit, "--wait"], capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["current"] == done and sorted(read_committed(store)) == NAMES


def test_full_disk_ends_the_run_and_the_next_one_finishes_once_there_is_space(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs permission to mount a small disk")
    try:
        store = CatalogStore(str(disk / "catalog"))
        submit = submit_command(tmp_path, store.uri, grace_seconds=20, lease_seconds=3)
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
