"""Several `submit`s of one catalog as processes of their own: who runs, who is refused, who takes over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.status import catalog_status

from ..support.tiny_models import write_tiny_pipeline
from .test_submit import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = [f"c{number}" for number in range(6)]


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a run of some seconds a shard, on one worker."""
    settings = {
        "base_model": str(write_tiny_pipeline(tmp_path / "model", "sd2")),
        "shard_size": 1,
        "workers": 1,
        "training": {"iterations": 60, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
        "recovery": {"lease_seconds": 5, "grace_seconds": 60},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    manifest = write_manifest(tmp_path, NAMES)
    where = ["--spec", str(tmp_path / "run.yaml"), "--catalog", str(tmp_path / "catalog")]
    command = [sys.executable, "-m", "persres.jobs.cli", "submit", manifest, *where, "--json"]
    return lambda *options: [*command, *options]


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog"))


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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
        time.sleep(0.1)


def residuals_written(store: CatalogStore) -> list[str]:
    """The concepts of all residuals in the catalog's files, debris and repetitions included."""
    tables = [pq.read_table(BytesIO(store.read(path)), columns=["concept_id"]) for path in store.list("residuals/")]
    return sorted(name for table in tables for name in table["concept_id"].to_pylist())


def test_of_two_at_once_one_runs_and_one_is_refused(submit, store):
    with running(submit()) as one, running(submit()) as other:
        ended = {process.wait(400): process for process in (one, other)}
        assert sorted(ended) == [0, 4], [process.communicate() for process in (one, other)]
        refused = ended[4].communicate()[1]
        assert "is held by run" in refused and "--wait" in refused
    assert sorted(read_committed(store)) == residuals_written(store) == NAMES, "nothing is done twice"


def test_the_second_takes_over_when_the_first_is_killed(submit, store):
    with running(submit()) as first:
        wait_for(lambda: len(read_committed(store)) >= 1, first)
        with running(submit("--wait")) as second:
            time.sleep(8)  # it has read the manifest and found the catalog held
            first.kill()
            first.wait()
            killed_with = len(read_committed(store))
            out, err = second.communicate(timeout=400)
            assert second.returncode == 0, err
    assert "waiting for run" in err
    summary = json.loads(out)
    assert summary["committed"] + summary["current"] == len(NAMES) and summary["current"] >= killed_with >= 1
    assert sorted(read_committed(store)) == NAMES and lease_holder(store) is None
    assert len(residuals_written(store)) - len(NAMES) <= 3, "at most what was in flight is done twice"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_is_in_flight_be_committed(submit, store, number, code):
    def heed() -> None:  # a test run in the background ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipe = subprocess.PIPE
    process = subprocess.Popen(submit(), stdout=pipe, stderr=pipe, text=True, preexec_fn=heed, env=os.environ)
    try:
        wait_for(lambda: len(read_committed(store)) >= 1, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("stopped", code)
    assert "asked to stop" in err and "concepts done and committed" in err and "Traceback" not in err
    done = len(read_committed(store))
    assert f"with {done} of {len(NAMES)} concepts" in err and 1 < done < len(NAMES)
    assert lease_holder(store) is None
    run_id = catalog_status(store).latest.run_id  # pyright: ignore[reportOptionalMemberAccess]
    told = json.loads(store.read(store.run_file(run_id, "failures.json")))
    assert "stopped run" in told["ended_by"] and told["failures"] == []
