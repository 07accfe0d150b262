"""Chaos test: kill processes at random while the store fails, and compare the catalog with a baseline's.

    python -m tests.programs.chaos --rounds 20

The baseline is a run without kills and faults: 24 drawn concepts, a Ray cluster of three nodes on this machine, an S3
server. Then every round submits the same manifest to a new catalog while a tenth of all requests to the store fail
(503, reset, timeout; before they are executed, or after) and a worker, a raylet or the driver gets SIGKILL at random
moments. A killed driver is submitted again, a killed node is replaced. A round passes if its last submit exits with 0,
every concept is committed once, `persres-batch verify` finds nothing, and the catalog's digests are the baseline's; and
all of this again after `gc` has deleted what killed attempts left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import psutil
from ray.cluster_utils import Cluster

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spriteworld.demo_catalog import write_demo

from ..support.catalog_digest import concept_digests, residuals_written
from ..support.processes import command_line

Victim = Literal["worker", "raylet", "driver"]
VICTIMS: tuple[Victim, ...] = ("worker", "raylet", "driver")
CONCEPTS = 24
MAX_SUBMITS = 8
ROUND_TIMEOUT_S = 900
FAIL_RATE = 0.1
OBJECT_STORE_BYTES = 80 << 20
BUCKET = "s3://catalogs"

RUN_SPEC = """\
base_model: spriteworld
training:
  {iterations: 12, batch_size: 2, pack_size: 2, learning_rate: 0.01, initialization: zero, train_identifier: true}
sampling: {variants: [lag], guidance_scale: 4.0, steps: 4, batch_size: 4}
shard_size: 2
recovery: {lease_seconds: 6, store_patience_seconds: 120}
"""


@dataclass
class Kill:
    """A SIGKILL.

    Attributes:
        after_s: when, in seconds since the start of the round.
        found: whether there was such a process.
    """

    victim: Victim
    after_s: float
    found: bool = False


@dataclass
class Round:
    """What happened in a round.

    Attributes:
        submits: the exit code of every submit.
        faults: failed requests by kind.
        problems: why the round did not pass.
    """

    number: int
    kills: list[Kill]
    submits: list[int] = field(default_factory=list)
    residuals_written: int = 0
    objects_removed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=2, help="in every round")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and of the requests that fail")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rounds there too")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with TemporaryDirectory() as folder, store_server(arguments.seed) as server, three_nodes() as nodes:
        testbed = Testbed(Path(folder), server, nodes)
        testbed.write_inputs()
        baseline = testbed.run_baseline()
        rounds = []
        for number in range(1, arguments.rounds + 1):
            one = Round(number, random_kills(rng, arguments.kills, arguments.victims, baseline.seconds))
            testbed.play(one, baseline.digests)
            rounds.append(one)
            print(describe(one), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    failed = [one.number for one in rounds if one.problems]
    print(
        f"{len(rounds) - len(failed)} of {len(rounds)} rounds ended in the baseline's catalog"
        + (f"; not {failed}" if failed else "")
    )
    return 1 if failed else 0


def random_kills(rng: random.Random, count: int, victims: list[Victim], baseline_seconds: float) -> list[Kill]:
    """Draw victims and moments, within the time that the baseline took."""
    moments = sorted(round(rng.uniform(0, baseline_seconds), 1) for _ in range(count))
    return [Kill(rng.choice(victims), moment) for moment in moments]


def describe(one: Round) -> str:
    """A round on one line."""
    kills = ", ".join(
        f"{kill.victim} at {kill.after_s:.0f} s" + ("" if kill.found else " (none found)") for kill in one.kills
    )
    verdict = "; ".join(one.problems) or "the baseline's catalog"
    return (
        f"round {one.number}: {kills}; submits ended with {one.submits}; {sum(one.faults.values())} requests failed; "
        f"{one.residuals_written} residuals written, {one.objects_removed} objects removed; "
        f"{one.seconds:.0f} s: {verdict}"
    )


# -- the store and the cluster -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """The object store, in a process of its own."""

    endpoint: str

    def set(self, **faults: Any) -> dict[str, Any]:
        """Set fault rates; returns how many requests have failed so far."""
        request = urllib.request.Request(f"{self.endpoint}/-/faults", data=json.dumps(faults).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def store_server(seed: int) -> Iterator[Server]:
    """Start the store; sets its address and credentials in this process' environment, which children inherit."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "s3_server.py"), "--seed", str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    environment = json.loads(process.stdout.readline())
    os.environ |= environment
    try:
        yield Server(environment["AWS_ENDPOINT_URL"])
    finally:
        process.stdin.close()
        process.wait(30)


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    """Start a Ray cluster of three nodes as children of this process."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False},
    )
    nodes = Nodes(cluster)
    try:
        nodes.add()
        nodes.add()
        yield nodes
    finally:
        cluster.shutdown()


class Nodes:
    """A head without CPUs, and two nodes with one CPU each."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.working: list[Any] = []

    def add(self) -> None:
        self.working.append(self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False))

    def kill_raylet(self, rng: random.Random) -> bool:
        """Kill a node's raylet, and with it its workers; replace the node."""
        node = self.working.pop(rng.randrange(len(self.working)))
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()
        return True

    def kill_worker(self, rng: random.Random) -> bool:
        """Kill a GpuWorker process; returns whether there was one."""
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.working]
        workers = [child for raylet in raylets for child in raylet.children() if "GpuWorker" in _title(child)]
        if workers:
            os.kill(rng.choice(workers).pid, signal.SIGKILL)
        return bool(workers)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# -- the runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """The run without kills and faults: its digest of every concept, and how long it took."""

    digests: dict[str, str]
    seconds: float


