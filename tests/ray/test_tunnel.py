"""A cluster behind a tunnel that breaks: responses get lost and the log is cut off, but no job starts twice and no log
line is repeated."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from persres.core.errors import InvalidInput
from persres.jobs.cluster.job_log import JobUnreachable, follow_job
from persres.jobs.cluster.job_server import JobServer
from persres.jobs.cluster.submit_job import ClusterRun, submit_job, submit_to_cluster
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.spec.run_spec import RunSpec

from ..support.loopback_cluster import http_get, loopback_cluster
from ..support.processes import command_line, restore_sigint, running
from ..support.tiny_runs import write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Tunnel:
    """A port that forwards to another one.

    Attributes:
        drop_response_to: the response to the first request that begins so is dropped, with its connection.
        dropped: how many responses were.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.drop_response_to = b""
        self.dropped = 0
        self._open: list[socket.socket] = []
        self._accepting = True
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut every connection, and accept no more."""
        self._accepting = False
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def open(self) -> None:
        self._accepting = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if not self._accepting:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        dropping = False
        with near, far, suppress(OSError):
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(65536)
                    if end is near and self.drop_response_to and data.startswith(self.drop_response_to):
                        dropping, self.drop_response_to = True, b""
                    if not data or (end is far and dropping):
                        self.dropped += dropping
                        return
                    (far if end is near else near).sendall(data)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    with loopback_cluster(nodes=0, token=None) as cluster:
        yield cluster.address


@pytest.fixture
def tunnel(head) -> Iterator[Tunnel]:
    tunnel = Tunnel(int(head.rpartition(":")[2]))
    yield tunnel
    tunnel.close()


def jobs(head: str) -> list[str]:
    return [job["submission_id"] for job in json.loads(http_get(f"{head}/api/jobs/")[1])]


def test_lost_response_starts_no_second_job(head, tunnel, tmp_path, spec: RunSpec):
    manifest, shown = write_manifest(tmp_path, ["a"]), []
    run = ClusterRun(manifest, str(tmp_path / "catalog"), workers=1, device="cpu")
    tunnel.drop_response_to = b"POST /api/jobs/"
    assert submit_to_cluster(tunnel.address, run, spec, show=shown.append) == 0
    assert tunnel.dropped == 1 and jobs(head).count(run.job) == 1
    assert any("starts no second job" in text for text in shown) and any("has job" in text for text in shown)
    store = CatalogStore(str(tmp_path / "catalog"))
    assert list(read_committed(store)) == ["a"] and store.run_ids() == [run.run_id]


def slow_job(head: str, name: str, lines: int) -> None:
    """Submit a job that prints a line every 0.2 s, with the metadata of a run."""
    talk = f"import time\nfor n in range({lines}): print('line', n, flush=True); time.sleep(0.2)"
    metadata = {"run_id": name, "manifest": "/m.parquet", "catalog": "/catalog"}
    JobServer(head).submit(
        entrypoint=f'python -c "{talk}"', submission_id=f"persres-{name}", runtime_env={}, metadata=metadata
    )


def test_followed_log_continues_where_it_was_cut_off(head, tunnel):
    name = "20261122T190501Z-cut0ff"
    slow_job(head, name, lines=60)
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text in ("line 10", "line 25"):
            tunnel.close()
            threading.Timer(4.0, tunnel.open).start()

    job = follow_job(JobServer(tunnel.address), f"persres-{name}", show, silence_s=2)
    assert (job.state, job.exit_code) == ("ended", 0)
    assert [text for text in shown if re.match("line ", text)] == [f"line {n}" for n in range(60)]
    assert any("does not answer; the run continues without it" in text for text in shown)
    assert any("answers again" in text for text in shown)


def test_following_ends_when_the_tunnel_stays_broken(head, tunnel):
    name = "20261122T190501Z-s1lent"
    slow_job(head, name, lines=100)

    def show(text: str) -> None:
        if text == "line 3":
            tunnel.close()

    with pytest.raises(JobUnreachable, match="The run may continue without it") as lost:
        follow_job(JobServer(tunnel.address), f"persres-{name}", show, retry_s=2, silence_s=2)
    assert "persres-batch logs RUN --follow" in str(lost.value)
    assert JobServer(head).stop(f"persres-{name}")


def test_interrupted_follower_leaves_the_run_alone(head, tmp_path, spec: RunSpec):
    manifest = write_manifest(tmp_path, ["a", "b"])
    (tmp_path / "run.yaml").write_text(spec.to_yaml())
    submit = command_line("submit", manifest, "--spec", tmp_path / "run.yaml", "--catalog", tmp_path / "catalog")
    submit += ["--address", head, "--workers", "1", "--device", "cpu"]
    with running(submit, preexec_fn=restore_sigint) as process:
        assert process.stdout is not None
        submitted = next(line for line in process.stdout if line.startswith("submitted run "))
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    run_id = submitted.split()[2]
    assert process.returncode == 130 and f"persres-batch logs {run_id} --follow --address {head}" in out
    job = follow_job(JobServer(head), f"persres-{run_id}", lambda text: None)
    assert job.exit_code == 0 and sorted(read_committed(CatalogStore(str(tmp_path / "catalog")))) == ["a", "b"]


def test_other_job_of_the_same_name_is_refused(head, spec: RunSpec):
    name = "20261122T190501Z-0ther0"
    slow_job(head, name, lines=1)
    run = ClusterRun("/m.parquet", "/catalog", run_id=name)
    with pytest.raises(InvalidInput, match="has another job named"):
        submit_job(JobServer(head), run, spec, lambda text: None)
