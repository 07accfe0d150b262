"""A real Ray cluster on the loopback interface: `ray start` processes, token authentication, a job server.

    with loopback_cluster(nodes=2) as cluster:
        subprocess.run([...], env=cluster.client())

It does not touch another Ray on the machine: it uses free ports and a temporary folder of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

OBJECT_STORE_BYTES = 80 << 20
START_TIMEOUT_S = 120.0
_RAY_PREFIXES = ("RAY_", "PERSRES_")
# With every socket on 127.0.0.1, `ray start` refuses a second node, as on Windows. Only that check is patched: with
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1, Ray would replace 127.0.0.1 by an address that other machines can reach.
_RAY = """
import types
from ray.scripts import scripts
scripts.ray_constants = types.SimpleNamespace(**{**vars(scripts.ray_constants), "ENABLE_RAY_CLUSTER": True})
scripts.main()
"""


@dataclass
class LoopbackCluster:
    """One head and some nodes, each a `ray start --block` process.

    Attributes:
        token: required of every call; None: no token is required.
        folder: of its processes' sessions and logs.
        cpus: of the head, and of every other node.
        variables: added to the environment of its processes.
        head: the head's process; None while there is none.
        nodes: the other nodes' processes.
    """

    token: str | None
    folder: Path
    cpus: tuple[int, int] = (2, 2)
    variables: dict[str, str] = field(default_factory=dict)
    head: subprocess.Popen[bytes] | None = None
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    gcs_port: int = 0
    dashboard_port: int = 0

    @property
    def address(self) -> str:
        """The job server's address, for `--address`."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def gcs_address(self) -> str:
        """The GCS address, for `ray.init` on a node of the cluster."""
        return f"127.0.0.1:{self.gcs_port}"

    def client(self, *, token: str | None = "", **variables: str) -> dict[str, str]:
        """The environment of a client process.

        Args:
            token: by default the cluster's; None: none.
        """
        given = self.token if token == "" else token
        return _plain_environment() | _token_variables(given, self.folder / "no-token-here") | variables

    def start_head(self, *arguments: str) -> None:
        """Start the head node; returns when it accepts jobs.

        After `kill_head` it is a new cluster, whose job server has the old one's address. Nodes of the old cluster do
        not join it: they exit after a minute, or with `stop`.
        """
        self.gcs_port = free_port()
        self.dashboard_port = self.dashboard_port or free_port()
        self.head = self._start(
            *("--head", f"--port={self.gcs_port}", f"--num-cpus={self.cpus[0]}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"),
            f"--ray-client-server-port={free_port()}",
            *arguments,
        )
        self._wait(lambda: self.http("/api/jobs/")[0] == 200 and self.alive() > 0, [self.head])

    def add_node(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one more node; returns once it has joined, since nodes that start concurrently share files."""
        before = self.alive()
        node = self._start(f"--address={self.gcs_address}", f"--num-cpus={self.cpus[1]}", *arguments)
        self.nodes.append(node)
        self._wait(lambda: self.alive() > before, [node])
        return node

    def kill_head(self) -> None:
        """Kill everything that runs on the head, as a power cut does: GCS, raylet, dashboard and drivers."""
        assert self.head is not None
        kill_tree(self.head)
        self.head = None

    def stop(self) -> None:
        """Kill every process of the cluster."""
        for process in (*self.nodes, *([self.head] if self.head else [])):
            kill_tree(process)
        self.nodes.clear()
        self.head = None

    def http(self, path: str, *, token: str | None = "") -> tuple[int, bytes]:
        """GET a path of the dashboard; returns status and body, with status 0 if there is no response."""
        return http_get(f"{self.address}{path}", self.token if token == "" else token)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"node-{len(list(self.folder.glob('node-*.log')))}.log").open("wb")
        with log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-c", _RAY, "start", "--block", *arguments),
                    *("--node-ip-address=127.0.0.1", f"--object-store-memory={OBJECT_STORE_BYTES}"),
                    *(f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"),
                    *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
                ],
                env=self._node_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _node_environment(self) -> dict[str, str]:
        environment = _plain_environment() | _token_variables(self.token, self.folder / "no-token-here")
        return (
            environment
            | {
                # A job runs the `python` of its node's PATH.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "RAY_TMPDIR": str(self.folder),
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
                "RAY_prestart_worker_first_driver": "0",
            }
            | self.variables
        )

    def alive(self) -> int:
        """How many nodes are alive by the cluster's own account, including the head."""
        status, body = self.http("/nodes?view=summary")
        if status != 200:
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in json.loads(body)["data"]["summary"])

    def _wait(self, condition: Callable[[], bool], processes: list[subprocess.Popen[bytes]]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            ended = [process for process in processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self._logs()
            time.sleep(0.3)

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("node-*.log")))


@contextmanager
def loopback_cluster(
    nodes: int = 2, token: str | None = "", *, cpus: tuple[int, int] = (2, 2), **variables: str
) -> Iterator[LoopbackCluster]:
    """Run a cluster while the block lasts.

    Args:
        nodes: beside the head.
        token: required of every call; by default a random one; None: none.
        cpus: of the head, and of every other node.
        variables: added to the environment of its processes.
    """
    folder = Path(tempfile.mkdtemp(prefix="persres-ray-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
    cluster = LoopbackCluster(secrets.token_hex(16) if token == "" else token, folder, cpus, variables)
    try:
        cluster.start_head()
        for _ in range(nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def http_get(url: str, token: str | None = None) -> tuple[int, bytes]:
    """GET a URL; returns status and body, with status 0 if there is no response."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants, before any of them can clean up."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        below = parent.children(recursive=True)
        for one in (parent, *below):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(below, timeout=30)
    process.wait(30)


def _plain_environment() -> dict[str, str]:
    """This process' environment without the variables of Ray and of this project."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_RAY_PREFIXES)}
    return ours | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # all sockets on 127.0.0.1


def _token_variables(token: str | None, nowhere: Path) -> dict[str, str]:
    if token is None:
        return {"RAY_AUTH_MODE": "disabled"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": str(nowhere)}
