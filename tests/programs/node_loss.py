"""Runs on a cluster whose nodes are drained, killed and added meanwhile; prints the outcome as JSON.

    python -m tests.programs.node_loss drained|drained-then-killed|killed|added-and-killed

tests/ray/test_node_loss.py runs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # as in a run: none of Ray's lines on standard output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import ray
from ray.cluster_utils import Cluster

from persres.jobs.cluster.placement import Placement, connect_ray
from persres.jobs.driver.progress import RunOutcome, RunProgress
from persres.jobs.driver.run_shards import run_shards
from persres.jobs.driver.worker_pool import MAX_SHARDS_IN_FLIGHT
from persres.pipeline.planning.plan import Shard
from persres.pipeline.shard.summary import ShardSummary
from persres.pipeline.spec.recovery import RecoverySettings
from persres.pipeline.spec.run_spec import RunSpec

from ..support.catalog_factories import planned, shard_of
from ..support.recording_observer import RecordingObserver

OBJECT_STORE_BYTES = 80 << 20
SECONDS_A_SHARD = 1.0


class SlowWorker:
    """Sleeps for every shard, and logs where and when it started and ended it."""

    def __init__(self, log: str) -> None:
        import threading

        self._log, self._device = log, threading.Lock()

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        with self._device:
            self._write("started", shard)
            time.sleep(SECONDS_A_SHARD)
            self._write("ended", shard)
        return ShardSummary(shard.shard_id, attempt, shard.concept_ids, (), {})

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[Any, Any]:
        return {}

    def _write(self, event: str, shard: Shard) -> None:
        line = {"event": event, "at": time.time(), "node": ray.get_runtime_context().get_node_id()}
        with open(self._log, "a") as log:
            log.write(json.dumps(line | {"concept": shard.concept_ids[0]}) + "\n")


@dataclass
class Testbed:
    """A cluster whose head has no CPUs, and the log of the workers on its other nodes."""

    cluster: Cluster
    log: Path
    nodes: dict[str, Any] = field(default_factory=dict)

    def add_node(self) -> None:
        """Add a node with one CPU."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False)
        self.nodes[node.node_id] = node

    def drain(self, node_id: str) -> None:
        """Drain a node, as on a cloud's notice that it preempts a spot instance."""
        command = ["ray", "drain-node", "--address", self.cluster.address, "--node-id", node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", "600"]
        subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True, capture_output=True)

    def kill(self, node_id: str) -> None:
        """Kill a node, with all that runs on it."""
        node = self.nodes.pop(node_id)
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def run(self, shards: int, react: Callable[[RunProgress], None], **options: Any) -> RunOutcome:
        """Run shards of one concept each; `react` is called at every progress."""
        groups = {"shards": MAX_SHARDS_IN_FLIGHT, "progress": 1}
        actor: Any = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups=groups)(SlowWorker)
        with connect_ray(Placement(join_cluster=True, device="cpu"), RunSpec()) as place:
            return run_shards(
                [shard_of(planned(f"c{number}")) for number in range(shards)],
                make_worker=lambda: actor.remote(str(self.log)),
                workers=place.workers,
                observer=RecordingObserver(react),
                **options,
            )


@contextmanager
def testbed_with(nodes: int) -> Iterator[Testbed]:
    """A cluster with so many nodes beside the head."""
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with TemporaryDirectory() as folder:
            os.environ["RAY_ADDRESS"] = cluster.address
            testbed = Testbed(cluster, Path(folder, "log"))
            for _ in range(nodes):
                testbed.add_node()
            cluster.wait_for_nodes()
            yield testbed
    finally:
        cluster.shutdown()


def drained(*, then_killed: bool) -> dict[str, Any]:
    """Drain one of two nodes while both work; kill it afterwards or not."""
    done: dict[str, Any] = {}

    def react(progress: RunProgress) -> None:
        if progress.committed >= 2 and progress.workers == 2 and not done:
            done["node"] = testbed.log_lines()[-1]["node"]
            testbed.drain(done["node"])
            done["at"] = time.time()
        elif then_killed and done and "killed" not in done and time.time() > done["at"] + 3.2:
            done["killed"] = time.time()
            testbed.kill(done["node"])

    with testbed_with(2) as testbed:
        outcome = testbed.run(24, react, recovery=RecoverySettings(max_losses=1))
        return {"outcome": asdict(outcome), "done": done, "log": testbed.log_lines()}


def killed() -> dict[str, Any]:
    """Kill one of two nodes while it has shards in flight."""
    done: dict[str, Any] = {}

    def react(progress: RunProgress) -> None:
        if progress.committed >= 2 and progress.workers == 2 and not done:
            done["node"] = testbed.log_lines()[-1]["node"]
            testbed.kill(done["node"])

    with testbed_with(2) as testbed:
        outcome = testbed.run(12, react)
        return {"outcome": asdict(outcome), "done": done, "log": testbed.log_lines()}


def added_and_killed() -> dict[str, Any]:
    """Start with one node; add a second; kill both; add a third."""
    seen: list[int] = []
    done: set[str] = set()

    def react(progress: RunProgress) -> None:
        seen.append(progress.workers)
        if progress.committed >= 2 and "added" not in done:
            done.add("added")
            testbed.add_node()
        elif "killed" not in done and len({line["node"] for line in testbed.log_lines()}) == 2:
            done.add("killed")
            for node_id in tuple(testbed.nodes):
                testbed.kill(node_id)
        elif "killed" in done and progress.workers == 0 and "added again" not in done:
            done.add("added again")
            testbed.add_node()

    with testbed_with(1) as testbed:
        outcome = testbed.run(30, react)
        return {"outcome": asdict(outcome), "workers": seen, "log": testbed.log_lines()}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "drained": lambda: drained(then_killed=False),
    "drained-then-killed": lambda: drained(then_killed=True),
    "killed": killed,
    "added-and-killed": added_and_killed,
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]]()))
