"""Kill anything at any moment, and see whether the catalog is the one that a quiet run leaves.

    python tests/programs/chaos.py --rounds 20

A quiet run first: 24 drawn concepts, a Ray cluster of three nodes on this machine, a server of the S3 protocol. Then
in every round the same manifest goes into a new catalog while a tenth of all requests to the store fail (503, reset,
timeout; before they are carried out, or after) and, at random moments, a worker, a raylet or the driver is ended with
SIGKILL. A driver that died is submitted again, a node that died is replaced. After every round: the run ended well,
every concept is committed once, `persres-batch verify` finds nothing, and the catalog's digest is the quiet run's; and
the same again after `gc` has taken away the debris.
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
from io import BytesIO
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
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spriteworld.demo_catalog import write_demo

from ..support.catalog_digest import concept_digests

Victim = Literal["worker", "raylet", "driver"]
VICTIMS: tuple[Victim, ...] = ("worker", "raylet", "driver")
CONCEPTS = 24
MOST_SUBMITS = 8
LONGEST_ROUND_S = 900
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
    """One SIGKILL: of what, and how long after the start of the round; `found`: there was such a process by then."""

    victim: Victim
    after_s: float
    found: bool = False


@dataclass
class Round:
    """What was done to a round, and how it ended."""

    number: int
    kills: list[Kill]
    submits: list[int] = field(default_factory=list)
    trainings_written: int = 0
    debris_removed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    faulty: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=2, help="in every round")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when, and of which requests fail")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what happened there too")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with TemporaryDirectory() as folder, store_server(arguments.seed) as server, three_nodes() as nodes:
        place = Place(Path(folder), server, nodes)
        place.write_inputs()
        quiet = place.quiet_run()
        rounds = []
        for number in range(1, arguments.rounds + 1):
            one = Round(number, kills_of(chance, arguments.kills, arguments.victims, quiet.seconds))
            place.carry_out(one, quiet.digests)
            rounds.append(one)
            print(told(one), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    bad = [one.number for one in rounds if one.faulty]
    print(
        f"{len(rounds) - len(bad)} of {len(rounds)} rounds ended in the quiet run's catalog"
        + (f"; not {bad}" if bad else "")
    )
    return 1 if bad else 0


def kills_of(chance: random.Random, count: int, victims: list[Victim], quiet_seconds: float) -> list[Kill]:
    """When to kill what: at any moment of a run that takes about as long as the quiet one."""
    moments = sorted(round(chance.uniform(0, quiet_seconds), 1) for _ in range(count))
    return [Kill(chance.choice(victims), moment) for moment in moments]


def told(one: Round) -> str:
    """A round on one line."""
    kills = ", ".join(
        f"{kill.victim} at {kill.after_s:.0f} s" + ("" if kill.found else " (none came)") for kill in one.kills
    )
    verdict = "; ".join(one.faulty) or "the quiet run's catalog"
    return (
        f"round {one.number}: {kills}; submits ended with {one.submits}; {sum(one.faults.values())} requests failed; "
        f"{one.trainings_written} residuals written, {one.debris_removed} objects of debris; "
        f"{one.seconds:.0f} s: {verdict}"
    )


# -- the machines ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """The object store, in a process of its own, so that nothing a driver does can disturb it."""

    endpoint: str

    def set(self, **faults: Any) -> dict[str, Any]:
        """Change how it fails; returns how often it has by now."""
        request = urllib.request.Request(f"{self.endpoint}/-/faults", data=json.dumps(faults).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextmanager
def store_server(seed: int) -> Iterator[Server]:
    """The server; its address and credentials are put into this process' environment, which its children inherit."""
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
    """A Ray cluster of three nodes in this process' children."""
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
    """A head without cores, and two nodes with a core each."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.working: list[Any] = []

    def add(self) -> None:
        self.working.append(self.cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, wait=False))

    def kill_raylet(self, chance: random.Random) -> bool:
        """End one node's raylet, and with it all of its workers; another node takes its place."""
        node = self.working.pop(chance.randrange(len(self.working)))
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.add()
        return True

    def kill_worker(self, chance: random.Random) -> bool:
        """End one of the processes that hold a model; whether there was one."""
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.working]
        workers = [child for raylet in raylets for child in raylet.children() if "GpuWorker" in _title(child)]
        if workers:
            os.kill(chance.choice(workers).pid, signal.SIGKILL)
        return bool(workers)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# -- the runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuietRun:
    """What every other run is held against: its catalog, concept by concept, and how long it took."""

    digests: dict[str, str]
    seconds: float


