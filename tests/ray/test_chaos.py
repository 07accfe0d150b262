"""Three rounds of chaos; `make chaos` does twenty. What a round is, and what it has to show: chaos.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_whatever_is_killed_the_catalog_is_the_quiet_runs():
    script = Path(__file__).parents[1] / "programs" / "chaos.py"
    ended = subprocess.run([sys.executable, str(script), "--rounds", "3"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 of 3 rounds ended in the quiet run's catalog" in ended.stdout
