"""A run on this machine's own Ray, stopped by a request in its catalog."""

from __future__ import annotations

import json
import subprocess

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import lease_holder

from ..support.processes import command_line, running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_stop_request_in_the_catalog_commits_what_is_in_flight(submit_command, store):
    with running(submit_command) as process:
        wait_until(lambda: len(read_committed(store)) >= 1, process)
        (run_id,) = store.run_ids()
        stop = command_line("stop", run_id, "--catalog", store.uri)
        stopped = subprocess.run(stop, capture_output=True, text=True, timeout=300)
        assert stopped.returncode == 0 and f"run {run_id}: stopped" in stopped.stdout, stopped
        _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert "requested a stop of this run at" in err and "Traceback" not in err
    done = len(read_committed(store))
    assert 1 <= done < 10 and f"with {done} of 10 concepts" in err
    assert lease_holder(store) is None
    assert json.loads(store.read(RunPaths(run_id).stop_request))["by"]
