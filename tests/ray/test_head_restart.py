"""A head node that is lost during a run, with the driver and Ray's state: only the catalog is left."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persres.jobs.driver.worker_pool import MAX_SHARDS_IN_FLIGHT
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore

from ..support.catalog_digest import concept_digests, residuals_written
from ..support.loopback_cluster import LoopbackCluster, loopback_cluster
from ..support.processes import command_line, running, wait_until
from ..support.tiny_runs import write_manifest, write_run_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NAMES = [f"c{number}" for number in range(10)]  # more than what is done and in flight when the head goes
WITHIN_S = 400


def submit_arguments(folder: Path) -> list[str]:
    """Write the inputs of a run of a second a shard on one worker; returns the arguments of its `submit`."""
    spec = write_run_spec(folder, recovery={"lease_seconds": 5})
    return ["submit", write_manifest(folder, NAMES), "--spec", spec, "--workers", "1", "--device", "cpu"]


def outcome(cluster: LoopbackCluster, *arguments: str) -> tuple[int, str, str]:
    """Run a command with the cluster's token; returns its exit code and what it prints."""
    with running(command_line(*arguments), env=cluster.client()) as process:
        out, err = process.communicate(timeout=WITHIN_S)
        return process.returncode, out, err


def state_of(cluster: LoopbackCluster, run_id: str, catalog: str) -> dict[str, Any]:
    """What `status` reads from the catalog alone."""
    code, out, err = outcome(cluster, "status", run_id, "--catalog", catalog, "--json")
    assert code == 0, err
    return json.loads(out)


def test_submit_after_a_lost_head_does_only_what_is_left(tmp_path):
    catalog, store = str(tmp_path / "catalog"), CatalogStore(str(tmp_path / "catalog"))
    work = [*submit_arguments(tmp_path), "--catalog"]
    wait = partial(wait_until, timeout_s=WITHIN_S)
    with loopback_cluster(nodes=1, cpus=(0, 1)) as cluster:
        submit = [*work, catalog, "--address", cluster.address]
        with running(command_line(*submit), env=cluster.client()) as follower:
            wait(lambda: any(path.endswith("/plan.json") for path in store.list("runs/")))
            holder, (left_alone,) = lease_holder(store), cluster.nodes
            assert holder is not None
            assert state_of(cluster, holder.run_id, catalog)["state"] == "running"
            wait(lambda: len(read_committed(store)) >= 2)
            cluster.kill_head()
            assert follower.poll() is None
            wait(lambda: state_of(cluster, holder.run_id, catalog)["state"] == "lost")
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
        again = set(json.loads(store.read(RunPaths(newest["run_id"]).plan))["train"])
        assert again and not again & before.keys(), "what was committed is not done again"
        assert state_of(cluster, holder.run_id, catalog)["state"] == "lost", "it stays what it is"

        wait(lambda: left_alone.poll() is not None)

        quiet = CatalogStore(str(tmp_path / "quiet"))
        code, _, err = outcome(cluster, *work, quiet.uri)
        assert code == 0, err
    assert lease_holder(store) is None
    assert concept_digests(store) == concept_digests(quiet)
    done_twice = len(residuals_written(store)) - len(NAMES)
    assert done_twice <= MAX_SHARDS_IN_FLIGHT, "at most what was in flight"
