"""A head node that is lost in the middle of a run, with the driver and all that Ray knew: only the catalog is left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from persres.jobs.driver.worker_pool import SHARDS_IN_HAND
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore

from ..support.catalog_digest import concept_digests
from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.tiny_models import write_tiny_pipeline
from .test_submit import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NAMES = [f"c{number}" for number in range(10)]  # more than what is done and in flight when the head goes
WITHIN_S = 400


def write_work(folder: Path) -> list[str]:
    """A manifest, a spec and a model; returns the words of a `submit` of some seconds a shard, on one worker."""
    settings = {
        "base_model": str(write_tiny_pipeline(folder / "model", "sd2")),
        "shard_size": 1,
        "training": {"iterations": 60, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
        "recovery": {"lease_seconds": 5},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    manifest, spec = write_manifest(folder, NAMES), str(folder / "run.yaml")
    return ["submit", manifest, "--spec", spec, "--workers", "1", "--device", "cpu"]


@contextmanager
def command(cluster: LoopbackCluster, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours, typed where the cluster's token is."""
    line, pipe = [sys.executable, "-m", "persres.jobs.cli", *words], subprocess.PIPE
    process = subprocess.Popen(line, env=cluster.client(), stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def outcome(cluster: LoopbackCluster, *words: str) -> tuple[int, str, str]:
    with command(cluster, *words) as process:
        out, err = process.communicate(timeout=WITHIN_S)
        return process.returncode, out, err


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def state_of(cluster: LoopbackCluster, run_id: str, catalog: str) -> dict[str, Any]:
    """What `status` says of a run from the catalog alone."""
    code, out, err = outcome(cluster, "status", run_id, "--catalog", catalog, "--json")
    assert code == 0, err
    return json.loads(out)


def residuals_written(store: CatalogStore) -> list[str]:
    """The concepts of all residuals in the catalog's files, debris and repetitions included."""
    tables = [pq.read_table(BytesIO(store.read(path)), columns=["concept_id"]) for path in store.list("residuals/")]
    return [name for table in tables for name in table["concept_id"].to_pylist()]


def test_the_same_command_goes_on_where_a_lost_head_left_off(tmp_path):
    catalog, store = str(tmp_path / "catalog"), CatalogStore(str(tmp_path / "catalog"))
    work = [*write_work(tmp_path), "--catalog"]
    with loopback_cluster(nodes=1, cpus=(0, 1)) as cluster:
        submit = [*work, catalog, "--address", cluster.address]
        with command(cluster, *submit) as follower:
            wait_for(lambda: any(path.endswith("/plan.json") for path in store.list("runs/")))
            holder, (left_alone,) = lease_holder(store), cluster.nodes
            assert holder is not None
            assert state_of(cluster, holder.run_id, catalog)["state"] == "under way"
            wait_for(lambda: len(read_committed(store)) >= 2)
            cluster.kill_head()
            assert follower.poll() is None
            wait_for(lambda: state_of(cluster, holder.run_id, catalog)["state"] == "died")
            cluster.start_head()
            cluster.add_node()
            out, err = follower.communicate(timeout=WITHIN_S)
            assert follower.returncode == 1 and "Traceback" not in err
            assert "does not answer" in out and "does not know job" in err and "submit again" in err

        # The worker on the node that was left alone may have finished what it had in hand.
        before = read_committed(store)
        assert 2 <= len(before) < len(NAMES)
        code, out, err = outcome(cluster, *submit)
        assert code == 0, out + err

        newest = json.loads(outcome(cluster, "status", catalog, "--json")[1])["latest"]
        assert newest["run_id"] > holder.run_id and newest["state"] == "ended"
        again = set(json.loads(store.read(store.run_file(newest["run_id"], "plan.json")))["train"])
        assert again and not again & before.keys(), "what was committed is not done again"
        assert state_of(cluster, holder.run_id, catalog)["state"] == "died", "it stays what it is"

        wait_for(lambda: left_alone.poll() is not None)

        quiet = CatalogStore(str(tmp_path / "quiet"))
        code, _, err = outcome(cluster, *work, quiet.uri)
        assert code == 0, err
    assert lease_holder(store) is None
    assert concept_digests(store) == concept_digests(quiet)
    assert len(residuals_written(store)) - len(NAMES) <= SHARDS_IN_HAND, "at most what was in flight is done twice"
