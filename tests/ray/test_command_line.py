"""`persres-batch submit manifest.parquet` as a process: its exit codes, its output, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.catalog_status import catalog_status

from ..support.processes import command_line, restore_sigint, running, wait_until
from ..support.tiny_runs import write_manifest, write_run_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = [f"c{number}" for number in range(6)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A manifest of six concepts, one of them with a broken image, and its run spec."""
    write_run_spec(tmp_path, iterations=30, workers=1)
    write_manifest(tmp_path, NAMES, broken="c0")
    return tmp_path


def test_submit_after_ctrl_c_does_what_is_missing(folder):
    command, store = command_line("submit", "manifest.parquet"), CatalogStore(str(folder / "manifest-catalog"))

    # As users have it: other tests run without the token of the embedded Ray.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}

    with running(command, preexec_fn=restore_sigint, env=environment, cwd=folder) as process:
        wait_until(lambda: process.poll() is not None or (folder / "manifest-catalog/commits").is_dir())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "catalog: manifest-catalog (beside the manifest)" in err
    assert out == "" and "concepts done and committed" in err and "submit again" in err and "Traceback" not in err
    done = catalog_status(store).concepts
    assert 1 <= done < 5 and catalog_status(store).holder is None

    options = {"capture_output": True, "text": True, "timeout": 250, "env": environment, "cwd": folder}
    again = subprocess.run([*command, "--json"], **options)
    assert again.returncode == 3, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["rows"], summary["committed"], summary["current"]) == (6, 5 - done, done)
    assert [failure["concept_id"] for failure in summary["failed"]] == ["c0"]
    assert (summary["spec"], summary["catalog"]) == ("run.yaml", "manifest-catalog")
    assert Path(summary["report"]).is_file()