@dataclass
class Place:
    """Where all of it happens."""

    folder: Path
    server: Server
    nodes: Nodes

    def write_inputs(self) -> None:
        """Draw the manifest and its images, and put them into the store."""
        write_demo(self.folder / "demo", concepts=CONCEPTS, references=3)
        (self.folder / "run.yaml").write_text(RUN_SPEC)
        store = CatalogStore(f"{BUCKET}/inputs")
        for path in (self.folder / "demo").rglob("*"):
            if path.is_file():
                store.write(path.relative_to(self.folder / "demo").as_posix(), path.read_bytes())

    def quiet_run(self) -> QuietRun:
        started = time.monotonic()
        with self._submit("quiet") as driver:
            code = driver.wait(LONGEST_ROUND_S)
        seconds = time.monotonic() - started
        assert code == 0, f"the quiet run ended with {code}: {self._said('quiet')}"
        digests = concept_digests(CatalogStore(f"{BUCKET}/quiet"))
        assert len(digests) == CONCEPTS
        print(f"quiet run: {CONCEPTS} concepts in {seconds:.0f} s", flush=True)
        return QuietRun(digests, seconds)

    def carry_out(self, one: Round, expected: dict[str, str]) -> None:
        """Run a round to its end, and note all that is not as it has to be."""
        name, started = f"round-{one.number}", time.monotonic()
        met = self.server.set(fail_rate=FAIL_RATE)["met"]
        self._run_and_kill(one, name, started)
        now = self.server.set(fail_rate=0.0)["met"]
        one.faults = {fault: count - met.get(fault, 0) for fault, count in now.items()}
        one.seconds = round(time.monotonic() - started, 1)
        if not one.submits or one.submits[-1] != 0:
            one.faulty.append(f"the last submit did not end well: {self._said(name)[-2000:]}")
            return
        one.trainings_written = trainings_written(CatalogStore(f"{BUCKET}/{name}"))
        self._judge(one, name, expected, "")
        one.debris_removed = len(
            json.loads(self._command("gc", name, "--delete", "--older-than", "0s", "--json"))["removed"]
        )
        self._judge(one, name, expected, "after gc: ")

    def _run_and_kill(self, one: Round, name: str, started: float) -> None:
        chance, kills = random.Random(one.number), list(one.kills)
        while len(one.submits) < MOST_SUBMITS and (not one.submits or one.submits[-1] != 0):
            with self._submit(name) as driver:
                while (code := driver.poll()) is None:
                    now = time.monotonic() - started
                    assert now < LONGEST_ROUND_S, self._said(name)
                    # A victim that is not there yet is waited for.
                    if kills and now >= kills[0].after_s and self._kill(kills[0].victim, driver, chance):
                        kill = kills.pop(0)
                        kill.after_s, kill.found = round(now, 1), True
                    time.sleep(0.1)
                one.submits.append(code)

    def _kill(self, victim: Victim, driver: subprocess.Popen[str], chance: random.Random) -> bool:
        match victim:
            case "driver":
                driver.kill()
                return True
            case "raylet":
                return self.nodes.kill_raylet(chance)
            case "worker":
                return self.nodes.kill_worker(chance)

    def _judge(self, one: Round, name: str, expected: dict[str, str], when: str) -> None:
        found = concept_digests(CatalogStore(f"{BUCKET}/{name}"))
        if sorted(found) != sorted(expected):
            one.faulty.append(f"{when}committed are {sorted(found)}")
        other = [concept_id for concept_id in found if found[concept_id] != expected.get(concept_id)]
        if other:
            one.faulty.append(f"{when}not as in the quiet run: {other}")
        try:
            self._command("verify", name)
        except subprocess.CalledProcessError as error:
            one.faulty.append(f"{when}verify: {error.stdout}{error.stderr}")

    @contextmanager
    def _submit(self, name: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "persres.jobs.cli", "submit", f"{BUCKET}/inputs/manifest.parquet", "--wait"]
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

    def _command(self, *words: str) -> str:
        """Another of the program's commands on a catalog; what it prints."""
        command, name, *options = words
        line = [sys.executable, "-m", "persres.jobs.cli", command, f"{BUCKET}/{name}", *options]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


def trainings_written(store: CatalogStore) -> int:
    """How many residuals lie in the catalog's files, debris and repetitions included."""
    return sum(pq.read_metadata(BytesIO(store.read(path))).num_rows for path in store.list("residuals/"))


if __name__ == "__main__":
    sys.exit(main())
