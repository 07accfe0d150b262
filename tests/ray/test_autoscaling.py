"""Runs on a cluster that has no machine for workers until one asks, and gives them back: 0 to N to 0."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spec.run_spec import RunSpec

from ..programs.autoscaled_run import AT_MOST, QUICK
from ..support.autoscaling_head import AutoscalingHead, autoscaling_head
from .test_submit import spec, write_manifest  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]


@contextmanager
def watched(head: AutoscalingHead) -> Iterator[list[int]]:
    """How many worker nodes the cluster says it has, as that changes while the block lasts."""
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            nodes = head.worker_nodes
            if nodes >= 0 and seen[-1:] != [nodes]:
                seen.append(nodes)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def carried_out(head: AutoscalingHead, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.ray.autoscaled_run", head.gcs_address, str(folder)]
    environment = head.client(HOME=str(head.home))
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_that_asks_for_nothing_gets_the_gpus_that_there_may_be_and_gives_them_back(tmp_path):
    """The machines are given back one after the other, also while the last shard goes on."""
    # Five are allowed by the type, and three in all; the other type's are no use.
    types = {"gpu": (5, {"CPU": 2, "GPU": 1}), "large": (5, {"CPU": 4})}
    with autoscaling_head(types, at_most=AT_MOST) as head, watched(head) as nodes:
        found = carried_out(head, tmp_path)
    assert found["begin"] == {"device": "cuda", "workers": 3, "nodes": 0}
    assert len(found["outcome"]["committed"]) == QUICK + 1 and not found["outcome"]["incidents"]
    assert found["outcome"]["workers"] == 3

    seen = found["seen"]
    assert seen[0]["nodes"] == seen[0]["workers"] == 0, "it waits"
    assert any("waiting for a machine" in text and "may start machines for 3" in text for text in found["notices"])
    assert max(one["nodes"] for one in seen) == max(one["workers"] for one in seen) == 3, "it uses what comes"
    tail = [one for one in seen if one["committed"] == QUICK]
    assert min(one["nodes"] for one in tail) == min(one["workers"] for one in tail) == 1, "only what it needs is left"
    assert found["end"] == 0
    assert nodes[0] == 0 and max(nodes) == 3, "the cluster itself says the same"


def test_submitted_to_a_cluster_without_machines_it_gets_some_and_they_go(tmp_path, spec: RunSpec):  # noqa: F811
    manifest = write_manifest(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "run.yaml").write_text(spec.model_copy(update={"shard_size": 1}).to_yaml())
    command = [sys.executable, "-m", "persres.jobs.cli", "submit", manifest, "--spec", str(tmp_path / "run.yaml")]
    command += ["--catalog", str(tmp_path / "catalog"), "--device", "cpu", "--workers", "2"]
    with autoscaling_head({"small": (3, {"CPU": 1})}) as head, watched(head) as nodes:
        command += ["--address", head.address]
        done = subprocess.run(command, env=head.client(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        while head.worker_nodes:
            threading.Event().wait(0.5)
    assert nodes[0] == 0 and max(nodes) == 2, "two workers, two machines"
    assert sorted(read_committed(CatalogStore(str(tmp_path / "catalog")))) == ["a", "b", "c", "d"]
