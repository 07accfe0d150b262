"""Several `submit` processes with one catalog: one runs, others are refused or take over."""

from __future__ import annotations

import json
import signal
from itertools import takewhile

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.lease import lease_holder
from persres.pipeline.run.catalog_status import catalog_status

from ..support.catalog_digest import residuals_written
from ..support.processes import restore_sigint, running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = [f"c{number}" for number in range(10)]


def test_concurrent_submit_is_refused(submit_command, store):
    with running(submit_command) as one, running(submit_command) as other:
        ended = {process.wait(400): process for process in (one, other)}
        assert sorted(ended) == [0, 4], [process.communicate() for process in (one, other)]
        refused = ended[4].communicate()[1]
        assert "is held by run" in refused and "--wait" in refused
    assert sorted(read_committed(store)) == sorted(residuals_written(store)) == NAMES, "nothing is done twice"


def test_waiting_submit_takes_over_from_a_killed_one(submit_command, store):
    with running(submit_command) as first:
        wait_until(lambda: lease_holder(store), first)
        with running([*submit_command, "--wait"]) as second:
            assert second.stdout and second.stderr
            lines = iter(second.stderr.readline, "")
            before = list(takewhile(lambda line: "waiting for run" not in line, lines))
            wait_until(lambda: len(read_committed(store)) >= 1, first)
            first.kill()
            first.wait()
            killed_with = len(read_committed(store))
            out, err = second.communicate(timeout=400)
            assert second.returncode == 0, (before, err)
    summary = json.loads(out)
    assert summary["committed"] + summary["current"] == len(NAMES) and summary["current"] >= killed_with >= 1
    assert sorted(read_committed(store)) == NAMES and lease_holder(store) is None
    assert len(residuals_written(store)) - len(NAMES) <= 3, "at most what was in flight is done twice"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_submit_commits_what_is_in_flight(submit_command, store, number, code):
    with running(submit_command, preexec_fn=restore_sigint) as process:
        wait_until(lambda: len(read_committed(store)) >= 1, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    assert (json.loads(out)["state"], json.loads(out)["exit_code"]) == ("stopped", code)
    assert "stop requested" in err and "concepts done and committed" in err and "Traceback" not in err
    done = len(read_committed(store))
    assert f"with {done} of {len(NAMES)} concepts" in err and 1 < done < len(NAMES)
    assert lease_holder(store) is None
    run_id = catalog_status(store).latest.run_id  # pyright: ignore[reportOptionalMemberAccess]
    failures = json.loads(store.read(RunPaths(run_id).failures))
    assert "stopped run" in failures["ended_by"] and failures["failures"] == []
