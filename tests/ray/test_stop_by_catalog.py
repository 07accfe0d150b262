"""A run of this machine's own Ray, stopped by a word that somebody else leaves in its catalog."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.lease import lease_holder

from .test_two_submits import NAMES, running, store, submit, wait_for  # noqa: F401  (two are fixtures)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_word_in_the_catalog_lets_what_is_in_flight_be_committed(submit, store):  # noqa: F811
    with running(submit()) as process:
        wait_for(lambda: len(read_committed(store)) >= 1, process)
        (run_id,) = store.run_ids()
        stop = [sys.executable, "-m", "persres.jobs.cli", "stop", run_id, "--catalog", store.uri]
        told = subprocess.run(stop, capture_output=True, text=True, timeout=300)
        assert told.returncode == 0 and f"run {run_id}: stopped" in told.stdout, told
        _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert "wants this run to stop, since" in err and "Traceback" not in err
    done = len(read_committed(store))
    assert 1 <= done < len(NAMES) and f"with {done} of {len(NAMES)} concepts" in err
    assert lease_holder(store) is None
    assert json.loads(store.read(store.run_file(run_id, "stop.json")))["by"]
