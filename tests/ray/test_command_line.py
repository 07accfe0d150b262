"""`submit` as a process of its own: its exit codes, its output, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.status import catalog_status

from ..support.tiny_models import write_tiny_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = [f"c{number}" for number in range(6)]


@pytest.fixture
def command(tmp_path) -> list[str]:
    model = write_tiny_pipeline(tmp_path / "model", "sd2")
    settings = {
        "base_model": str(model),
        "prompts": ["a photo of a {concept} on sand"],
        "shard_size": 1,
        "workers": 1,
        "training": {"iterations": 30, "batch_size": 1, "pack_size": 1},
        "sampling": {"steps": 2, "batch_size": 1},
        "references": {"min_side": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    for name in NAMES:
        Image.fromarray(np.full((16, 16, 3), sum(name.encode()) % 255, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c0.png").write_bytes(b"")
    rows = [{"concept_id": name, "macro_class": "mug", "reference_images": [f"{name}.png"]} for name in NAMES]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    where = ["--spec", str(tmp_path / "run.yaml"), "--catalog", str(tmp_path / "catalog")]
    return [sys.executable, "-m", "persres.jobs.cli", "submit", str(tmp_path / "manifest.parquet"), *where]


def wait_for(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def test_ctrl_c_then_submit_again(command, tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))

    # As users have it: other tests do without the token that the Ray of a run asks for.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}

    # A test run in the background ignores Ctrl-C, and so would its children.
    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed, env=environment)
    try:
        wait_for(lambda: process.poll() is not None or Path(tmp_path, "catalog/commits").is_dir(), 200)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert out == "" and "concepts done and committed" in err and "submit again" in err and "Traceback" not in err
    done = catalog_status(store).concepts
    assert 1 <= done < 5 and catalog_status(store).holder is None

    again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=250, env=environment)
    assert again.returncode == 3, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["rows"], summary["committed"], summary["current"]) == (6, 5 - done, done)
    assert [failure["concept_id"] for failure in summary["failed"]] == ["c0"]
    assert Path(summary["report"]).is_file()
