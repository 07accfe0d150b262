"""What goes wrong in tests/programs/chaos.py: processes, the store, the host of the pictures, and data at rest."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore

from ..support.damage import KINDS, damage_file
from ..support.http_server import QuietHandler, serving

OBJECT_STORE_BYTES = 80 << 20
PICTURE_FAULTS = ("503", "cut", "drip")


# -- the store ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreServer:
    """The object store, in a process of its own."""

    endpoint: str

    def set(self, **faults: Any) -> dict[str, int]:
        """Set fault rates; returns how many requests have failed so far, by kind."""
        request = urllib.request.Request(f"{self.endpoint}/-/faults", data=json.dumps(faults).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["met"]


@contextmanager
def store_server(seed: int) -> Iterator[StoreServer]:
    """Start the store; sets its address and credentials in this process' environment, which children inherit."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "s3_server.py"), "--seed", str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    environment = json.loads(process.stdout.readline())
    os.environ |= environment
    try:
        yield StoreServer(environment["AWS_ENDPOINT_URL"])
    finally:
        process.stdin.close()
        process.wait(30)


# -- the host of some pictures -----------------------------------------------------------------------------------------


@dataclass
class PictureHost:
    """A web server of pictures, some of whose answers fail.

    Attributes:
        pictures: by path.
        fail_rate: the share of answers with one of `PICTURE_FAULTS`.
        met: how many answers had each fault.
    """

    seed: int
    address: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)
    fail_rate: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def draw_fault(self) -> str | None:
        with self._lock:
            fault = self._random.choice(PICTURE_FAULTS) if self._random.random() < self.fail_rate else None
            if fault:
                self.met[fault] += 1
        return fault


class _PictureRequest(QuietHandler):
    protocol_version = "HTTP/1.1"
    host: PictureHost

    def do_GET(self) -> None:
        picture, fault = self.host.pictures.get(self.path), self.host.draw_fault()
        if picture is None or fault == "503":
            self.send_response(404 if picture is None else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(picture)))
        self.send_header("ETag", f'"{hashlib.sha256(picture).hexdigest()}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault is None:
            self.wfile.write(picture)
            return
        self.close_connection = True
        self.wfile.write(picture[: len(picture) // 2])
        with suppress(OSError):
            for byte in picture[len(picture) // 2 :] if fault == "drip" else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)

    do_HEAD = do_GET


@contextmanager
def picture_host(seed: int) -> Iterator[PictureHost]:
    """Serve while the block lasts."""
    host = PictureHost(seed)
    with serving(type("Bound", (_PictureRequest,), {"host": host})) as host.address:
        yield host


# -- nodes and processes -----------------------------------------------------------------------------------------------


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
        self._frozen: list[tuple[float, psutil.Process]] = []

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
        workers = self._workers()
        if workers:
            os.kill(rng.choice(workers).pid, signal.SIGKILL)
        return bool(workers)

    def freeze_worker(self, rng: random.Random, seconds: float) -> bool:
        """Stop a GpuWorker process by SIGSTOP, for a while; returns whether there was one."""
        workers = self._workers()
        if workers:
            worker = rng.choice(workers)
            worker.suspend()
            self._frozen.append((time.monotonic() + seconds, worker))
        return bool(workers)

    def thaw(self, *, at: float = float("inf")) -> None:
        """Wake the workers that have been frozen until `at`, in seconds of the monotonic clock."""
        for until, worker in [one for one in self._frozen if one[0] <= at]:
            self._frozen.remove((until, worker))
            with suppress(psutil.Error):  # it was killed meanwhile, as a frozen process can be
                worker.resume()

    def _workers(self) -> list[psutil.Process]:
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.working]
        return [child for raylet in raylets for child in raylet.children() if "GpuWorker" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# -- data at rest ------------------------------------------------------------------------------------------------------


@dataclass
class Damage:
    """A damaged data file: how, and the concepts whose committed results are in it."""

    path: str
    kind: str
    concept_ids: list[str]


def damage_a_file(store: CatalogStore, rng: random.Random) -> Damage | None:
    """Damage the data file of a committed concept; None if nothing is committed."""
    committed = dict(read_committed(store))
    if not committed:
        return None
    one = committed[rng.choice(sorted(committed))]
    path = rng.choice([file for file in (one.residual_file, one.rendering_file) if file])
    kind = rng.choice(sorted(KINDS))
    damage_file(store, path, kind)
    there = [name for name, held in committed.items() if path in (held.residual_file, held.rendering_file)]
    return Damage(path, kind, sorted(there))
