"""A run on a real cluster of several nodes, in a process of its own: machines get notice, die, join and all leave.

    python tests/programs/nodes_that_go.py notice|notice-then-gone|lost|join-and-leave

prints what became of the run as JSON; test_nodes_that_go.py reads it.
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
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # as a run sets it: nothing of Ray's on standard output
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import ray
from ray.cluster_utils import Cluster

from persres.core.errors import ConceptFailure
from persres.jobs.cluster.placement import WhereToRun, workplace
from persres.jobs.driver.progress import RunOutcome, RunProgress
from persres.jobs.driver.run_shards import run_shards
from persres.jobs.driver.worker_pool import SHARDS_IN_HAND
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.spec.recovery import RecoverySettings
from persres.pipeline.spec.run_spec import RunSpec

OBJECT_STORE_BYTES = 80 << 20
SECONDS_A_SHARD = 1.0


@dataclass
class Summary:
    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SlowWorker:
    """Takes its time for a shard, and writes down where and when it began and ended."""

    def __init__(self, log: str) -> None:
        import threading

        self._log, self._device = log, threading.Lock()

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> Summary:
        with self._device:
            self._note("begun", shard)
            time.sleep(SECONDS_A_SHARD)
            self._note("ended", shard)
        return Summary(shard.concept_ids)

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[Any, Any]:
        return {}

    def _note(self, what: str, shard: Shard) -> None:
        line = {"what": what, "at": time.time(), "node": ray.get_runtime_context().get_node_id()}
        with open(self._log, "a") as log:
            log.write(json.dumps(line | {"concept": shard.concept_ids[0]}) + "\n")


@dataclass
class Place:
    """A cluster with a head that does no work, and the log of the workers on its other nodes."""

    cluster: Cluster
    log: Path
    nodes: dict[str, Any] = field(default_factory=dict)

    def join(self) -> None:
        """One more machine with a core."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False)
        self.nodes[node.node_id] = node

    def give_notice(self, node_id: str) -> None:
        """What a cloud's notice of a spot machine's end becomes."""
        command = ["ray", "drain-node", "--address", self.cluster.address, "--node-id", node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command += ["--deadline-remaining-seconds", "600"]
        subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True, capture_output=True)

    def kill(self, node_id: str) -> None:
        """The machine is gone, with all that runs on it."""
        node = self.nodes.pop(node_id)
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def written(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def run(self, shards: int, react: Callable[[RunProgress], None], **options: Any) -> RunOutcome:
        """So many shards of a concept each; `react` is called with how far the run is, in this thread."""
        groups = {"shards": SHARDS_IN_HAND, "progress": 1}
        actor: Any = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups=groups)(SlowWorker)
        with workplace(WhereToRun(join_cluster=True, device="cpu"), RunSpec()) as place:
            return run_shards(
                [shard(f"c{number}") for number in range(shards)],
                make_worker=lambda: actor.remote(str(self.log)),
                workers=place.workers,
                on_progress=react,
                **options,
            )


def shard(name: str) -> Shard:
    row = ManifestRow(0, name, "mug", (ReferenceSource("a.png"),), ("a {concept}",))
    return Shard.of("train", [PlannedConcept(row, Fingerprints("t" * 32, "r" * 32))])


@contextmanager
def place_with(nodes: int) -> Iterator[Place]:
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with TemporaryDirectory() as folder:
            os.environ["RAY_ADDRESS"] = cluster.address
            place = Place(cluster, Path(folder, "log"))
            for _ in range(nodes):
                place.join()
            cluster.wait_for_nodes()
            yield place
    finally:
        cluster.shutdown()


def notice(*, then_gone: bool) -> dict[str, Any]:
    """One of two machines gets notice while both work, and goes at once or never."""
    told: dict[str, Any] = {}

    def react(progress: RunProgress) -> None:
        if progress.committed >= 2 and progress.workers == 2 and not told:
            told["node"] = place.written()[-1]["node"]
            place.give_notice(told["node"])
            told["at"] = time.time()
        elif then_gone and told and "gone" not in told and time.time() > told["at"] + 3.2:
            told["gone"] = time.time()
            place.kill(told["node"])

    with place_with(2) as place:
        outcome = place.run(24, react, recovery=RecoverySettings(max_losses=1))
        return {"outcome": asdict(outcome), "told": told, "log": place.written()}


def lost() -> dict[str, Any]:
    """One of two machines dies without notice, with shards in hand."""
    told: dict[str, Any] = {}

    def react(progress: RunProgress) -> None:
        if progress.committed >= 2 and progress.workers == 2 and not told:
            told["node"] = place.written()[-1]["node"]
            place.kill(told["node"])

    with place_with(2) as place:
        outcome = place.run(12, react)
        return {"outcome": asdict(outcome), "told": told, "log": place.written()}


def join_and_leave() -> dict[str, Any]:
    """A run starts on one machine; a second joins; then both leave; later a third comes."""
    seen: list[int] = []
    told: dict[str, Any] = {}

    def react(progress: RunProgress) -> None:
        seen.append(progress.workers)
        if progress.committed >= 2 and "joined" not in told:
            told["joined"] = progress.committed
            place.join()
        elif progress.workers == 2 and "left" not in told:
            told["left"] = progress.committed
            for node_id in tuple(place.nodes):
                place.kill(node_id)
        elif "left" in told and progress.workers == 0 and "back" not in told:
            told["back"] = progress.committed
            place.join()

    with place_with(1) as place:
        outcome = place.run(30, react)
        return {"outcome": asdict(outcome), "told": told, "workers": seen, "log": place.written()}


SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "notice": lambda: notice(then_gone=False),
    "notice-then-gone": lambda: notice(then_gone=True),
    "lost": lost,
    "join-and-leave": join_and_leave,
}

if __name__ == "__main__":
    print(json.dumps(SCENARIOS[sys.argv[1]]()))
