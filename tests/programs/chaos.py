"""Chaos test: disturb everything a run depends on, and compare the catalog with a baseline's.

    python -m tests.programs.chaos --rounds 20

The baseline is a run that nothing disturbs: 12 drawn concepts, a Ray cluster of three nodes on this machine, an S3
server, and a web server that has a part of the pictures. Then every round submits the same manifest to a new catalog,
in the store and on disk in turn, while a tenth of all requests to the store fail (503, reset, timeout; before they are
executed, or after) and a third of the pictures do (503, a cut connection, one byte at a time). At random moments a
worker, a raylet or the driver gets SIGKILL; a worker gets SIGSTOP for some seconds; or a driver, until another one has
taken over its catalog. And a data file of a committed concept is damaged. What has ended is submitted again, as its
exit code says, and what `verify` names is forgotten first, as it says.

A round passes if its last submit exits with 0, every concept is committed once, `persres-batch verify` finds nothing,
and the catalog's digests are the baseline's; and all of this again after `gc` has deleted what lost attempts left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spriteworld.demo_catalog import write_demo

from ..support.catalog_digest import concept_digests, residuals_written
from ..support.processes import command_line
from .chaos_faults import (
    Damage,
    Nodes,
    PictureHost,
    StoreServer,
    damage_a_file,
    picture_host,
    store_server,
    three_nodes,
)

What = Literal["kill worker", "kill raylet", "kill driver", "freeze worker", "freeze driver"]
DISTURBANCES: tuple[What, ...] = ("kill worker", "kill raylet", "kill driver", "freeze worker", "freeze driver")
CONCEPTS = 12
MAX_SUBMITS = 10
SUBMITS_WITH_PICTURE_FAULTS = 3
ROUND_TIMEOUT_S = 900
TAKEOVER_TIMEOUT_S = 60
STORE_FAIL_RATE = 0.1
PICTURE_FAIL_RATE = 0.3
BUCKET = "s3://catalogs"

RUN_SPEC = """\
base_model: spriteworld
training:
  {iterations: 12, batch_size: 2, pack_size: 2, learning_rate: 0.01, initialization: zero, train_identifier: true}
