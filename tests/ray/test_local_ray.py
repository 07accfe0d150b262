"""The Ray that `submit` starts on this machine: it refuses clients without its token, and shows which run it serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOST = """
import json, os, sys
from persres.jobs.cluster.local_ray import embedded_ray

notices = []
with embedded_ray(1, dashboard=True, metadata={"run_id": "r1", "manifest": "m", "catalog": "c"}, notify=notices.append):
    import ray

    read_token = ray.remote(lambda: os.environ.get("RAY_AUTH_TOKEN"))
    worker_has_it = ray.get(read_token.remote()) == os.environ["RAY_AUTH_TOKEN"]
    gcs = ray.get_runtime_context().gcs_address
    print(json.dumps({"gcs": gcs, "notices": notices, "worker_has_it": worker_has_it}), flush=True)
    sys.stdin.readline()
"""
GUEST = """
import logging, os, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print("connected")
"""


def environment(**variables: str) -> dict[str, str]:
    """This process' environment without the tests' own authentication settings."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "RAY_ADDRESS"))}
    return plain | variables


def guest(gcs: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", GUEST, gcs]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=120)


def get(url: str, token: str | None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_embedded_ray_accepts_only_clients_with_its_token():
    pipe = subprocess.PIPE
    host = subprocess.Popen([sys.executable, "-c", HOST], stdin=pipe, stdout=pipe, text=True, env=environment())
    assert host.stdin and host.stdout
    try:
        started = json.loads(next(line for line in host.stdout if line.startswith("{")))
        (notice,) = started["notices"]
        address, token_file = notice.split()[2].rstrip(","), Path(notice.split()[-1])
        token = token_file.read_text()
        assert token_file.stat().st_mode & 0o777 == 0o600 and len(token) == 64 and token not in notice
        assert started["worker_has_it"]

        refused = [guest(started["gcs"], RAY_AUTH_MODE="disabled")]
        refused.append(guest(started["gcs"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64))
        assert [result.returncode for result in refused] == [1, 1]
        assert not any("connected" in result.stdout for result in refused)
        assert "connected" in guest(started["gcs"], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token).stdout

        assert get(f"{address}/api/jobs/", None)[0] == 401
        assert get(f"{address}/api/jobs/", "f" * 64)[0] in (401, 403)
        status, body = get(f"{address}/api/jobs/", token)
        metadata = [job["metadata"] for job in json.loads(body)]
        assert status == 200 and {"run_id": "r1", "manifest": "m", "catalog": "c"} in metadata
    finally:
        host.communicate("\n", timeout=60)
    assert host.returncode == 0 and not token_file.exists()


def test_embedded_ray_requires_its_token_where_ray_was_imported_before():
    pipe, late = subprocess.PIPE, "import ray\n" + HOST
    host = subprocess.Popen([sys.executable, "-c", late], stdin=pipe, stdout=pipe, text=True, env=environment())
    assert host.stdin and host.stdout
    try:
        started = json.loads(next(line for line in host.stdout if line.startswith("{")))
        assert started["worker_has_it"]
        refused = guest(started["gcs"], RAY_AUTH_MODE="disabled")
        assert refused.returncode == 1 and "connected" not in refused.stdout
    finally:
        host.communicate("\n", timeout=60)
    assert host.returncode == 0


def test_command_line_does_not_import_ray_before_authentication_is_set_up():
    check = (
        "import sys, persres.jobs.cli, persres.jobs.submit, persres.jobs.cluster.placement; print('ray' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120).stdout == "False\n"
    )
