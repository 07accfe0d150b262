"""Runs on a cluster whose autoscaler starts and removes the worker nodes: from 0 to N and back to 0."""

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

from ..programs.autoscaled_run import MAX_NODES, SHORT_SHARDS
from ..support.autoscaling_head import AutoscalingHead, autoscaling_head
from ..support.processes import command_line
from ..support.tiny_runs import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]


@contextmanager
def watched(head: AutoscalingHead) -> Iterator[list[int]]:
    """The cluster's number of worker nodes over time, while the block lasts."""
    seen: list[int] = []
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.5):
            nodes = head.worker_nodes
            if nodes >= 0 and seen[-1:] != [nodes]:
                seen.append(nodes)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def run_program(head: AutoscalingHead, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.programs.autoscaled_run", head.gcs_address, str(folder)]
    environment = head.client(HOME=str(head.home))
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_run_without_options_scales_to_all_gpus_and_back_to_none(tmp_path):
    """Nodes are removed one by one as they become idle, while the last shard goes on."""
    # The type allows five nodes, the cluster three; nodes of the other type have no GPU.
    types = {"gpu": (5, {"CPU": 2, "GPU": 1}), "large": (5, {"CPU": 4})}
    with autoscaling_head(types, at_most=MAX_NODES) as head, watched(head) as nodes:
        found = run_program(head, tmp_path)
    assert found["begin"] == {"device": "cuda", "workers": 3, "nodes": 0}
    assert len(found["outcome"]["committed"]) == SHORT_SHARDS + 1 and not found["outcome"]["incidents"]
    assert found["outcome"]["workers"] == 3

    seen = found["seen"]
    assert seen[0]["nodes"] == seen[0]["workers"] == 0, "it waits"
    assert any("waiting for a node" in text and "may start nodes for 3" in text for text in found["notices"])
    assert max(one["nodes"] for one in seen) == max(one["workers"] for one in seen) == 3, "it uses the nodes that come"
    tail = [one for one in seen if one["committed"] == SHORT_SHARDS]
    assert min(one["nodes"] for one in tail) == min(one["workers"] for one in tail) == 1, "the last one stays"
    assert found["end"] == 0
    assert nodes[0] == 0 and max(nodes) == 3, "the cluster itself says the same"


def test_submitted_run_scales_the_cluster_from_none_and_back(tmp_path, spec: RunSpec):
    manifest = write_manifest(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "run.yaml").write_text(spec.model_copy(update={"shard_size": 1}).to_yaml())
    command = command_line("submit", manifest, "--spec", tmp_path / "run.yaml", "--catalog", tmp_path / "catalog")
    command += ["--device", "cpu", "--workers", "2"]
    with autoscaling_head({"small": (3, {"CPU": 1})}) as head, watched(head) as nodes:
        command += ["--address", head.address]
        done = subprocess.run(command, env=head.client(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        while head.worker_nodes:
            threading.Event().wait(0.5)
    assert nodes[0] == 0 and max(nodes) == 2, "two workers, two nodes"
    assert sorted(read_committed(CatalogStore(str(tmp_path / "catalog")))) == ["a", "b", "c", "d"]