sampling: {variants: [lag], guidance_scale: 4.0, steps: 4, batch_size: 4}
shard_size: 2
references: {read_seconds: 2, image_seconds: 3, retry_seconds: 4, host_seconds: 60}
recovery: {lease_seconds: 6, store_patience_seconds: 120}
"""


@dataclass
class Disturbance:
    """Something that happens to a process.

    Attributes:
        after_s: when, in seconds since the start of the round.
        seconds: how long a worker is frozen.
        found: whether there was such a process.
    """

    what: What
    after_s: float
    seconds: float = 0.0
    found: bool = False


@dataclass
class Round:
    """What happened in a round.

    Attributes:
        catalog: its address.
        submits: the exit code of every submit.
        damage: the damaged data file.
        forgotten: the concepts that `verify` named, so that they were forgotten.
        faults: failed requests by kind, of the store and of the host of the pictures.
        problems: why the round did not pass.
    """

    number: int
    catalog: str
    disturbances: list[Disturbance]
    submits: list[int] = field(default_factory=list)
    damage: Damage | None = None
    forgotten: list[str] = field(default_factory=list)
    residuals_written: int = 0
    objects_removed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disturbances", type=int, default=3, help="in every round")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--only", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES), metavar="WHAT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rounds there too")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with (
        TemporaryDirectory() as folder,
        store_server(arguments.seed) as server,
        picture_host(arguments.seed) as host,
        three_nodes() as nodes,
    ):
        testbed = Testbed(Path(folder), server, host, nodes)
        testbed.write_inputs()
        baseline = testbed.run_baseline()
        rounds = []
        for number in range(1, arguments.rounds + 1):
            disturbances = random_disturbances(rng, arguments.disturbances, arguments.only, baseline.seconds)
            one = Round(number, testbed.address_of(number), disturbances)
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


def random_disturbances(rng: random.Random, count: int, kinds: list[What], baseline_s: float) -> list[Disturbance]:
    """Draw disturbances and their moments, within the time that the baseline took."""
    moments = sorted(round(rng.uniform(0, baseline_s), 1) for _ in range(count))
    return [Disturbance(rng.choice(kinds), moment, round(rng.uniform(1, 8), 1)) for moment in moments]


def describe(one: Round) -> str:
    """A round on one line."""
    events = ", ".join(
        f"{event.what} at {event.after_s:.0f} s" + ("" if event.found else " (none there)")
        for event in one.disturbances
    )
    damage = f"{one.damage.path.split('/')[0]} {one.damage.kind}" if one.damage else "nothing damaged"
    verdict = "; ".join(one.problems) or "the baseline's catalog"
    return (
        f"round {one.number} ({'store' if one.catalog.startswith(BUCKET) else 'disk'}): {events}; {damage}, "
        f"{len(one.forgotten)} forgotten; submits ended with {one.submits}; {sum(one.faults.values())} requests "
        f"failed; {one.residuals_written} residuals written, {one.objects_removed} objects removed; "
        f"{one.seconds:.0f} s: {verdict}"
    )


@dataclass(frozen=True)
class Baseline:
    """The undisturbed run: its digest of every concept, and how long it took."""

    digests: dict[str, str]
    seconds: float


@dataclass
class Testbed:
    """A folder, a store, a host of pictures and a cluster, and the runs on them."""

    folder: Path
    server: StoreServer
    host: PictureHost
    nodes: Nodes

    def address_of(self, number: int) -> str:
        """The catalog of a round: in the store and on disk in turn."""
        return f"{BUCKET}/round-{number}" if number % 2 else str(self.folder / f"round-{number}")

    def write_inputs(self) -> None:
        """Write a drawn manifest and its pictures to the store; one picture of every other concept to the host."""
        demo, store = self.folder / "demo", CatalogStore(f"{BUCKET}/inputs")
        write_demo(demo, concepts=CONCEPTS, references=3)
        (self.folder / "run.yaml").write_text(RUN_SPEC)
        table = pq.read_table(demo / "manifest.parquet")
        rows = table.to_pylist()
        for row in rows[::2]:
            path = row["reference_images"][0]
            self.host.pictures[f"/{path}"] = (demo / path).read_bytes()
            row["reference_images"][0] = f"{self.host.address}/{path}"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), demo / "manifest.parquet")
        for path in demo.rglob("*"):
            if path.is_file():
                store.write(path.relative_to(demo).as_posix(), path.read_bytes())

    def run_baseline(self) -> Baseline:
        catalog, started = f"{BUCKET}/baseline", time.monotonic()
        with self._submit(catalog) as driver:
            code = driver.wait(ROUND_TIMEOUT_S)
        seconds = time.monotonic() - started
        assert code == 0, f"the baseline run ended with {code}: {self._log(catalog)}"
        digests = concept_digests(CatalogStore(catalog))
        assert len(digests) == CONCEPTS
        print(f"baseline: {CONCEPTS} concepts in {seconds:.0f} s", flush=True)
        return Baseline(digests, seconds)

    def play(self, one: Round, expected: dict[str, str]) -> None:
        """Run a round to its end, and check its catalog."""
        started = time.monotonic()
        met = {**self.server.set(fail_rate=STORE_FAIL_RATE), **self.host.met}
        self._submit_until_done(one, started)
        met_now = {**self.server.set(fail_rate=0.0), **self.host.met}
        one.faults = {fault: count - met.get(fault, 0) for fault, count in met_now.items()}
        if one.submits[-1] == 0:
            self._mend(one)
        one.seconds = round(time.monotonic() - started, 1)
        if one.submits[-1] != 0:
            one.problems.append(f"the last submit failed: {self._log(one.catalog)[-2000:]}")
        if one.problems:
            return
        one.residuals_written = len(residuals_written(CatalogStore(one.catalog)))
        self._check(one, expected, "")
        removed = self._command("gc", one.catalog, "--delete", "--older-than", "0s", "--json")
        one.objects_removed = len(json.loads(removed.stdout)["removed"])
        self._check(one, expected, "after gc: ")

    def _submit_until_done(self, one: Round, started: float) -> None:
        """Submit until a submit exits with 0, and damage a file at the first occasion at which nothing runs."""
        rng, left = random.Random(one.number), list(one.disturbances)
        while len(one.submits) < MAX_SUBMITS and (not one.submits or one.submits[-1] != 0):
            self.host.fail_rate = PICTURE_FAIL_RATE if len(one.submits) < SUBMITS_WITH_PICTURE_FAULTS else 0.0
            with ExitStack() as stack:
                drivers = [stack.enter_context(self._submit(one.catalog))]
                while any(driver.poll() is None for driver in drivers):
                    now = time.monotonic()
                    assert now - started < ROUND_TIMEOUT_S, self._log(one.catalog)
                    self.nodes.thaw(at=now)
                    # A process that does not exist yet is waited for.
                    if left and now - started >= left[0].after_s and self._disturb(left[0], drivers, one, stack, rng):
                        event = left.pop(0)
                        event.after_s, event.found = round(now - started, 1), True
                    time.sleep(0.1)
                one.submits += sorted((driver.wait() for driver in drivers), reverse=True)  # a 0 comes last
            one.damage = one.damage or damage_a_file(CatalogStore(one.catalog), rng)
        self.host.fail_rate = 0.0
        self.nodes.thaw()

    def _disturb(
        self,
        event: Disturbance,
        drivers: list[subprocess.Popen[str]],
        one: Round,
        stack: ExitStack,
        rng: random.Random,
    ) -> bool:
        """Let something happen to a process; returns whether there was one."""
        match event.what:
            case "kill driver":
                drivers[-1].kill()
                return True
            case "kill raylet":
                return self.nodes.kill_raylet(rng)
            case "kill worker":
                return self.nodes.kill_worker(rng)
            case "freeze worker":
                return self.nodes.freeze_worker(rng, event.seconds)
            case "freeze driver":
                store, frozen = CatalogStore(one.catalog), drivers[-1]
                if (held := lease_holder(store)) is None or frozen.poll() is not None:
                    return False  # it has not acquired the lease yet
                with _frozen(frozen):
                    drivers.append(stack.enter_context(self._submit(one.catalog)))
                    deadline = time.monotonic() + TAKEOVER_TIMEOUT_S
                    while (now := lease_holder(store)) and now.token == held.token:
                        assert time.monotonic() < deadline, "the lease of a frozen driver is not taken over"
                        self.nodes.thaw(at=time.monotonic())
                        time.sleep(0.2)
                    time.sleep(event.seconds)
                return True

    def _mend(self, one: Round) -> None:
        """Do what `verify` says about the damaged file, if no run has met it: forget its concepts, and submit."""
        named = self._faulty_concepts(one)
        unexpected = named - set(one.damage.concept_ids if one.damage else ())
        if unexpected:
            one.problems.append(f"verify names {sorted(unexpected)}, which nothing has damaged: {one.damage}")
        if named:
            one.forgotten = sorted(named)
            self._command("forget", one.catalog, *one.forgotten)
            with self._submit(one.catalog) as driver:
                one.submits.append(driver.wait(ROUND_TIMEOUT_S))

    def _faulty_concepts(self, one: Round) -> set[str]:
        ended = self._command("verify", one.catalog, "--json", check=False)
        try:
            return {finding["concept_id"] for finding in json.loads(ended.stdout)["findings"]}
        except (ValueError, KeyError):
            one.problems.append(f"verify: {ended.stdout}{ended.stderr}")
            return set()

    def _check(self, one: Round, expected: dict[str, str], when: str) -> None:
        found = concept_digests(CatalogStore(one.catalog))
        if sorted(found) != sorted(expected):
            one.problems.append(f"{when}committed are {sorted(found)}")
        other = [concept_id for concept_id in found if found[concept_id] != expected.get(concept_id)]
        if other:
            one.problems.append(f"{when}not as in the baseline: {other}")
        ended = self._command("verify", one.catalog, check=False)
        if ended.returncode:
            one.problems.append(f"{when}verify: {ended.stdout}{ended.stderr}")

    @contextmanager
    def _submit(self, catalog: str) -> Iterator[subprocess.Popen[str]]:
        command = command_line("submit", f"{BUCKET}/inputs/manifest.parquet", "--wait")
        command += ["--spec", str(self.folder / "run.yaml"), "--catalog", catalog]
        command += ["--address", "auto", "--workers", "2", "--device", "cpu"]
        environment = os.environ | {"RAY_ADDRESS": self.nodes.cluster.address}
        with open(self._log_file(catalog), "a") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
            try:
                yield driver
            finally:
                driver.kill()
                driver.wait()

    def _command(
        self, command: str, catalog: str, *options: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a catalog."""
        return subprocess.run(command_line(command, catalog, *options), capture_output=True, text=True, check=check)

    def _log_file(self, catalog: str) -> Path:
        return self.folder / f"{catalog.rsplit('/', 1)[-1]}.log"

    def _log(self, catalog: str) -> str:
        return self._log_file(catalog).read_text()


@contextmanager
def _frozen(process: subprocess.Popen[str]) -> Iterator[None]:
    """The process is stopped by SIGSTOP while the block lasts."""
    handle = psutil.Process(process.pid)
    handle.suspend()
    try:
        yield
    finally:
        handle.resume()


if __name__ == "__main__":
    sys.exit(main())
