"""Three rounds of tests/programs/chaos.py; `make chaos` runs twenty."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_chaos_rounds_end_in_the_catalog_of_the_baseline():
    command = [sys.executable, "-m", "tests.programs.chaos", "--rounds", "3"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 of 3 rounds ended in the baseline's catalog" in ended.stdout