@dataclass
class Testbed:
    """A folder, a store and a cluster, and the runs on them."""

    folder: Path
    server: Server
    nodes: Nodes

    def write_inputs(self) -> None:
        """Write a drawn manifest and its images to the store."""
        write_demo(self.folder / "demo", concepts=CONCEPTS, references=3)
        (self.folder / "run.yaml").write_text(RUN_SPEC)
        store = CatalogStore(f"{BUCKET}/inputs")
        for path in (self.folder / "demo").rglob("*"):
            if path.is_file():
                store.write(path.relative_to(self.folder / "demo").as_posix(), path.read_bytes())

    def run_baseline(self) -> Baseline:
        started = time.monotonic()
        with self._submit("baseline") as driver:
            code = driver.wait(ROUND_TIMEOUT_S)
        seconds = time.monotonic() - started
        assert code == 0, f"the baseline run ended with {code}: {self._log('baseline')}"
        digests = concept_digests(CatalogStore(f"{BUCKET}/baseline"))
        assert len(digests) == CONCEPTS
        print(f"baseline: {CONCEPTS} concepts in {seconds:.0f} s", flush=True)
        return Baseline(digests, seconds)

    def play(self, one: Round, expected: dict[str, str]) -> None:
        """Run a round to its end, and check its catalog."""
        name, started = f"round-{one.number}", time.monotonic()
        met = self.server.set(fail_rate=FAIL_RATE)["met"]
        self._run_and_kill(one, name, started)
        now = self.server.set(fail_rate=0.0)["met"]
        one.faults = {fault: count - met.get(fault, 0) for fault, count in now.items()}
        one.seconds = round(time.monotonic() - started, 1)
        if not one.submits or one.submits[-1] != 0:
            one.problems.append(f"the last submit failed: {self._log(name)[-2000:]}")
            return
        one.residuals_written = len(residuals_written(CatalogStore(f"{BUCKET}/{name}")))
        self._check(one, name, expected, "")
        removed = json.loads(self._command("gc", name, "--delete", "--older-than", "0s", "--json"))["removed"]
        one.objects_removed = len(removed)
        self._check(one, name, expected, "after gc: ")

    def _run_and_kill(self, one: Round, name: str, started: float) -> None:
        rng, kills = random.Random(one.number), list(one.kills)
        while len(one.submits) < MAX_SUBMITS and (not one.submits or one.submits[-1] != 0):
            with self._submit(name) as driver:
                while (code := driver.poll()) is None:
                    now = time.monotonic() - started
                    assert now < ROUND_TIMEOUT_S, self._log(name)
                    # A victim that does not exist yet is waited for.
                    if kills and now >= kills[0].after_s and self._kill(kills[0].victim, driver, rng):
                        kill = kills.pop(0)
                        kill.after_s, kill.found = round(now, 1), True
                    time.sleep(0.1)
                one.submits.append(code)

    def _kill(self, victim: Victim, driver: subprocess.Popen[str], rng: random.Random) -> bool:
        match victim:
            case "driver":
                driver.kill()
                return True
            case "raylet":
                return self.nodes.kill_raylet(rng)
            case "worker":
                return self.nodes.kill_worker(rng)

    def _check(self, one: Round, name: str, expected: dict[str, str], when: str) -> None:
        found = concept_digests(CatalogStore(f"{BUCKET}/{name}"))
        if sorted(found) != sorted(expected):
            one.problems.append(f"{when}committed are {sorted(found)}")
        other = [concept_id for concept_id in found if found[concept_id] != expected.get(concept_id)]
        if other:
            one.problems.append(f"{when}not as in the baseline: {other}")
        try:
            self._command("verify", name)
        except subprocess.CalledProcessError as error:
            one.problems.append(f"{when}verify: {error.stdout}{error.stderr}")

    @contextmanager
    def _submit(self, name: str) -> Iterator[subprocess.Popen[str]]:
        command = command_line("submit", f"{BUCKET}/inputs/manifest.parquet", "--wait")
        command += ["--spec", str(self.folder / "run.yaml"), "--catalog", f"{BUCKET}/{name}"]
        command += ["--address", "auto", "--workers", "2", "--device", "cpu"]
        environment = os.environ | {"RAY_ADDRESS": self.nodes.cluster.address}
        with open(self.folder / f"{name}.log", "a") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
            try:
                yield driver
            finally:
                driver.kill()
                driver.wait()

    def _command(self, command: str, name: str, *options: str) -> str:
        """Run a command on a catalog; returns what it prints."""
        line = command_line(command, f"{BUCKET}/{name}", *options)
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


if __name__ == "__main__":
    sys.exit(main())
